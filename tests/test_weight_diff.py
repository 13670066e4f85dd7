import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(REPOSITORY / "tools"))
import weight_diff
from model_folders import random_weights, same_bits, save, weights_of

from knowlm import checkpoint_writer, checkpoints, manifest
from knowlm.checksums import hash_file
from knowlm.manifest import MANIFEST, read_manifest

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def pair(tmp_path):
    """(raw, tuned): folders of two models of several shards, and of several pieces a tensor."""
    torch.manual_seed(1)
    shapes = {"model.embed_tokens.weight": (40, 8), "model.norm.weight": (8,), "a.weight": (64, 8), "b.weight": (33, 8)}
    raw = {name: torch.randn(shape) for name, shape in shapes.items()}
    tuned = {name: weight + 0.01 * torch.randn_like(weight) for name, weight in raw.items()}
    return save(tmp_path / "raw", raw, shards=2), save(tmp_path / "tuned", tuned, shards=2)


@pytest.fixture(autouse=True, scope="module")
def small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "PIECE", 64)
        patch.setattr(checkpoint_writer, "SHARD_BYTES", 2000)
        yield


def make_and_recover(raw, tuned, folder, exact=False, **flags):
    weight_diff.make_diff(str(raw), str(tuned), str(folder / "diff"), exact=exact)
    weight_diff.recover(str(raw), str(folder / "diff"), str(folder / "recovered"), **flags)
    return weights_of(folder / "recovered")


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 9), max_size=3).map(tuple), st.sampled_from(FLOATS), st.sampled_from(FLOATS)),
        min_size=1,
        max_size=6,
    ),
    st.tuples(st.sampled_from(["safetensors", "bin"]), st.integers(1, 3), st.booleans()),
    st.tuples(st.sampled_from(["safetensors", "bin"]), st.integers(1, 3), st.booleans()),
    st.integers(0, 2**32),
)
def test_an_exact_difference_gives_the_tuned_bits_back(tmp_path_factory, tensors, raw_layout, tuned_layout, seed):
    generator, folder = torch.Generator().manual_seed(seed), tmp_path_factory.mktemp("pair")
    shapes, raw_dtypes, tuned_dtypes = zip(*tensors, strict=True)
    tuned = random_weights(generator, shapes, tuned_dtypes)
    raw = random_weights(generator, shapes, raw_dtypes)
    layouts = [(form, min(shards, len(tensors)), index) for form, shards, index in (raw_layout, tuned_layout)]
    one, other = save(folder / "raw", raw, *layouts[0]), save(folder / "tuned", tuned, *layouts[1])
    assert same_bits(make_and_recover(one, other, folder, exact=True), tuned)
    shutil.rmtree(folder)


@settings(max_examples=20)
@given(st.sampled_from(FLOATS), st.sampled_from(FLOATS), st.integers(0, 2**32))
def test_a_plain_difference_is_one_rounded_subtraction_and_recovery_one_addition(
    tmp_path_factory, raw_dtype, tuned_dtype, seed
):
    generator, folder = torch.Generator().manual_seed(seed), tmp_path_factory.mktemp("pair")
    raw, tuned = ({"w": torch.randn(30, 5, generator=generator).to(dtype)} for dtype in (raw_dtype, tuned_dtype))
    recovered = make_and_recover(save(folder / "raw", raw), save(folder / "tuned", tuned), folder)["w"]
    base, difference = raw["w"].to(tuned_dtype), weights_of(folder / "diff")["w"]
    assert torch.equal(difference, tuned["w"] - base)
    assert torch.equal(recovered, base + difference)
    shutil.rmtree(folder)


