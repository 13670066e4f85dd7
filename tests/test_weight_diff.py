import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from knowlm import checkpoints
from knowlm.checkpoints import Checkpoint

pytestmark = pytest.mark.slow  # every test starts a script that imports torch


@pytest.fixture
def pair(tiny_llama, tmp_path):
    """(raw, tuned): the tiny model and the same with other weights."""
    tuned = tmp_path / "tuned"
    shutil.copytree(tiny_llama, tuned)
    weights = load_file(tuned / "model.safetensors")
    torch.manual_seed(1)
    save_file({name: w + 0.01 * torch.randn_like(w) for name, w in weights.items()}, tuned / "model.safetensors")
    return tiny_llama, tuned


def weights_of(folder):
    with Checkpoint(folder) as checkpoint:
        return dict(checkpoint)


def in_dtype(folder, dtype, target):
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    save_file({name: w.to(dtype) for name, w in weights.items()}, target / "model.safetensors")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))
    return target


def diff_and_recover(run_warm, raw, tuned, tmp_path, *flags):
    for command in (
        ["make_diff", "--path_raw", raw, "--path_tuned", tuned, "--path_diff", tmp_path / "diff", *flags],
        ["recover", "--path_raw", raw, "--path_diff", tmp_path / "diff", "--path_tuned", tmp_path / "recovered"],
    ):
        result = run_warm("tools/weight_diff.py", *command)
        assert result.returncode == 0, result.stderr
    return tmp_path / "recovered"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_exact_recovery_gives_the_tuned_bits(run_warm, pair, tmp_path, dtype):
    raw, tuned = pair
    raw, tuned = in_dtype(raw, dtype, tmp_path / "raw16"), in_dtype(tuned, dtype, tmp_path / "tuned16")
    recovered = diff_and_recover(run_warm, raw, tuned, tmp_path, "--exact")
    expected, got = weights_of(tuned), weights_of(recovered)
    assert expected.keys() == got.keys()
    assert all(got[name].dtype == dtype and torch.equal(got[name], expected[name]) for name in expected)


def test_plain_recovery_is_off_by_a_rounding(run_warm, pair, tmp_path):
    raw, tuned = pair
    recovered = diff_and_recover(run_warm, raw, tuned, tmp_path)
    expected, got = weights_of(tuned), weights_of(recovered)
    assert all(torch.allclose(got[name], expected[name], rtol=0, atol=1e-7) for name in expected)
    difference = weights_of(tmp_path / "diff")
    assert torch.equal(
        difference["model.norm.weight"], expected["model.norm.weight"] - weights_of(raw)["model.norm.weight"]
    )


def test_a_recovered_model_loads_and_keeps_its_tokenizer(run_warm, pair, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recovered = diff_and_recover(run_warm, *pair, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(recovered).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(recovered)("你好").input_ids


def test_sharded_pickles_of_2023_are_read(pair, run_warm, tmp_path):
    raw, tuned = pair
    old = tmp_path / "old"
    old.mkdir()
    weights = load_file(tuned / "model.safetensors")
    names = sorted(weights)
    torch.save({name: weights[name] for name in names[:5]}, old / "pytorch_model-00001-of-00002.bin")
    torch.save(
        {name: weights[name] for name in names[5:]} | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)},
        old / "pytorch_model-00002-of-00002.bin",
    )
    shutil.copy(tuned / "config.json", old)
    recovered = diff_and_recover(run_warm, raw, old, tmp_path, "--exact")
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(recovered).items())


def test_large_models_are_written_in_shards(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 100_000)
    with Checkpoint(pair[0]) as model:
        checkpoints.write_checkpoint(tmp_path / "new", model, {n: model.spec(n) for n in model}, iter(model.items()))
    index = json.loads((tmp_path / "new/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    expected = weights_of(pair[0])
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(tmp_path / "new").items())
    from transformers import AutoModelForCausalLM

    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(tmp_path / "new").lm_head.weight, expected["lm_head.weight"]
    )


