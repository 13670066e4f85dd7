"""Dtypes that PyTorch calculates with and those it doesn't, through weight_diff.py."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

sys.path.insert(0, str(REPOSITORY / "tools"))
import weight_diff
from model_folders import random_weights, same_bits, save, weights_of

from knowlm.dtypes import DTYPES, FP8, HELD, as_array, as_tensor, convert, fit, torch_dtype
from knowlm.manifest import MANIFEST, read_manifest

WITHOUT_TORCH = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"


def pair_of(folder, dtypes):
    """(raw, tuned): folders of two models with a tensor of any bits in each of the dtypes, and the tuned weights."""
    generator = torch.Generator().manual_seed(0)
    raw, tuned = (random_weights(generator, [(9, 5)] * len(dtypes), map(torch_dtype, dtypes)) for _ in range(2))
    return str(save(folder / "raw", raw)), str(save(folder / "tuned", tuned)), tuned


def test_every_dtype_comes_back_from_bits(tmp_path):
    raw, tuned, weights = pair_of(tmp_path, [dtype for dtype in DTYPES if dtype != "BOOL"])
    diff = str(tmp_path / "diff")
    weight_diff.make_diff(raw, tuned, diff, exact=True)
    weight_diff.recover(raw, diff, str(tmp_path / "recovered"))
    assert same_bits(weights_of(tmp_path / "recovered"), weights)
    told = read_manifest(diff)["tensors"].values()
    assert {facts["tuned"]["dtype"] for facts in told} == {*DTYPES} - {"BOOL"}


@pytest.mark.parametrize("dtype", FP8)
def test_fp8_has_no_difference_of_numbers(tmp_path, dtype):
    raw, tuned, _ = pair_of(tmp_path, ["F32", dtype])
    with pytest.raises(ValueError, match=rf"model.safetensors: w1 is {dtype}, .*; use --exact"):
        weight_diff.make_diff(raw, tuned, str(tmp_path / "diff"))
    assert not list(tmp_path.glob("diff*"))


def test_whole_numbers_come_back_from_a_plain_difference(tmp_path):
    raw, tuned, weights = pair_of(tmp_path, ["U8", "U16", "U32", "U64", "I8", "I64"])
    weight_diff.make_diff(raw, tuned, str(tmp_path / "diff"))
    weight_diff.recover(raw, str(tmp_path / "diff"), str(tmp_path / "recovered"))
    assert same_bits(weights_of(tmp_path / "recovered"), weights)


def test_fp8_stays_when_the_rest_becomes_fp16(tmp_path):
    raw, tuned, weights = pair_of(tmp_path, ["F8_E4M3", "BF16"])
    weight_diff.make_diff(raw, tuned, str(tmp_path / "diff"), exact=True)
    weight_diff.recover(raw, str(tmp_path / "diff"), str(tmp_path / "out"), is_fp16=True)
    found = weights_of(tmp_path / "out")
    assert found["w1"].dtype == torch.float16
    assert same_bits({"w0": found["w0"]}, {"w0": weights["w0"]})


@pytest.mark.parametrize(("raw_dtype", "tuned_dtype"), [("F8_E5M2", "F8_E5M2"), ("F64", "F64"), ("BF16", "F8_E5M2")])
def test_without_a_manifest_bits_become_what_fits_them_or_nothing(tmp_path, raw_dtype, tuned_dtype):
    raw, tuned = pair_of(tmp_path / "raw", [raw_dtype])[0], pair_of(tmp_path / "tuned", [tuned_dtype])[1]
    weight_diff.make_diff(raw, tuned, str(tmp_path / "diff"), exact=True)
    (tmp_path / "diff" / MANIFEST).unlink()
    if raw_dtype != tuned_dtype:
        with pytest.raises(ValueError, match="w0 has U8 for BF16, and no"):
            weight_diff.recover(raw, str(tmp_path / "diff"), str(tmp_path / "out"))
        return
    weight_diff.recover(raw, str(tmp_path / "diff"), str(tmp_path / "out"))
    assert same_bits(weights_of(tmp_path / "out"), weights_of(Path(tuned)))


def test_a_dtype_that_is_not_supported_is_named(tmp_path):
    raw, tuned, weights = pair_of(tmp_path, ["F32"])
    save_file({name: weight.to(torch.complex64) for name, weight in weights.items()}, f"{tuned}/model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors: w0 has type C64; F64, .* are supported"):
        weight_diff.make_diff(raw, tuned, str(tmp_path / "diff"), exact=True)


@given(st.sampled_from(sorted(DTYPES)), st.sampled_from(["F64", "F32", "F16", "BF16"]), st.integers(0, 2**32))
def test_numbers_become_what_pytorch_makes_of_them(dtype, to, seed):
    held = np.random.default_rng(seed).integers(0, 2 if dtype == "BOOL" else 256, 50 * 8, np.uint8).view(HELD[dtype])
    found = as_tensor(convert(held, dtype, to), to)
    expected = as_tensor(held, dtype).to(torch_dtype(to))
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_a_tensor_and_its_array_are_the_same_memory():
    for dtype in DTYPES:
        array = np.zeros(3, HELD[dtype])
        again = as_array(as_tensor(array, dtype))
        assert again.dtype == array.dtype and np.shares_memory(again, array)


def test_numbers_too_large_for_fp16_are_counted():
    rows = np.array([1, 65519, 65520, -1e9, np.inf, -np.inf, np.nan, 1e-9], np.float32)
    found, count = fit(rows, "F32", "F16")
    assert count == 2 and np.isinf(found).tolist() == [False, False, True, True, True, True, False, False]
    assert fit(found, "F16", "F16")[1] == fit(rows, "F32", "BF16")[1] == 0


@pytest.mark.parametrize("kind", ["plain", "recover", "merge"])
def test_numbers_that_became_infinite_are_told_in_one_line(tmp_path, capsys, kind):
    large = {"a": torch.tensor([[1.0, 7e4], [-7e4, torch.inf]]), "b": torch.full((2, 2), 6e4)}
    raw, diff, out = tmp_path / "raw", str(tmp_path / "diff"), str(tmp_path / "out")
    if kind == "plain":
        save(raw, {name: -weight.half() for name, weight in large.items()})
        tuned = save(tmp_path / "tuned", {name: weight.half() for name, weight in large.items()})
        weight_diff.make_diff(str(raw), str(tuned), out)
        fact = "4 number(s) too large for fp16 became infinite, the first in b; use --exact"
    elif kind == "recover":
        save(raw, large)
        weight_diff.make_diff(str(raw), str(raw), diff, exact=True)
        weight_diff.recover(str(raw), diff, out, is_fp16=True)
        fact = "2 number(s) too large for fp16 became infinite, the first in a; leave --is_fp16 away"
    else:
        save(raw, {"b.weight": large["b"].half()})
        (tmp_path / "lora").mkdir()
        parts = {f"base_model.model.b.lora_{part}.weight": torch.full((2, 2), 100.0) for part in "AB"}
        save_file(parts, tmp_path / "lora/adapter_model.safetensors")
        (tmp_path / "lora/adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
        weight_diff.merge(str(raw), str(tmp_path / "lora"), out)
        fact = "4 number(s) too large for fp16 became infinite, the first in b.weight; merge into the base in"
    said = capsys.readouterr().err
    assert ("a holds numbers that are none (nan) or infinite" in said) is (kind == "recover")
    lines = [line for line in said.splitlines() if "became infinite" in line]
    assert len(lines) == 1 and lines[0].startswith(f"{out}: {fact}")


@pytest.mark.parametrize(("dtype", "flags"), [("F32", []), ("F32", ["--exact"]), ("BF16", ["--exact"])])
def test_differences_are_made_without_pytorch(tmp_path, dtype, flags):
    raw, tuned, _ = pair_of(tmp_path, [dtype, "I64"])
    words = ["make_diff", "--path_raw", raw, "--path_tuned", tuned, "--path_diff", tmp_path / "diff", *flags]
    script = [sys.executable, "-c", WITHOUT_TORCH, REPOSITORY / "tools/weight_diff.py"]
    subprocess.run([*map(str, [*script, *words])], check=True)
    assert set(weights_of(tmp_path / "diff")) == {"w0", "w1"}