def test_tied_embeddings_may_be_stored_in_one_model_and_not_in_the_other(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tuned = random_weights(generator, [(9, 4)] * 2, [torch.float32] * 2)
    tuned = dict(zip(("model.embed_tokens.weight", "lm_head.weight"), tuned.values(), strict=True))
    tied = {"model.embed_tokens.weight": torch.randn(9, 4)}
    raw = save(tmp_path / "raw", tied, tie_word_embeddings=True)
    assert same_bits(make_and_recover(raw, save(tmp_path / "tuned", tuned), tmp_path, exact=True), tuned)
    again = tmp_path / "again"
    assert same_bits(make_and_recover(tmp_path / "tuned", raw, again, exact=True), tied)


def test_integers_and_truth_values_come_back(tmp_path):
    raw = {"ids": torch.arange(5), "mask": torch.tensor([True, False]), "w": torch.ones(2)}
    tuned = {"ids": torch.arange(5) * 3, "mask": torch.tensor([True, True]), "w": torch.zeros(2)}
    folders = save(tmp_path / "raw", raw), save(tmp_path / "tuned", tuned)
    for exact in (False, True):
        assert same_bits(make_and_recover(*folders, tmp_path / str(exact), exact=exact), tuned)


def test_differences_of_2023_are_recovered(tmp_path):
    """Without manifest, as pickles that hold rotary frequencies too; raw in fp16 as the converter wrote it."""
    torch.manual_seed(0)
    raw, diff = ({f"w{i}": torch.randn(20, 8) for i in range(4)} for _ in range(2))
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    base = save(tmp_path / "raw", {name: w.half() for name, w in raw.items()})
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        change = {name: w.to(dtype) for name, w in diff.items()}
        folder = save(tmp_path / name, change | extra, "bin", shards=3)
        weight_diff.recover(str(base), str(folder), str(tmp_path / f"{name}-tuned"))
        recovered = weights_of(tmp_path / f"{name}-tuned")
        assert same_bits(recovered, {n: raw[n].half().to(dtype) + change[n] for n in diff})
    weight_diff.recover(str(base), str(tmp_path / "fp32"), str(tmp_path / "half"), is_fp16=True)
    assert {w.dtype for w in weights_of(tmp_path / "half").values()} == {torch.float16}
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "float16"


def test_the_sum_of_the_weights_is_told_and_compared(pair, tmp_path, capsys):
    raw, tuned = map(str, pair)
    weight_diff.make_diff(raw, tuned, str(tmp_path / "diff"))
    (tmp_path / "diff" / MANIFEST).unlink()
    arguments = (raw, str(tmp_path / "diff"), str(tmp_path / "out"))
    with pytest.raises(OSError, match=r"not written: .* 94052.2891 is expected"):
        weight_diff.recover(*arguments, check_integrity_naively=True)
    assert not (tmp_path / "out").exists()
    total = sum(weight.double().sum().item() for weight in weights_of(tuned).values())
    weight_diff.recover(*arguments, expected_sum=total)
    assert f"their sum is {total:.4f}" in capsys.readouterr().out


def test_the_manifest_tells_every_tensor_and_file(pair, tmp_path):
    weight_diff.make_diff(*map(str, pair), str(tmp_path / "diff"))
    content = read_manifest(tmp_path / "diff")
    assert content["kind"] == "difference"
    for name, facts in content["files"].items():
        file = tmp_path / "diff" / name
        assert (file.stat().st_size, hash_file(file, "blake3")) == (facts["bytes"], facts["blake3"])
    assert set(content["files"]) == {file.name for file in (tmp_path / "diff").iterdir()} - {MANIFEST}
    for key, folder in (("base", pair[0]), ("tuned", pair[1])):
        for name, weight in weights_of(folder).items():
            assert content["tensors"][name][key] == {
                "dtype": "F32",
                "blake3": blake3(weight.numpy().tobytes()).hexdigest(),
            }


def flip(file, position=-5):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def flip_header(file):
    flip(file, 3)


def truncate(file):
    os.truncate(file, file.stat().st_size - 10)


def another_model(folder):
    torch.manual_seed(9)
    for file in folder.glob("*.safetensors"):
        save_file({name: torch.randn_like(weight) for name, weight in load_file(file).items()}, file)


def other_dtype(folder):
    for file in folder.glob("*.safetensors"):
        save_file({name: weight.half() for name, weight in load_file(file).items()}, file)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("damage", "path", "message"),
    [
        (flip, "raw/model-00002-of-00002.safetensors", "{}: damaged"),
        (flip, "diff/model-00001-of-00003.safetensors", "{}: damaged"),
        (flip_header, "raw/model-00001-of-00002.safetensors", "{}: damaged"),
        (flip, f"diff/{MANIFEST}", "{}: damaged"),
        (flip, "diff/tokenizer.json", "{}: damaged"),
        (truncate, "raw/model-00001-of-00002.safetensors", "{}: damaged"),
        (truncate, "diff/model-00003-of-00003.safetensors", "{}: damaged"),
        (Path.unlink, "raw/model-00002-of-00002.safetensors", "{}: missing"),
        (Path.unlink, "diff/model-00002-of-00003.safetensors", "{}: missing"),
        (Path.unlink, "diff/tokenizer.json", "{}: missing"),
        (another_model, "raw", "{}: another base model"),
        (other_dtype, "raw", "{}/model-0000.-of-00002.safetensors: .* is F16 .*the difference was made with F32"),
    ],
)
def test_what_is_wrong_is_named_and_no_output_looks_finished(pair, tmp_path, damage, path, message, exact):
    weight_diff.make_diff(*map(str, pair), str(tmp_path / "diff"), exact=exact)
    damage(tmp_path / path)
    with pytest.raises(ValueError, match=message.format(tmp_path / path)):
        weight_diff.recover(str(pair[0]), str(tmp_path / "diff"), str(tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))