def test_a_wrong_sum_is_an_error(run_warm, pair, tmp_path):
    raw, tuned = pair
    diff_and_recover(run_warm, raw, tuned, tmp_path)
    arguments = ["recover", "--path_raw", raw, "--path_diff", tmp_path / "diff", "--path_tuned"]
    result = run_warm("tools/weight_diff.py", *arguments, tmp_path / "one", "--check_integrity_naively")
    assert result.returncode == 1
    assert "94052.2891 is expected" in result.stderr
    total = sum(w.double().sum().item() for w in weights_of(tmp_path / "one").values())
    result = run_warm(
        "tools/weight_diff.py", *arguments, tmp_path / "two", "--check_integrity_naively", "--expected_sum", total
    )
    assert result.returncode == 0, result.stderr


def test_another_base_is_named(run_warm, pair, tmp_path):
    raw, tuned = pair
    other = tmp_path / "other"
    shutil.copytree(raw, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(3)
    save_file(weights, other / "model.safetensors")
    result = run_warm(
        "tools/weight_diff.py",
        "make_diff",
        "--path_raw",
        other,
        "--path_tuned",
        tuned,
        "--path_diff",
        tmp_path / "diff",
    )
    assert result.returncode == 1
    assert "model.norm.weight: shape (3,)" in result.stderr
    assert not (tmp_path / "diff").exists()


def test_a_pickle_with_code_is_refused_without_running_it(run_warm, pair, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    bad = tmp_path / "bad"
    bad.mkdir()
    torch.save({"model.norm.weight": Evil()}, bad / "pytorch_model.bin")
    shutil.copy(pair[0] / "config.json", bad)
    result = run_warm(
        "tools/weight_diff.py",
        "make_diff",
        "--path_raw",
        pair[0],
        "--path_tuned",
        bad,
        "--path_diff",
        tmp_path / "diff",
    )
    assert result.returncode == 1
    assert "nothing of it was run" in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "ran").exists()


def test_an_output_that_exists_is_not_overwritten(run_warm, pair, tmp_path):
    (tmp_path / "diff").mkdir()
    (tmp_path / "diff/mine.txt").write_text("x")
    result = run_warm(
        "tools/weight_diff.py",
        "make_diff",
        "--path_raw",
        pair[0],
        "--path_tuned",
        pair[1],
        "--path_diff",
        tmp_path / "diff",
    )
    assert result.returncode == 1
    assert "already exists" in result.stderr


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5}}]
)
def test_merging_equals_pefts_own(run_warm, tiny_llama, tmp_path, settings):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llama),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **settings),
    )
    model.save_pretrained(tmp_path / "lora")
    result = run_warm(
        "tools/weight_diff.py",
        "merge",
        "--path_zhixi",
        tiny_llama,
        "--path_lora",
        tmp_path / "lora",
        "--path_sfted",
        tmp_path / "merged",
    )
    assert result.returncode == 0, result.stderr
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    expected = PeftModel.from_pretrained(base, tmp_path / "lora").merge_and_unload().state_dict()
    merged = weights_of(tmp_path / "merged")
    assert all(torch.allclose(merged[name], expected[name], rtol=0, atol=1e-6) for name in merged)
    assert not torch.equal(
        merged["model.layers.0.self_attn.q_proj.weight"],
        weights_of(tiny_llama)["model.layers.0.self_attn.q_proj.weight"],
    )


def test_an_adapter_of_another_model_is_refused(run_warm, tiny_llama, tmp_path):
    (tmp_path / "lora").mkdir()
    save_file(
        {
            "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(2, 64),
            "base_model.model.model.layers.9.self_attn.q_proj.lora_B.weight": torch.ones(128, 2),
        },
        tmp_path / "lora/adapter_model.safetensors",
    )
    (tmp_path / "lora/adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    result = run_warm(
        "tools/weight_diff.py",
        "merge",
        "--path_zhixi",
        tiny_llama,
        "--path_lora",
        tmp_path / "lora",
        "--path_sfted",
        tmp_path / "merged",
    )
    assert result.returncode == 1
    assert "layers.9" in result.stderr and "another base" in result.stderr
    assert not (tmp_path / "merged").exists()
