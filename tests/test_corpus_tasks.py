"""The builder's tasks: the same corpus as without them, also when a worker is killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_clean import SBATCH
from test_preprocess import REPOSITORY, TEXTS, command

FLAGS = ["--seq_length", 24]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def sources(tmp_path) -> Path:
    """A glob of five files of different sizes; one has nothing to keep, one a bad line."""
    for number, times in enumerate((1, 7, 0, 3, 2)):
        rows = [json.dumps({"text": f"{number} {text}"}, ensure_ascii=False) for text in TEXTS * times]
        rows += ["{"] if number in (2, 3) else []
        (tmp_path / f"{number}.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return tmp_path / "*.jsonl"


@pytest.mark.parametrize("tasks", [1, 3, 9])
def test_tasks_give_the_same_corpus(run_script, sources, tiny_llama, tmp_path, tasks):
    alone = run_script(*command(sources, tiny_llama, tmp_path / "alone", *FLAGS))
    parts = run_script(*command(sources, tiny_llama, tmp_path / "parts", *FLAGS, "--tasks", tasks, "--num_workers", 2))
    assert (alone.returncode, parts.returncode) == (0, 0), alone.stderr + parts.stderr
    assert parts.stdout == alone.stdout.replace("alone", "parts")
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "alone")


def test_strict_tasks_stop_at_a_bad_line(run_script, sources, tiny_llama, tmp_path):
    result = run_script(*command(sources, tiny_llama, tmp_path / "out", "--tasks", 3, "--strict"))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"{tmp_path / '2.jsonl'}, line 1: " in result.stderr or f"{tmp_path / '3.jsonl'}, line 16: " in result.stderr
    assert not list((tmp_path / "out").glob("*.bin"))


@pytest.mark.slow
def test_a_killed_worker_of_two_loses_no_task(run_script, sources, tiny_llama, tmp_path):
    for path in tmp_path.glob("*.jsonl"):
        path.write_bytes(path.read_bytes() * 1000)
    flags = [*FLAGS, "--tasks", 5, "--num_workers", 2]
    arguments = [sys.executable, *map(str, command(sources, tiny_llama, tmp_path / "parts", *flags))]
    process = subprocess.Popen(arguments, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not list(tmp_path.glob("parts/*/part-*.bin")):  # the first part is whole
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    psutil.Process(process.pid).children()[-1].kill()
    _, words = process.communicate(timeout=60)
    assert process.returncode == 1 and "a worker of build was killed" in words and "it goes on" in words
    result = run_script(*command(sources, tiny_llama, tmp_path / "parts", *flags))
    assert result.returncode == 0, result.stderr
    assert run_script(*command(sources, tiny_llama, tmp_path / "alone", *FLAGS)).returncode == 0
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "alone")


@pytest.fixture
def relative(sources, tiny_llama, tmp_path):
    """``relative(folder, *flags)``: the command, with paths that mean something in ``tmp_path`` alone."""
    tokenizer = os.path.relpath(tiny_llama, tmp_path)
    return lambda folder, *flags: command(sources.name, tokenizer, folder, *FLAGS, *flags)


@pytest.mark.slow
def test_slurm_builds_the_same_corpus(run_script, relative, tmp_path):
    (tmp_path / "bin").mkdir()
    for name, script in {"sbatch": SBATCH, "scontrol": "#!/bin/sh\necho localhost\n"}.items():
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o700)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SBATCH_LOG": str(tmp_path / "jobs")}
    slurm = relative("parts", "--executor", "slurm", "--partition", "cpu")
    for words in ("jobs are submitted", "samples"):  # the repeated command tells the result
        result = run_script(*slurm, env=environment)
        assert result.returncode == 0 and words in result.stdout, result.stderr
    assert run_script(*relative("alone")).returncode == 0
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "alone")


@pytest.mark.slow
def test_ray_builds_the_same_corpus(run_script, relative, tmp_path):
    pytest.importorskip("ray")
    flags = ["--tasks", 2, "--executor", "ray", "--mem_per_cpu_gb", 1]
    result = run_script(*relative("parts", *flags), timeout=500)
    assert result.returncode == 0, result.stderr
    assert run_script(*relative("alone")).returncode == 0
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "alone")
