"""The weight tools in little memory: models that don't fit into it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, peak_memory
from model_folders import save
from safetensors.torch import save_file
from test_convert import VOCABULARY, sentencepiece_file

from knowlm.checkpoint_writer import header
from knowlm.manifest import read_manifest

pytestmark = pytest.mark.slow
GB = 10**9
SPECS = {f"{part}.weight": ("F32", (16384, 4096)) for part in "abcde"}  # 1.3 GB


def new_cgroup() -> Path:
    """A cgroup within this process's own, where memory can be limited; OSError where that isn't allowed."""
    entries = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    paths = {controllers: path.lstrip("/") for _, controllers, path in entries}
    root, path = ("memory", paths["memory"]) if "memory" in paths else ("", paths.get("", ""))
    folder = Path("/sys/fs/cgroup") / root / path / f"knowlm-{os.getpid()}"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def in_1_gb():
    """``in_1_gb(arguments)`` runs Python in a cgroup that is limited to 1 GB, the pages of files included."""
    try:
        cgroup = new_cgroup()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    limit = cgroup / ("memory.max" if (cgroup / "cgroup.controllers").exists() else "memory.limit_in_bytes")

    def enter():
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))

    def run(*arguments, cwd: Path | None = None) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, preexec_fn=enter, cwd=cwd, capture_output=True, text=True)

    try:
        limit.write_text(str(GB))
        if run("-c", f"b'1' * {GB}").returncode != -9:
            pytest.skip("this machine's cgroups don't limit memory (is there swap?)")
        yield run
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"memory can't be limited here: {error}")
    finally:
        cgroup.rmdir()


@pytest.fixture(autouse=True)
def no_gigabytes_left(tmp_path):
    yield
    shutil.rmtree(tmp_path)


def make_model(folder: Path, value: bytes) -> Path:
    """A model of ``SPECS``: zeros, which take no room on the disk, but for a ``value`` here and there."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with (folder / "model.safetensors").open("wb") as file:
        begin, size = file.write(header(SPECS)), 16384 * 4096 * 4
        file.truncate(begin + len(SPECS) * size)
        for number in range(len(SPECS)):
            file.seek(begin + number * size + 4 * 1_000_003)
            file.write(value)
    return folder


def test_a_model_of_more_than_1_gb_is_made_a_difference_recovered_and_merged_in_1_gb(in_1_gb, tmp_path):
    raw, tuned = make_model(tmp_path / "raw", b"\x00\x00\x80?"), make_model(tmp_path / "tuned", b"zyx?")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    parts = {"lora_A": torch.ones(2, 4096), "lora_B": torch.ones(16384, 2)}
    parts = {f"base_model.model.a.{name}.weight": part for name, part in parts.items()}
    save_file(parts, tmp_path / "lora/adapter_model.safetensors")
    for words in (
        ["make_diff", "--path_raw", raw, "--path_tuned", tuned, "--path_diff", tmp_path / "diff", "--exact"],
        ["recover", "--path_raw", raw, "--path_diff", tmp_path / "diff", "--path_tuned", tmp_path / "recovered"],
        ["merge", "--path_zhixi", raw, "--path_lora", tmp_path / "lora", "--path_sfted", tmp_path / "merged"],
    ):
        result = in_1_gb(REPOSITORY / "tools/weight_diff.py", *words)
        assert result.returncode == 0, result.stderr
    told = {name: read_manifest(tmp_path / name)["tensors"] for name in ("diff", "recovered", "merged")}
    for name in SPECS:
        assert told["recovered"][name]["blake3"] == told["diff"][name]["tuned"]["blake3"]
        assert (told["merged"][name]["blake3"] == told["diff"][name]["base"]["blake3"]) is (name != "a.weight")


def test_llama_weights_of_more_than_1_gb_are_converted_in_1_gb(in_1_gb, tmp_path):
    dim, hidden, layers = 4096, 11008, 2
    numbers = torch.zeros(VOCABULARY * dim, dtype=torch.float16)  # which all tensors share on the disk
    shapes = {"tok_embeddings": (VOCABULARY, dim), "norm": (dim,), "output": (VOCABULARY, dim)}
    for layer in (f"layers.{number}." for number in range(layers)):
        shapes |= {f"{layer}attention.w{part}": (dim, dim) for part in "qkvo"}
        shapes |= {f"{layer}feed_forward.w{part}": (hidden, dim) for part in "13"}
        shapes |= {f"{layer}feed_forward.w2": (dim, hidden)}
        shapes |= {f"{layer}{part}_norm": (dim,) for part in ("attention", "ffn")}
    tensors = {f"{name}.weight": numbers[: torch.Size(shape).numel()].view(shape) for name, shape in shapes.items()}
    (tmp_path / "7B").mkdir()
    torch.save(tensors, tmp_path / "7B/consolidated.00.pth")
    params = {"dim": dim, "n_layers": layers, "n_heads": 32, "norm_eps": 1e-6, "multiple_of": 256}
    (tmp_path / "7B/params.json").write_text(json.dumps(params))
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file().read_bytes())
    words = ["--input_dir", ".", "--model_size", "7B", "--output_dir", "converted"]
    result = in_1_gb(REPOSITORY / "tools/convert_llama_weights_to_hf.py", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert sum(facts["bytes"] for facts in read_manifest(tmp_path / "converted")["files"].values()) > 1.3 * GB


def test_memory_does_not_grow_with_the_model(tmp_path):
    weights = {"a.weight": torch.ones(40_000, 4096)}  # 655 MB in one tensor, as large as any of a 13B model
    raw, tuned = (save(tmp_path / name, weights, form) for name, form in (("raw", "bin"), ("tuned", "safetensors")))
    del weights
    make_diff = ["make_diff", "--path_raw", raw, "--path_tuned", tuned, "--path_diff", tmp_path / "diff", "--exact"]
    recover = ["recover", "--path_raw", raw, "--path_diff", tmp_path / "diff", "--path_tuned", tmp_path / "recovered"]
    for command in (make_diff, recover):
        assert peak_memory("tools/weight_diff.py", *command) < 400_000_000
