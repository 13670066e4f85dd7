"""Kills of the weight tools at random moments: nothing looks whole that isn't, and the end is always the same."""

import random
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from model_folders import save
from safetensors.torch import save_file
from test_convert import write_meta_folder
from warm import FORKS, run_as_main

CASES = ["make_diff", "recover", "merge", "convert", "export"]
KILLS = 4


@pytest.fixture(scope="module")
def command_of(tiny_llama, tmp_path_factory):
    """``command_of(case, output)`` is the command line that writes ``output``."""
    folder = tmp_path_factory.mktemp("in")
    torch.manual_seed(1)
    shapes = {"model.embed_tokens.weight": (40, 8), "model.norm.weight": (8,), "a.weight": (64, 8), "b.weight": (33, 8)}
    raw = {name: torch.randn(shape) for name, shape in shapes.items()}
    tuned = {name: weight + 0.01 * torch.randn_like(weight) for name, weight in raw.items()}
    for name, weights in (("raw", raw), ("tuned", tuned), ("diff", tuned)):
        save(folder / name, weights, shards=2)
    (folder / "lora").mkdir()
    (folder / "lora/adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    parts = {"lora_A": torch.randn(2, 8), "lora_B": torch.randn(64, 2)}
    parts = {f"base_model.model.a.{name}.weight": part for name, part in parts.items()}
    save_file(parts, folder / "lora/adapter_model.safetensors")
    write_meta_folder(folder / "llama", "13B")
    weight_diff = REPOSITORY / "tools/weight_diff.py"
    convert, export = (REPOSITORY / "tools" / name for name in ("convert_llama_weights_to_hf.py", "export_gguf.py"))
    words = {
        "make_diff": [weight_diff, "make_diff", "--path_raw", "raw", "--path_tuned", "tuned", "--path_diff"],
        "recover": [weight_diff, "recover", "--path_raw", "raw", "--path_diff", "diff", "--path_tuned"],
        "merge": [weight_diff, "merge", "--path_zhixi", "raw", "--path_lora", "lora", "--path_sfted"],
        "convert": [convert, "--input_dir", "llama", "--model_size", "13B", "--output_dir"],
        "export": [export, "--model", tiny_llama, "--type", "q8_0", "--output"],
    }
    return lambda case, output: ([*map(str, words[case]), str(output)], str(folder))


def slowly(command: list[str], folder: str, scratch: Path) -> None:
    """In a process of its own: a script in small pieces and shards that take their time."""
    from knowlm import checkpoint_writer, checkpoints

    def slow(function):
        return lambda *arguments: (time.sleep(0.02), function(*arguments))[1]

    checkpoints.PIECE, checkpoint_writer.SHARD_BYTES = (64, 2000) if "weight_diff" in command[0] else (1 << 17, 10**6)
    checkpoints.Checkpoint.pieces = slow(checkpoints.Checkpoint.pieces)
    checkpoint_writer.CheckpointWriter._append = slow(checkpoint_writer.CheckpointWriter._append)
    outputs = [scratch / "stdout", scratch / "stderr"]
    run_as_main(command, folder, {"TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}, outputs)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_a_weight_tool_ends_with_the_same_bytes(command_of, tmp_path, case):
    (tmp_path / "scratch").mkdir()
    name = "model.gguf" if case == "export" else "model"

    def start(folder: str):
        process = FORKS.Process(target=slowly, args=(*command_of(case, tmp_path / folder / name), tmp_path / "scratch"))
        process.start()
        return process

    start("warm").join()  # so that the next one's duration has no import in it
    begin = time.monotonic()
    process = start("whole")
    process.join()
    assert process.exitcode == 0, (tmp_path / "scratch/stderr").read_text()
    duration, whole, moments = time.monotonic() - begin, contents(tmp_path / "whole"), []
    for _ in range(KILLS):
        process = start("cut")
        moments.append(random.uniform(0, duration))
        process.join(moments[-1])
        process.kill()
        process.join()
        assert process.exitcode in (-9, 0, 1), moments  # 1: "already exists"
        if (tmp_path / "cut" / name).exists():
            now = contents(tmp_path / "cut")
            assert {file: now.get(file) for file in whole} == whole, moments
            break
    else:
        process = start("cut")
        process.join()
        assert process.exitcode == 0, (moments, (tmp_path / "scratch/stderr").read_text())
    assert {file: it for file, it in contents(tmp_path / "cut").items() if not file.endswith(".lock")} == whole, moments
    process = start("cut")
    process.join()
    assert process.exitcode == 1 and "already exists" in (tmp_path / "scratch/stderr").read_text()
