import errno
import json
import os

import pytest

from knowlm.files import new_folder, read_records, replacing, require_new, require_space, write_records


def test_an_output_that_links_to_an_empty_folder_is_filled_there(tmp_path):
    (tmp_path / "large_disk").mkdir()
    for target in ("large_disk", "large_disk/not_yet"):
        link = tmp_path / target.replace("/", "_to_")
        if not link.exists():
            link.symlink_to(tmp_path / target)
        with new_folder(link) as partial:
            (partial / "file").write_text("whole")
        assert (tmp_path / target / "file").read_text() == "whole"
        (tmp_path / target / "file").unlink()


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match=f"{tmp_path}/notes/a/b: {tmp_path}/notes is a file"):
        require_new(tmp_path / "notes/a/b")


def test_an_output_where_a_disk_is_mounted_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path))  # no test may mount
    monkeypatch.setattr(type(tmp_path), "is_mount", lambda path: os.path.ismount(path))
    with pytest.raises(ValueError, match="a disk is mounted here"):
        require_new(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_in_a_folder_of_others_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(ValueError, match=f"you can't write to {tmp_path}"):
        require_new(tmp_path / "a/b")


def test_a_write_that_fails_names_its_file_and_leaves_none(tmp_path):
    with pytest.raises(OSError) as told, replacing(tmp_path / "config.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert told.value.filename == str(tmp_path / "config.json") and list(tmp_path.iterdir()) == []


def test_a_device_keeps_its_place(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: is a folder or a device"), replacing(tmp_path / "pipe") as partial:
        partial.write_text("x")
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("written", ['{"a":' + "[" * 100_000, '{"a": 1' + "0" * 5000 + "}"])
def test_json_beyond_pythons_limits_is_told_with_its_file(tmp_path, written):
    (tmp_path / "a.jsonl").write_text(written)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: not valid JSON"):
        read_records(tmp_path / "a.jsonl")


def test_too_little_space_is_told_in_a_unit_that_shows_it(tmp_path, monkeypatch):
    monkeypatch.setattr("knowlm.files.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_500_000}))
    with pytest.raises(OSError, match=r"2.5 MB are needed and 1.5 MB are free"):
        require_space(tmp_path / "out", 2_500_000)
    with pytest.raises(OSError, match=r"26.0 GB are needed and 0.0 GB are free"):
        require_space(tmp_path / "out", 26 * 10**9)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_records_come_back_from_a_list_and_from_lines(tmp_path, count):
    rows = [{"text": f"一\u2028{number}\n"} for number in range(count)]
    for name in ("a.json", "a.jsonl"):
        assert write_records(tmp_path / name, iter(rows)) == count
        assert read_records(tmp_path / name) == rows
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == rows
