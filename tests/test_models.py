import shutil

import pytest
import torch

from knowlm.manifest import write_manifest
from knowlm.models import check_model_folder, load_base, load_for_generation, load_tokenizer


@pytest.fixture
def model(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "model")
    return tmp_path / "model"


def test_a_whole_folder_and_a_hub_name_pass(model):
    check_model_folder(str(model))
    check_model_folder("owner/name")


def test_a_missing_folder_says_how_to_get_one():
    with pytest.raises(ValueError, match=r"no such model folder.*--default_model"):
        check_model_folder("./nowhere")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", "{", "not valid JSON"),
        ("config.json", "{}", "names no model_type"),
        ("model.safetensors", None, "holds no weights"),
        ("model.safetensors", "cut", "damaged"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": "model-2.safetensors"}}',
            "model-2.safetensors: missing",
        ),
    ],
)
def test_a_broken_folder_is_told_by_file(model, file, content, message):
    (model / file).unlink(missing_ok=True)
    if file.endswith("index.json"):
        (model / "model.safetensors").unlink()  # it would be taken before the index
    if content is not None:
        (model / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        check_model_folder(str(model))


def test_a_copy_that_was_broken_off_and_a_difference_are_no_models(model):
    """By the manifest of weight_diff.py: neither generating nor tuning nor serving begins with them."""
    files = {file.name: {"bytes": file.stat().st_size, "blake3": ""} for file in model.iterdir()}
    write_manifest(model, {"kind": "model", "files": files, "tensors": {}})
    (model / "tokenizer_config.json").write_text("{}")  # edited since
    check_model_folder(str(model))
    for name in ("tokenizer.json", "model.safetensors"):
        content = (model / name).read_bytes()
        (model / name).unlink()
        with pytest.raises(ValueError, match=rf"{name}|holds no weights"):
            check_model_folder(str(model))
        (model / name).write_bytes(content)
    files["model.safetensors"]["bytes"] += 4
    write_manifest(model, {"kind": "model", "files": files, "tensors": {}})
    with pytest.raises(ValueError, match=r"model\.safetensors: has \d+ bytes, knowlm_manifest\.json says"):
        check_model_folder(str(model))
    write_manifest(model, {"kind": "exact difference", "files": {}, "tensors": {}})
    with pytest.raises(ValueError, match="not a model but the exact difference of two"):
        load_for_generation(str(model))


def test_a_truncated_shard_is_named(model):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        check_model_folder(str(model))


def test_a_4bit_base_passes_the_same_gradients_on_after_a_validation(tiny_llama):
    model = load_base(str(tiny_llama), load_4bit=True, training=True, frozen=True)
    embeddings = model.get_input_embeddings().weight.requires_grad_()
    tokens = torch.arange(5, 37)[None]

    def gradient():
        model.train()
        return torch.autograd.grad(model(input_ids=tokens, labels=tokens).loss, embeddings)[0]

    before = gradient()
    model.eval()
    with torch.no_grad():
        model(input_ids=tokens)
    assert before.any() and torch.equal(gradient(), before)


@pytest.mark.parametrize(("content", "said"), [(None, "holds no tokenizer"), ("[]", "its tokenizer does not load")])
def test_a_folder_without_a_whole_tokenizer_is_named(model, content, said):
    (model / "tokenizer.json").unlink()
    if content:
        (model / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=f"model: {said}"):
        load_tokenizer(str(model))


def test_an_adapter_of_another_base_is_told_in_one_line(tiny_llama, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    other = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, vocab_size=64))
    get_peft_model(other, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"lora: doesn't fit .*; name the base it was tuned on"):
        load_for_generation(str(tiny_llama), str(tmp_path / "lora"))
