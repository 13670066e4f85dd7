"""Kills while a knowledge graph is stored or matched: the command, repeated, ends with the same bytes."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "finetune/kg2instructions.py"
LAST = ("Dalon", "Feron", "Galon", "Koron", "Loron", "Maron", "Noron", "Peron", "Ralon", "Soron", "Talon", "Voron")
NAMES = [f"{first}{rest} {last}" for first in "BDFGKL" for rest in ("ara", "elo", "ino", "uri") for last in LAST]


@pytest.fixture(scope="module")
def command_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in")
    generator = random.Random(0)
    facts = [
        (generator.choice(NAMES), generator.choice(("knew", "taught")), generator.choice(NAMES)) for _ in range(9000)
    ]
    (folder / "graph.tsv").write_text("".join("\t".join(fact) + "\n" for fact in facts))
    (folder / "texts.txt").write_text("".join(f"{head} once met {tail} there.\n" for head, _, tail in facts[:4000]))

    def command(output: Path) -> list[str]:
        words = [SCRIPT, "--texts", folder / "texts.txt", "--knowledge", folder / "graph.tsv", "--tasks", "RE"]
        return [sys.executable, *map(str, [*words, "--output_dir", output, "--num_workers", 2])]

    return command


def start(command):
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


@pytest.mark.slow
@pytest.mark.parametrize("kill", [os.killpg, os.kill])  # workers and all, or the command alone
def test_killed_at_random_it_ends_with_the_same_bytes(command_of, tmp_path, kill):
    begin = time.monotonic()
    process = start(command_of(tmp_path / "whole"))
    assert process.communicate() and process.returncode == 0
    duration, whole = time.monotonic() - begin, contents(tmp_path / "whole")
    output, database, moments = tmp_path / "cut", tmp_path / "cut.db", []
    for _ in range(4):
        process = start(command_of(output))
        moments.append(random.uniform(0.2, 1) * duration)
        try:
            process.communicate(timeout=moments[-1])
            break
        except subprocess.TimeoutExpired:
            kill(process.pid, signal.SIGKILL)
            process.communicate(timeout=30)  # ends when all that write there have, so the workers, too
        assert contents(output) in ({}, whole), moments
        if database.exists():  # by that name only whole
            with sqlite3.connect(database) as connection:
                assert connection.execute("SELECT value FROM meta WHERE name = 'source'").fetchone(), moments
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",), moments
    if not output.exists():
        process = start(command_of(output))
        words = process.communicate()[1]
        assert process.returncode == 0, (words, moments)
    assert contents(output) == whole, moments
    assert database.read_bytes() == (tmp_path / "whole.db").read_bytes(), moments
    assert {path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")} == {
        "whole",
        "whole.db",
        "cut",
        "cut.db",
    }, moments


def test_a_database_begun_and_left_is_begun_anew(tmp_path):
    from knowlm.supervision.graph_builder import build_database

    graph, database = tmp_path / "graph.tsv", tmp_path / "graph.db"
    graph.write_text("Paris\tin\tFrance\n")
    for name in ("graph.db.partial", "graph.db.staging"):
        (tmp_path / name).write_bytes(b"half of it")
    with sqlite3.connect(database) as connection:  # of an earlier version, or without what it was built from
        connection.execute("CREATE TABLE meta(name TEXT, value TEXT)")
    assert build_database([graph], None, database)
    assert not build_database([graph], None, database)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.db", "graph.tsv"]
