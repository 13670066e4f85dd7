import json
import shutil
import sys

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import save_file

sys.path.insert(0, str(REPOSITORY / "tools"))
import weight_diff

from knowlm import checkpoints
from knowlm.checkpoints import Checkpoint

LINEAR = ["q_proj", "down_proj"]


@pytest.fixture(autouse=True, scope="module")
def small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "PIECE", 1000)
        yield


@pytest.fixture(scope="module")
def base_of(tiny_llama, tmp_path_factory):
    """``base_of(dtype)``: the folder of the tiny Llama; ``base_of("gpt2")``: of a model of transposed weights."""
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    def build(kind):
        folder = tmp_path_factory.mktemp(kind)
        if kind == "gpt2":
            model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32))
        else:
            model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=getattr(torch, kind))
        model.save_pretrained(folder)
        return folder

    return build


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("float32", {"target_modules": LINEAR}),
        ("float16", {"target_modules": LINEAR}),
        ("bfloat16", {"target_modules": LINEAR}),
        ("float32", {"target_modules": LINEAR, "use_rslora": True}),
        (
            "float32",
            {"target_modules": LINEAR, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.*q_proj": 5}},
        ),
        ("float32", {"target_modules": LINEAR, "use_dora": True}),
        ("bfloat16", {"target_modules": LINEAR, "use_dora": True}),
        ("float32", {"target_modules": LINEAR, "modules_to_save": ["lm_head"]}),
        ("float32", {"target_modules": ["embed_tokens", "lm_head"]}),
        ("float32", {"target_modules": ["embed_tokens", "v_proj"], "use_dora": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
        ("gpt2", {"target_modules": ["attn.c_proj"]}),  # square, and peft corrects the flag
        ("float32", {"target_modules": ["up_proj"], "fan_in_fan_out": True}),
        ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}),
        ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "lora_bias": True}),
    ],
)
def test_merging_equals_pefts_own_within_one_rounding(base_of, tmp_path, base, options):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    folder, lora = base_of(base), tmp_path / "lora"
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **options)
    )
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and ("magnitude" in name or "modules_to_save" in name or "bias" in name):
            parameter.data += 0.1 * torch.rand_like(parameter)
    adapted.save_pretrained(lora)
    weight_diff.merge(str(folder), str(lora), str(tmp_path / "merged"))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), lora)
    expected = loaded.merge_and_unload().state_dict()
    with Checkpoint(tmp_path / "merged") as merged, Checkpoint(folder) as old:
        assert set(merged) <= set(expected)
        for name, weight in merged.items():
            sums = 8 if options.get("use_dora") else 2  # of squares and products round too
            rounding = sums * torch.finfo(weight.dtype).eps * max(expected[name].abs().max().item(), 1e-3)
            assert weight.dtype == expected[name].dtype == old[name].dtype
            assert torch.allclose(weight.float(), expected[name].float(), rtol=0, atol=rounding), name
        changed = [name for name in merged if not torch.equal(merged[name], old[name])]
        assert changed == sorted(name for name in merged if not torch.equal(expected[name], old[name])) and changed


def test_pickled_adapters_are_merged_and_fp16_is_written_if_asked(tiny_llama, tmp_path):
    name = "model.layers.0.self_attn.q_proj"
    (tmp_path / "lora").mkdir()
    pair = {"A": torch.randn(2, 64), "B": torch.randn(128, 2)}
    torch.save(
        {f"base_model.model.{name}.lora_{k}.weight": w for k, w in pair.items()}, tmp_path / "lora/adapter_model.bin"
    )
    (tmp_path / "lora/adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    weight_diff.merge(str(tiny_llama), str(tmp_path / "lora"), str(tmp_path / "merged"), is_fp16=True)
    with Checkpoint(tmp_path / "merged") as merged, Checkpoint(tiny_llama) as base:
        expected = base[f"{name}.weight"] + 2 * pair["B"] @ pair["A"]
        assert torch.equal(merged[f"{name}.weight"], expected.half())
        assert {merged.spec(other)[0] for other in merged} == {"F16"}
    assert json.loads((tmp_path / "merged/config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize(
    ("config", "shapes", "message"),
    [
        ({"r": 2}, {"model.layers.9.self_attn.q_proj": (64, 128)}, r"layers.9.self_attn.q_proj.weight, which .* lacks"),
        ({"r": 2}, {"model.layers.0.self_attn.q_proj": (64, 64)}, r"is \(64, 64\), in .* it is \(128, 64\)"),
        ({"r": 3}, {"model.layers.0.self_attn.q_proj": (64, 128)}, "ranks 2 and 2, adapter_config.json says 3"),
        ({"r": 2, "use_dora": True}, {"model.layers.0.self_attn.q_proj": (64, 128)}, "lacks part of the LoRA weights"),
        (
            {"r": 2, "init_lora_weights": "pissa"},
            {"model.layers.0.self_attn.q_proj": (64, 128)},
            "changed base weights",
        ),
        ({"r": 2, "rank_pattern": {"q_(": 2}}, {"model.layers.0.self_attn.q_proj": (64, 128)}, "no regular expression"),
        ({"r": 2, "layer_replication": [[0, 2]]}, {"model.layers.0.self_attn.q_proj": (64, 128)}, "layer_replication"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tiny_llama, tmp_path, config, shapes, message):
    (tmp_path / "lora").mkdir()
    weights = {}
    for name, (inputs, outputs) in shapes.items():
        weights[f"base_model.model.{name}.lora_A.weight"] = torch.ones(2, inputs)
        weights[f"base_model.model.{name}.lora_B.weight"] = torch.ones(outputs, 2)
    save_file(weights, tmp_path / "lora/adapter_model.safetensors")
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps({"lora_alpha": 4, **config}))
    with pytest.raises(ValueError, match=message):
        weight_diff.merge(str(tiny_llama), str(tmp_path / "lora"), str(tmp_path / "merged"))
    assert not list(tmp_path.glob("merged*"))


@pytest.mark.parametrize(
    ("config", "message"),
    [({"tie_word_embeddings": True}, "ties to its output"), ({"quantization_config": {}}, "weights are quantized")],
)
def test_a_base_that_would_become_another_model_is_refused(tiny_llama, tmp_path, config, message):
    shutil.copytree(tiny_llama, tmp_path / "base")
    (tmp_path / "base/config.json").write_text(
        json.dumps(json.loads((tmp_path / "base/config.json").read_text()) | config)
    )
    (tmp_path / "lora").mkdir()
    weights = {"base_model.model.model.embed_tokens.weight": torch.ones(600, 64)}
    save_file(weights, tmp_path / "lora/adapter_model.safetensors")
    (tmp_path / "lora/adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    with pytest.raises(ValueError, match=message):
        weight_diff.merge(str(tmp_path / "base"), str(tmp_path / "lora"), str(tmp_path / "merged"))


def test_an_unknown_weight_in_an_adapter_is_named(tiny_llama, tmp_path):
    (tmp_path / "lora").mkdir()
    save_file({"base_model.model.x.lora_E.weight": torch.ones(1)}, tmp_path / "lora/adapter_model.safetensors")
    (tmp_path / "lora/adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    with pytest.raises(ValueError, match=r"x.lora_E.weight is no LoRA weight"):
        weight_diff.merge(str(tiny_llama), str(tmp_path / "lora"), str(tmp_path / "merged"))