def test_numbers_that_are_not_finite_come_back(tmp_path):
    tuned = {"a": torch.tensor([torch.inf]), "b": torch.tensor([-torch.inf]), "c": torch.tensor([torch.nan])}
    raw = save(tmp_path / "raw", {name: torch.ones(1) for name in tuned})
    assert same_bits(make_and_recover(raw, save(tmp_path / "tuned", tuned), tmp_path, exact=True), tuned)


def test_integers_stay_integers_without_a_manifest(tmp_path):
    raw, tuned = ({"ids": torch.tensor(ids, dtype=torch.int32)} for ids in ([5, 6], [7, 9]))
    weight_diff.make_diff(
        str(save(tmp_path / "raw", raw)), str(save(tmp_path / "tuned", tuned)), str(tmp_path / "diff")
    )
    (tmp_path / "diff" / MANIFEST).unlink()
    weight_diff.recover(str(tmp_path / "raw"), str(tmp_path / "diff"), str(tmp_path / "out"))
    assert same_bits(weights_of(tmp_path / "out"), tuned)


def test_a_kill_amid_the_last_renames_leaves_nothing_in_the_result(pair, tmp_path, monkeypatch):
    arguments = (*map(str, pair), str(tmp_path / "diff"))
    write_json = manifest.write_json
    monkeypatch.setattr(manifest, "write_json", lambda path, content: (write_json(path, content), os._exit(9)))
    if (child := os.fork()) == 0:
        weight_diff.make_diff(*arguments)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    weight_diff.make_diff(*arguments)
    assert set(read_manifest(tmp_path / "diff")["files"]) == {f.name for f in (tmp_path / "diff").iterdir()} - {
        MANIFEST
    }


def test_a_folder_of_other_things_is_not_taken_for_unfinished_work(pair, tmp_path):
    (tmp_path / "diff.partial").mkdir()
    (tmp_path / "diff.partial/thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"diff.partial: .* holds other things"):
        weight_diff.make_diff(*map(str, pair), str(tmp_path / "diff"))
    assert (tmp_path / "diff.partial/thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"x": "../secret.safetensors"}}', "lies outside the folder"),
        ('{"weight_map": {"x": "model.safetensors.1"}}', "model.safetensors.1: missing"),
        ("[]", "not an index"),
    ],
)
def test_an_index_names_whole_files_of_its_folder(pair, tmp_path, index, message):
    (pair[0] / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=message):
        weight_diff.make_diff(*map(str, pair), str(tmp_path / "diff"))


