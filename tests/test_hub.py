"""Fetching from a hub: what breaks, what comes wrong, what is refused."""

import hashlib
import os
import re

import pytest
from hub import MODEL, SECOND, WEIGHTS, read_files
from huggingface_hub import constants, hf_hub_download

from knowlm import hub as client
from knowlm.checksums import Checksum
from knowlm.hub import HubDownload


@pytest.fixture
def hub(local_hub):
    return local_hub


@pytest.fixture
def fetch(hub, tmp_path):
    """Fetches a repository from the local hub, in this process."""

    def fetch(repo: str = MODEL, **options):
        return HubDownload(repo, tmp_path / "files", hub.url, **options).fetch()

    return fetch


def test_a_connection_that_closes_half_way_is_taken_up_at_the_byte_where_it_stopped(fetch, hub, tmp_path, capsys):
    content = hub.repos[MODEL][WEIGHTS] = os.urandom(3_000_001)
    hub.spoil(WEIGHTS, "close", "close")
    fetch()
    assert hub.ranges(WEIGHTS) == [None, "bytes=1500000-", "bytes=2250000-"]
    assert (tmp_path / "files" / WEIGHTS).read_bytes() == content
    assert read_files(tmp_path / "files") == hub.repos[MODEL]
    assert capsys.readouterr().err.count(f"{WEIGHTS}: breaks the connection") == 2


def test_a_network_that_fails_half_way_is_waited_for(fetch, hub, tmp_path, capsys):
    hub.spoil(WEIGHTS, "reset", "503", "reset", "429", "close")
    fetch(checksums={})
    assert read_files(tmp_path / "files") == hub.repos[MODEL]
    assert f"{WEIGHTS}: answers 503; try " in capsys.readouterr().err


