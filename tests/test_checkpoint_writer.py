import sys

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import save_file

sys.path.insert(0, str(REPOSITORY / "tools"))
import weight_diff
from model_folders import save

from knowlm.manifest import read_manifest

KEPT = [
    *("config.json", "generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "additional_chat_templates/tools.jinja", "merges.txt", "vocab.json", "qwen.tiktoken"),
    *("modeling_own.py", "tokenization_own.py", "spiece.model", "tokenizer.model.v3"),
]
LEFT = ["README.md", "LICENSE", "adapter_config.json", "optimizer.pt", "training_args.bin", "trainer_state.json"]
LEFT += ["consolidated.safetensors.index.json", ".gitattributes"]


@pytest.mark.parametrize("command", ["make_diff", "recover", "merge"])
def test_what_a_model_needs_beside_its_weights_goes_with_them(tmp_path, command):
    one, out = save(tmp_path / "one", {"a.weight": torch.ones(4, 4)}), tmp_path / "out"
    for name in (*KEPT, *LEFT):
        file = one / name
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            file.write_text('raise SystemExit("was run")' if file.suffix == ".py" else f'{{"is": "{name}"}}')
    if command == "merge":
        lora = tmp_path / "lora"
        lora.mkdir()
        save_file({"base_model.model.a.weight": torch.zeros(4, 4)}, lora / "adapter_model.safetensors")
        (lora / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
        weight_diff.merge(str(one), str(lora), str(out))
    else:
        diff = out if command == "make_diff" else tmp_path / "diff"
        weight_diff.make_diff(str(one), str(one), str(diff))
        if command == "recover":
            weight_diff.recover(str(one), str(diff), str(out))
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert files == {*KEPT, "model.safetensors", "knowlm_manifest.json"}
    assert all((out / name).read_bytes() == (one / name).read_bytes() for name in KEPT)
    assert set(read_manifest(out)["files"]) == files - {"knowlm_manifest.json"}


def test_a_changed_file_of_a_subfolder_is_named(tmp_path):
    one = save(tmp_path / "one", {"a": torch.ones(4)})
    (one / "additional_chat_templates").mkdir()
    (one / "additional_chat_templates/tools.jinja").write_text("{{ messages }}")
    weight_diff.make_diff(str(one), str(one), str(tmp_path / "diff"))
    changed = tmp_path / "diff/additional_chat_templates/tools.jinja"
    changed.write_text("{{ others }}")
    with pytest.raises(ValueError, match=rf"{changed}: damaged"):
        weight_diff.recover(str(one), str(tmp_path / "diff"), str(tmp_path / "out"))
