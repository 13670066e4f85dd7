"""Kills at random moments, and two commands at once: nothing looks whole that isn't, and the end is always the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_removal import random_samples, write_corpus

from knowlm.corpus import CorpusWriter
from knowlm.files import locked

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL_CHUNKS = """
import runpy, sys
from knowlm import sources
sources.CHUNK_BYTES = 20_000
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CASES = ["write", "tasks", "merge", "remove", "clean"]


@pytest.fixture(scope="module")
def command_of(sentencepiece_model, tmp_path_factory):
    """``command_of(case, folder)`` writes ``folder/out``: a corpus, or what ``clean.py`` keeps."""
    folder = tmp_path_factory.mktemp("in")
    samples = sorted((REPOSITORY / "pretrain" / "data").glob("*.jsonl"))
    (folder / "0.jsonl").write_bytes(b"".join(path.read_bytes() for path in samples) * 2 + b"{\n")
    (folder / "1.jsonl").write_bytes(samples[0].read_bytes() * 3)
    for number in range(2):
        rows = random_samples(np.random.default_rng(number), 300, 900)
        write_corpus(folder / f"corpus{number}", rows, [(0, line) for line in range(300)])
    write = ["pretrain/preprocess.py", "--mode", "write", "--file_path", folder / "*.jsonl", "--tokenizer_path"]
    write += [sentencepiece_model, "--language", "auto", "--seq_length", 64, "--num_workers", 2]
    merge = ["pretrain/preprocess.py", "--mode", "merge", "--merge_path_prefix"]
    merge += [[str(folder / "corpus0"), str(folder / "corpus1")]]
    remove = ["pretrain/preprocess.py", "--mode", "remove", "--read_path_prefix", folder / "corpus0"]
    clean = ["pretrain/clean.py", "--file_path", folder / "*.jsonl", "--language", "auto", "--num_workers", 2]

    def command(case: str, output: Path) -> list[str]:
        words = {
            "write": [*write, "--save_path", output, "--save_prefix", "out"],
            "tasks": [*write, "--save_path", output, "--save_prefix", "out", "--tasks", 3],
            "merge": [*merge, "--merge_path_type", "[1,0]", "--new_path_prefix", output / "out"],
            "remove": [*remove, "--remove_samples", "7-99", "--new_path_prefix", output / "out"],
            "clean": [*clean, "--output_dir", output / "out", "--tasks", 2],
        }[case]
        return [sys.executable, "-c", SMALL_CHUNKS, *map(str, words)]

    return command


def start(command: list[str], cwd: Path = REPOSITORY) -> subprocess.Popen:
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, start_new_session=True, stdout=pipe, stderr=pipe, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but those of cleaning's work."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path): (folder / path).read_bytes() for path in files if "work" not in path.parts}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_a_command_ends_with_the_same_bytes(command_of, tmp_path, case):
    begin = time.monotonic()
    process = start(command_of(case, tmp_path / "whole"))
    assert process.communicate()[1] == ""
    duration, whole, moments = time.monotonic() - begin, contents(tmp_path / "whole"), []
    command = command_of(case, tmp_path / "cut")
    for kill in (os.killpg, os.kill):  # workers and all, or the command alone
        process = start(command)
        moments.append(random.uniform(0, duration))
        try:
            _, words = process.communicate(timeout=moments[-1])
            assert process.returncode == 0, (words, moments)
        except subprocess.TimeoutExpired:
            kill(process.pid, signal.SIGKILL)
            process.communicate(timeout=10)  # ends when all that write there have, so the workers, too
        now = contents(tmp_path / "cut")
        if any(name == "out.bin" or "documents" in name for name in now):  # looks whole
            missing = [name for name in whole if now.get(name) != whole[name] and "report" not in name]
            assert not missing, moments
            assert "out/report.png" not in now or now == whole, moments
    process = start(command)
    _, words = process.communicate()
    assert process.returncode == 0, (words, moments)
    assert contents(tmp_path / "cut") == whole, moments


@pytest.mark.parametrize("case", CASES)
def test_a_second_command_on_an_output_is_refused(command_of, tmp_path, case):
    output = tmp_path / "out" / "work" if case == "clean" else tmp_path / "out"
    with locked(output):
        process = start(command_of(case, tmp_path))
        _, words = process.communicate()
    assert process.returncode == 1 and len(words.splitlines()) == 1
    assert f"error: {output}: another command is writing it; wait for its end, or name another output" in words
    assert not contents(tmp_path)


def test_what_was_begun_in_another_way_is_begun_again(tmp_path):
    settings = {"vocab_size": 9, "bos": 1, "eos": 2}
    for basis, progress in (["3 tasks"], []), (["2 tasks"], []), (["2 tasks"], [{"part": 0}]):
        with pytest.raises(InterruptedError), CorpusWriter(tmp_path / "out", settings, basis=basis) as writer:
            assert writer.progress == progress
            writer.add(np.array([5, 6]), [2])
            writer.commit({"part": 0})
            raise InterruptedError


def test_a_corpus_is_not_joined_over_itself(run_script, tmp_path):
    write_corpus(tmp_path / "a", [[5, 6]])
    before = contents(tmp_path)
    flags = ["--merge_path_prefix", json.dumps([str(tmp_path / "a")]), "--new_path_prefix", "a"]
    result = run_script("pretrain/preprocess.py", "--mode", "merge", *flags)
    assert result.returncode == 1 and "a: is one of the corpora to join; name another" in result.stderr
    assert contents(tmp_path) == before
