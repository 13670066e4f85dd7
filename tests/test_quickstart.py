"""The whole way on a tiny random model: every step, killed in between, once each."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def quickstart(base, out, **options):
    return subprocess.Popen(
        [sys.executable, REPOSITORY / "tools/quickstart.py", "--base_model", base, "--output_dir", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def kill_within(process, step, out):
    """SIGKILL the quickstart once ``step`` has begun its work; the step's script must end with it."""
    deadline = time.monotonic() + 300
    while not (out / "steps" / f"{step}.started").is_file():
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.05)
    time.sleep(1.5)
    scripts = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(scripts, timeout=10)
    assert [script for script in alive if script.status() != psutil.STATUS_ZOMBIE] == []  # none disturbs the next run
    process.stdout.close()


@pytest.fixture(scope="module")
def run(tiny_llama, tmp_path_factory):
    """(output folder, the last run's words), after kills in three different steps."""
    out = tmp_path_factory.mktemp("quickstart") / "a run"  # with a space
    for step in ("corpus", "pretrain", "lora"):
        kill_within(quickstart(tiny_llama, out), step, out)
        assert not (out / "steps" / f"{step}.json").exists()
    process = quickstart(tiny_llama, out)
    words, _ = process.communicate(timeout=900)
    assert process.returncode == 0, words
    return out, words


def test_a_killed_run_ends_well_without_doing_finished_steps_again(run):
    _, words = run
    for step in ("pack the corpus", "pretrain all parameters", "make instructions", "recover from it"):
        assert any(step in line and "done before" in line for line in words.splitlines()), words
    assert "tune LoRA weights, going on" in words
    assert "merge; answer" in words


def test_every_figure_is_in_metrics_and_report(run):
    out, _ = run
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["recovered_equals_tuned"] is True
    assert metrics["merged_answers_as_adapter"] is True
    assert metrics["heldout_loss"]["after"] < metrics["heldout_loss"]["before"]
    assert {"NER", "RE", "unparsable"} <= metrics["scores"]["after"].keys()
    assert set(metrics["seconds"]) == {file.stem for file in (out / "steps").glob("*.json")}
    report = (out / "report.md").read_text()
    assert f"{metrics['heldout_loss']['after']:.3f}" in report
    for picture in ("pretrained/loss.png", "lora/loss.png"):
        assert f"]({picture})" in report and (out / picture).is_file()


def test_it_ends_with_commands_that_exist(run):
    _, words = run
    commands = words.split("Play with it:")[1].strip().splitlines()
    assert len(commands) == 3
    for command in commands:
        script = next(word for word in command.split() if word.endswith((".py", ".sh")))
        assert (REPOSITORY / script).is_file()


def test_a_second_run_is_instant(run, tiny_llama):
    out, _ = run
    process = quickstart(tiny_llama, out)
    words, _ = process.communicate(timeout=120)
    assert words.count("done before") == len(list((out / "steps").glob("*.json")))


def test_a_broken_model_folder_is_one_line(run_script, tmp_path):
    (tmp_path / "model").mkdir()
    result = run_script("tools/quickstart.py", "--base_model", tmp_path / "model")
    assert result.returncode == 1
    assert "no config.json" in result.stderr and len(result.stderr.splitlines()) == 1