def test_an_index_decides_which_shard_a_tensor_is_taken_from(pair, tmp_path):
    one, other = sorted(pair[0].glob("*.safetensors"))
    save_file(load_file(other) | {name: w + 1 for name, w in load_file(one).items()}, other)
    expected = weights_of(pair[0])
    assert all(torch.equal(expected[name], w) for name, w in load_file(one).items())
    save_file({"z": torch.ones(1)}, one)
    with pytest.raises(ValueError, match=rf"{one}: lacks .*, unlike its index says"):
        weight_diff.make_diff(*map(str, pair), str(tmp_path / "diff"))


def test_a_shard_is_missed_without_an_index_too(pair, tmp_path):
    for file in pair[0].glob("*.index.json"):
        file.unlink()
    (pair[0] / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00001-of-00002.safetensors: missing"):
        weight_diff.make_diff(*map(str, pair), str(tmp_path / "diff"))


def test_models_of_other_shapes_are_refused(pair, tmp_path):
    weights = weights_of(pair[0])
    other = save(tmp_path / "other", weights | {"model.norm.weight": torch.ones(3)})
    with pytest.raises(ValueError, match=r"model.norm.weight: shape \(3,\)"):
        weight_diff.make_diff(str(other), str(pair[1]), str(tmp_path / "diff"))
    weights.pop("a.weight")
    other = save(tmp_path / "fewer", weights)
    with pytest.raises(ValueError, match=r"fewer: lacks a.weight"):
        weight_diff.make_diff(str(other), str(pair[1]), str(tmp_path / "diff"))
    assert not list(tmp_path.glob("diff*"))


@pytest.mark.slow
def test_a_pickle_with_code_is_refused_without_running_it(run_script, pair, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    bad = save(tmp_path / "bad", {}, "bin")
    torch.save({"model.norm.weight": Evil()}, bad / "pytorch_model.bin")
    flags = ["--path_raw", pair[0], "--path_tuned", bad, "--path_diff", tmp_path / "diff"]
    result = run_script("tools/weight_diff.py", "make_diff", *flags)
    assert result.returncode == 1
    assert "nothing of it was run" in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "ran").exists()


def test_an_output_that_exists_is_not_overwritten(pair, tmp_path):
    (tmp_path / "diff").mkdir()
    (tmp_path / "diff/mine.txt").write_text("x")
    with pytest.raises(ValueError, match="already exists"):
        weight_diff.make_diff(*map(str, pair), str(tmp_path / "diff"))


def test_large_models_load_from_their_shards(tiny_llama, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(checkpoint_writer, "SHARD_BYTES", 100_000)
    make_and_recover(tiny_llama, tiny_llama, tmp_path)
    assert len(list((tmp_path / "recovered").glob("*.safetensors"))) > 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "recovered")
    assert torch.equal(model.lm_head.weight, weights_of(tiny_llama)["lm_head.weight"])
    assert AutoTokenizer.from_pretrained(tmp_path / "recovered")("你好").input_ids


@pytest.mark.parametrize("is_damaged", [False, True])
def test_finished_shards_are_kept_if_they_are_whole(pair, tmp_path, monkeypatch, capsys, is_damaged):
    arguments, replace = (*map(str, pair), str(tmp_path / "diff")), os.replace

    def only_the_first(source, target):
        return replace(source, target) if "0000" not in str(target) or "00001-of" in str(target) else 1 / 0

    monkeypatch.setattr(os, "replace", only_the_first)
    with pytest.raises(ZeroDivisionError):
        weight_diff.make_diff(*arguments)
    monkeypatch.undo()
    first = tmp_path / "diff.partial/model/model-00001-of-00003.safetensors"
    before, content = first.stat().st_ino, first.read_bytes()
    if is_damaged:
        flip(first)
    weight_diff.make_diff(*arguments)
    assert ("going on behind 1 of 3 shards" in capsys.readouterr().err) is not is_damaged
    after = tmp_path / "diff" / first.name
    assert after.read_bytes() == content and (after.stat().st_ino == before or is_damaged)
