"""The set-up's errors; that it works, ./run_tests.sh itself shows."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def checkout(tmp_path):
    """A checkout without .venv."""
    for name in ("setup.sh", "quickstart.sh", "requirements.txt", "requirements.lock", "requirements-dev.lock"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "bin").mkdir()
    return tmp_path


def command(folder, name, script):
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run(checkout, *arguments, script="setup.sh", **env):
    env = os.environ | {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}"} | env
    env.pop("PYTHON", None) if "PYTHON" not in env else None
    return subprocess.run([checkout / script, *arguments], env=env, capture_output=True, text=True, timeout=120)


def test_a_python_too_old_is_told_with_the_way_out(checkout):
    for name in ("python3.11", "python3", "python"):
        command(checkout, name, 'case "$1" in --version) echo Python 3.8.1 ;; *) echo 3.8 ;; esac')
    result = run(checkout)
    assert result.returncode == 1
    assert "Python 3.11 is needed, found Python 3.8.1" in result.stderr and "PYTHON=" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (checkout / ".venv").exists()


def test_a_full_disk_is_told_before_anything_is_made(checkout):
    command(checkout, "df", "echo Filesystem; echo /dev/x 100 0 1000000 90% /")
    result = run(checkout)
    assert result.returncode == 1
    assert "needs 4 GB and 1 GB are free" in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (checkout / ".venv").exists()


@pytest.mark.slow
def test_no_network_is_told_in_one_line_and_can_be_repeated(checkout):
    offline = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_FIND_LINKS": "",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_RETRIES": "0",
        "PIP_NO_CACHE_DIR": "1",
        "KNOWLM_DEVICE": "cpu",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    for _ in range(2):
        result = run(checkout, **offline)
        assert result.returncode == 1
        errors = [line for line in result.stderr.splitlines() if "error:" in line]
        assert len(errors) == 1 and "check the network" in errors[0]
    assert not list((checkout / ".venv").glob("installed-*"))


def test_an_unknown_argument_is_refused(checkout):
    result = run(checkout, "--devel")
    assert result.returncode == 1 and "unknown argument --devel" in result.stderr


def test_a_second_set_up_does_nothing(checkout):
    (checkout / ".venv").mkdir()
    checksum = subprocess.run(
        "cat requirements.lock requirements.txt | cksum | cut -d' ' -f1",
        shell=True,
        cwd=checkout,
        capture_output=True,
        text=True,
    ).stdout.strip()
    (checkout / f".venv/installed-cpu-{checksum}").touch()
    result = run(checkout, KNOWLM_DEVICE="cpu", PYTHON="false")
    assert (result.returncode, result.stderr) == (0, "")
