import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from knowlm.cli import ArgumentParser, run, run_fire
from knowlm.files import replacing

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a component with arguments: (exit code, stdout, stderr)."""

    def call(component, *arguments):
        monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
        try:
            run_fire(component, "What it does.")
            code = 0
        except SystemExit as exit:
            code = exit.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def greet(name: str, loud: bool = False, times: int = 1) -> None:
    print((name.upper() if loud else name) * times)


def add(count: int, scale: float | None = None, name: str = "") -> None:
    print(repr((count, scale, name)))


def test_values_have_the_annotated_types(call):
    assert call(add, "--count", "2", "--scale", "1", "--name", "2023")[:2] == (0, "(2, 1.0, '2023')\n")
    assert call(add, "--count", "2", "--scale", "None", "--name", "1e5")[:2] == (0, "(2, None, '1e5')\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "two"], "--count two: a whole number is needed"),
        (["--count", "1", "--scale", "1,5"], "--scale 1,5: a number is needed"),
    ],
)
def test_a_value_of_another_type_stops_before_the_work(call, arguments, message):
    code, out, error = call(add, *arguments)
    assert (code, out) == (2, "") and message in error


def test_flags_reach_the_function(call):
    assert call(greet, "--name", "ab", "--loud", "--times=2")[:2] == (0, "ABAB\n")
    assert call(greet, "--name=ab", "--noloud")[:2] == (0, "ab\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "ab", "--tmies", "2"], "unrecognized arguments: --tmies"),
        (["--name", "ab", "c"], "unrecognized arguments: c"),
        (["--times", "2"], "required: --name"),
        (["--name", "ab", "--name", "c"], "given twice"),
        (["-n", "ab"], "unrecognized arguments: -n"),
        (["--name", "--loud"], "--name: a value is needed behind it"),
    ],
)
def test_a_mistake_stops_before_any_work_in_one_line(call, arguments, message):
    code, out, err = call(greet, *arguments)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1


def test_a_misspelled_command_is_named(call):
    code, _, err = call({"greet": greet}, "gret", "--name", "ab")
    assert code == 2 and "unknown command: gret (choose from greet)" in err


def test_help_shows_every_flag(call):
    code, out, _ = call({"greet": greet}, "greet", "--help")
    assert code == 0
    assert "What it does." in out and all(f"--{flag}" in out for flag in ("name", "loud", "times"))


def test_a_users_error_is_one_line_and_code_1(capsys):
    def fail():
        raise ValueError("file.txt: is\n  odd")

    with pytest.raises(SystemExit) as exit:
        run(fail)
    assert exit.value.code == 1
    assert capsys.readouterr().err.endswith("error: file.txt: is odd\n")


def test_a_full_disk_tells_the_file_and_to_make_room(capsys, tmp_path):
    def fill():
        with replacing(tmp_path / "config.json"):
            raise OSError(errno.ENOSPC, "No space left on device")  # as a write does

    with pytest.raises(SystemExit):
        run(fill)
    assert capsys.readouterr().err.endswith(
        f"error: {tmp_path}/config.json: the disk is full; make room, then repeat the command\n"
    )


@pytest.mark.parametrize("parse", ["parse_args", "parse_known_args"])
def test_a_misspelled_flag_is_named_before_the_one_that_it_should_be(monkeypatch, capsys, parse):
    parser = ArgumentParser("Does it.")
    parser.add_argument("--folder", required=True)
    monkeypatch.setattr(sys, "argv", ["x.py", "--fodler", "a"])
    with pytest.raises(SystemExit):
        getattr(parser, parse)()
    assert capsys.readouterr().err == "x.py: error: unrecognized arguments: --fodler (see --help)\n"


def test_a_text_that_begins_with_dashes_is_a_value():
    parser = ArgumentParser("Does it.")
    parser.add_argument("--text")
    assert parser.parse_args(["--text", "-- Who is there? -- Ann."]).text == "-- Who is there? -- Ann."
    assert parser.parse_args(["--text=--verbose"]).text == "--verbose"


def test_one_process_of_several_ends_without_the_interpreters_own_end():
    code = """
import atexit
from knowlm.cli import run

class Kept:
    def __del__(self):
        print("taken down")

kept = Kept()
atexit.register(print, "handlers are called")
run(lambda: print("done"))
"""
    for processes, more in ((1, "taken down\n"), (2, "")):
        environment = os.environ | {"WORLD_SIZE": str(processes)}
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=REPOSITORY, capture_output=True, text=True
        )
        assert (result.returncode, result.stdout) == (0, f"done\nhandlers are called\n{more}"), result.stderr