def test_a_server_that_falls_silent_is_asked_for_the_rest(fetch, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.spoil(WEIGHTS, "stall")
    fetch()
    assert hub.ranges(WEIGHTS) == [None, "bytes=32500-"]
    assert read_files(tmp_path / "files") == hub.repos[MODEL]


def test_a_server_that_ignores_ranges_sends_the_file_anew(fetch, hub, tmp_path):
    hub.spoil(WEIGHTS, "close", "whole")
    fetch()
    assert len(hub.ranges(WEIGHTS)) == 2
    assert read_files(tmp_path / "files") == hub.repos[MODEL]


def test_a_hub_in_trouble_is_asked_again_after_growing_pauses(fetch, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(client, "PAUSES", (0.01, 0.02, 0.04, 0.08))
    hub.spoil("api", "503", "500", "504")
    fetch()
    told = capsys.readouterr().err
    tries = ["try 2 of 5 in 0.01 s", "try 3 of 5 in 0.02 s", "try 4 of 5 in 0.04 s"]
    assert re.findall(r"try \d of 5 in \S+ s", told) == tries
    assert read_files(tmp_path / "files") == hub.repos[MODEL]


def test_after_five_tries_a_file_is_given_up_and_the_repeated_command_fetches_the_rest(fetch, hub, tmp_path):
    hub.repos[MODEL][WEIGHTS] = os.urandom(1_000_000)
    hub.spoil(WEIGHTS, "close", *["503"] * 4)
    with pytest.raises(OSError, match=rf"{WEIGHTS}: .* answers 503; .*repeat the command"):
        fetch()
    assert WEIGHTS not in read_files(tmp_path / "files")
    assert len(hub.ranges(WEIGHTS)) == 5
    fetch()
    assert hub.ranges(WEIGHTS)[-1] == "bytes=500000-"
    assert read_files(tmp_path / "files") == hub.repos[MODEL]


def test_a_refusal_that_will_stay_is_not_tried_again(fetch, hub):
    hub.spoil("config.json", "404")
    with pytest.raises(OSError, match="answers 404"):
        fetch()
    assert [path.endswith("config.json") for path in hub.fetched()].count(True) == 1


def test_repeating_a_finished_download_sends_no_file_again(fetch, hub):
    fetch()
    before = len(hub.fetched())
    fetch()
    fetch(checksums={})
    assert len(hub.fetched()) == before


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_file_that_comes_wrong_is_caught_and_fetched_once_more(fetch, hub, tmp_path, capsys, name):
    hub.spoil(name, "wrong")
    fetch(checksums={})
    assert f"{name}: " in capsys.readouterr().err
    assert read_files(tmp_path / "files") == hub.repos[MODEL]


def test_without_verify_bytes_of_the_right_number_are_believed(fetch, hub, tmp_path):
    hub.spoil(WEIGHTS, "wrong")
    fetch()
    assert (tmp_path / "files" / WEIGHTS).read_bytes() == bytes(len(hub.repos[MODEL][WEIGHTS]))


def test_verify_finds_what_became_wrong_after_the_download(fetch, hub, tmp_path, capsys):
    fetch()
    for name in (WEIGHTS, "config.json"):
        (tmp_path / "files" / name).write_bytes(bytes(len(hub.repos[MODEL][name])))
    fetch(checksums={})
    assert capsys.readouterr().err.count("fetching it anew") == 2
    assert read_files(tmp_path / "files") == hub.repos[MODEL]


def test_published_checksums_go_before_the_hubs_own(fetch, hub, capsys):
    published = {WEIGHTS: Checksum("md5", hashlib.md5(b"another version").hexdigest())}
    with pytest.raises(ValueError, match=f"{WEIGHTS}: MD5 is"):
        fetch(checksums=published)
    published = {WEIGHTS: Checksum("md5", hashlib.md5(hub.repos[MODEL][WEIGHTS]).hexdigest())}
    fetch(checksums=published)


def test_a_file_cut_after_its_download_is_fetched_again(fetch, hub, tmp_path, capsys):
    fetch()
    (tmp_path / "files" / WEIGHTS).write_bytes(b"cut")
    fetch()
    assert f"{WEIGHTS}: 3 bytes, 65000 on the hub" in capsys.readouterr().err
    assert read_files(tmp_path / "files") == hub.repos[MODEL]


def test_another_revision_replaces_files_of_the_same_size(fetch, hub, tmp_path):
    hub.repos[f"{MODEL}@v1"] = {name: content[::-1] for name, content in hub.repos[MODEL].items()}
    fetch()
    fetch(revision="v1")
    assert read_files(tmp_path / "files") == hub.repos[f"{MODEL}@v1"]


def test_files_that_another_tool_brought_are_kept_if_they_are_right(fetch, hub, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / WEIGHTS).write_bytes(hub.repos[MODEL][WEIGHTS])
    fetch()
    assert hub.ranges(WEIGHTS) == []


def test_hugging_faces_own_download_and_this_one_keep_each_others_files(fetch, hub, tmp_path):
    where = {"repo_id": MODEL, "endpoint": hub.url, "local_dir": tmp_path / "files"}
    hf_hub_download(filename=WEIGHTS, **where)
    assert hub.ranges(WEIGHTS) == [None]
    fetch()
    for name in (WEIGHTS, SECOND):
        hf_hub_download(filename=name, **where)
    assert hub.ranges(WEIGHTS) == hub.ranges(SECOND) == [None]


def test_a_mirror_that_lists_names_alone_is_asked_for_each_size(fetch, hub, tmp_path):
    hub.sizes = False
    fetch(checksums={})
    assert read_files(tmp_path / "files") == hub.repos[MODEL]


def test_a_mirror_whose_file_is_shorter_than_listed_is_told(fetch, hub, tmp_path):
    hub.spoil(WEIGHTS, "short", "short")
    with pytest.raises(OSError, match=f"lists {WEIGHTS} with 65000 bytes and sends 64999"):
        fetch()
    assert WEIGHTS not in read_files(tmp_path / "files")


def test_a_file_name_that_leaves_the_folder_is_refused(fetch, hub, tmp_path):
    hub.repos[MODEL]["../outside.json"] = b"{}"
    with pytest.raises(ValueError, match=r"\.\./outside.json"):
        fetch()
    assert not (tmp_path / "outside.json").exists()


def test_a_disk_too_small_for_what_is_missing_is_told_before_any_file(fetch, hub, tmp_path, monkeypatch):
    free = type("Usage", (), {"free": sum(map(len, hub.repos[MODEL].values())) - 1})
    monkeypatch.setattr("knowlm.files.shutil.disk_usage", lambda _: free)
    with pytest.raises(OSError, match=r"are needed and .* are free on that disk"):
        fetch()
    assert hub.fetched() == []
    hub.repos[MODEL].pop(SECOND)
    fetch()
    assert read_files(tmp_path / "files") == hub.repos[MODEL]


def test_a_disk_that_fills_up_is_told(fetch, hub, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(client, "sync", full)
    with pytest.raises(OSError, match="the disk is full; make room and repeat the command"):
        fetch()


def test_a_gated_repository_tells_where_to_ask(fetch, hub):
    hub.gated.add(MODEL)
    with pytest.raises(OSError, match=f"gated, .*; ask for access at {hub.url}/{MODEL}, or log in"):
        fetch()


@pytest.mark.parametrize("status", ["401", "403"])
def test_a_refused_file_tells_to_log_in(fetch, hub, status):
    hub.spoil("config.json", status)
    with pytest.raises(OSError, match=r"config\.json: .*hf auth login"):
        fetch()


def test_an_unknown_revision_is_told(fetch, hub):
    with pytest.raises(OSError, match=r"has no revision v9; .*without --revision the newest is fetched"):
        fetch(revision="v9")


def test_an_unknown_repository_is_told_even_if_the_folder_holds_files(fetch, hub, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files/notes.txt").write_text("mine")
    with pytest.raises(OSError, match=f"someone/mdoel: unknown to {hub.url}, private or gated"):
        fetch("someone/mdoel")
    with pytest.raises(ValueError, match="--repo_name a/b/c: not a name of the hub"):
        fetch("a/b/c")
    assert read_files(tmp_path / "files") == {"notes.txt": b"mine"}


def test_a_repository_without_files_is_no_success(fetch, hub):
    hub.repos["someone/empty"] = {}
    with pytest.raises(OSError, match=r"someone/empty: .* lists no files of it"):
        fetch("someone/empty")


def test_offline_mode_is_told(fetch, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE"):
        fetch()


def test_a_page_that_is_no_hub_is_told(fetch, hub, monkeypatch):
    monkeypatch.setattr("hub.describe", lambda *_: ["a web page"])
    with pytest.raises(OSError, match="doesn't answer as a hub"):
        fetch()
