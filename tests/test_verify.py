"""Published lists, lists of md5sum's, manifests: what is OK, what isn't, and what no list may name."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import verify

from knowlm import checksums
from knowlm.checksums import Checksum, hash_file, read_checksums
from knowlm.manifest import MANIFEST, write_manifest

FILES = {"config.json": b"{}", "model.bin": b"weights" * 300_000, "docs/read me.md": b"hello"}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "files"


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Calls the script's main with flags; returns its lines."""

    def run(*flags) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["verify.py", *map(str, flags)])
        verify.main()
        return capsys.readouterr().out.splitlines()

    return run


def write_list(path: Path, algorithm: str = "md5", files: dict[str, bytes] = FILES) -> Path:
    lines = [f"{hashlib.new(algorithm, content).hexdigest()}  {name}\n" for name, content in files.items()]
    path.write_text("".join(lines))
    return path


def list_in_manifest(folder: Path, files: dict[str, bytes] = FILES) -> None:
    facts = {name: {"bytes": len(data), "blake3": blake3(data).hexdigest()} for name, data in files.items()}
    write_manifest(folder, {"kind": "model", "files": facts, "tensors": {}})


@pytest.mark.parametrize("command", [["md5sum"], ["sha256sum", "-b"], ["md5sum", "--tag"], ["sha512sum"]])
def test_lists_of_the_usual_programs_are_read(folder, tmp_path, run_main, command):
    written = subprocess.run([*command, *FILES], cwd=folder, capture_output=True, text=True, check=True).stdout
    (tmp_path / "SUMS").write_text("# of today\n\n" + written)
    lines = run_main("--folder", folder, "--checksums", tmp_path / "SUMS")
    assert lines[:-1] == [f"OK       {name}" for name in FILES]
    assert lines[-1] == f"{folder}: 3 files are OK by {tmp_path / 'SUMS'}"


def test_bad_missing_and_extra_files_are_told_apart(folder, tmp_path, run_main, capsys):
    sums = write_list(tmp_path / "SUMS", files={**FILES, "gone.bin": b""})
    (folder / "config.json").write_bytes(b"[]")
    (folder / "mine.txt").write_text("extra")
    (folder / ".cache").mkdir()
    (folder / ".cache/note").write_text("the download's own")
    with pytest.raises(ValueError, match=r"of 4 files of .*SUMS 1 are bad and 1 missing; fetch them again"):
        run_main("--folder", folder, "--checksums", sums)
    assert capsys.readouterr().out.splitlines() == [
        f"BAD      config.json (MD5 {hashlib.md5(b'[]').hexdigest()})",
        "OK       model.bin",
        "OK       docs/read me.md",
        "MISSING  gone.bin",
        "EXTRA    mine.txt",
    ]


def test_extra_files_alone_are_no_failure(folder, tmp_path, run_main):
    sums = write_list(folder / "SUMS", files={"model.bin": FILES["model.bin"]})  # itself no extra file
    lines = run_main("--folder", folder, "--checksums", sums)
    assert lines == [
        "OK       model.bin",
        "EXTRA    config.json",
        "EXTRA    docs/read me.md",
        f"{folder}: 1 files are OK by {sums}, 2 aren't listed",
    ]


def test_the_folders_manifest_is_read_without_being_named(folder, run_main, capsys):
    list_in_manifest(folder)
    assert run_main("--folder", folder)[-1] == f"{folder}: 3 files are OK by {folder / MANIFEST}"
    (folder / "model.bin").write_bytes(b"cut")
    with pytest.raises(ValueError, match="1 are bad and 0 missing"):
        run_main("--folder", folder)
    assert "BAD      model.bin (3 bytes, 2100000 listed)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        [],
        {"files": {}},
        {"files": {"a": 3}},
        {"files": {"a": {"bytes": 3}}},
        {"files": {"../a": {"bytes": 3, "blake3": "0" * 64}}},
    ],
)
def test_a_manifest_of_another_form_is_refused(tmp_path, manifest):
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=MANIFEST):
        read_checksums(tmp_path / MANIFEST)
    if isinstance(manifest, dict):
        write_manifest(tmp_path, manifest)
    with pytest.raises(ValueError, match=MANIFEST):
        read_checksums(tmp_path / MANIFEST)


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "..\\x", "C:\\x", "C:x", "\\\\host\\share\\x", ".", "a/.."]
)
@pytest.mark.parametrize("form", ["{sum}  {name}", "{sum} *{name}", "MD5 ({name}) = {sum}"])
def test_a_list_that_names_files_outside_the_folder_is_refused(tmp_path, name, form):
    (tmp_path / "SUMS").write_text(form.format(sum="0" * 32, name=name) + "\n")
    with pytest.raises(ValueError, match=r"SUMS, line 1: .* lies outside the folder"):
        read_checksums(tmp_path / "SUMS")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no file"),
        ("hello", "line 1: not a checksum and a file name"),
        ("0" * 33 + "  x", "line 1: not a checksum"),
        ("0" * 32 + "  x\n" + "1" * 32 + "  ./x", "line 2: x is listed before"),
    ],
)
def test_a_file_that_is_no_list_of_checksums_is_told(tmp_path, text, message):
    (tmp_path / "SUMS").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_checksums(tmp_path / "SUMS")


def test_names_are_read_in_their_plain_form(tmp_path):
    (tmp_path / "SUMS").write_text("A" * 32 + "  ./docs//read me.md\n")
    assert read_checksums(tmp_path / "SUMS") == {"docs/read me.md": Checksum("md5", "a" * 32)}


def test_every_published_set_is_there_whole():
    sets = {name: len(read_checksums(path)) for name, path in checksums.published_sets().items()}
    assert sets == {
        "zhixi-13b-base": 6,
        "zhixi-13b-base-fp16": 3,
        "zhixi-13b-diff": 6,
        "zhixi-13b-diff-fp16": 3,
        "zhixi-13b-lora": 1,
    }


@pytest.fixture
def sets(tmp_path, monkeypatch) -> Path:
    """Three published sets, two of them with the same file names."""
    (tmp_path / "sets").mkdir()
    for name, seed in (("tuned", b"tuned"), ("base", b"base")):
        parts = {f"part-{number}.bin": seed * number for number in (1, 2, 3)}
        write_list(tmp_path / "sets" / f"{name}.md5", files=parts)
    write_list(tmp_path / "sets/adapter.md5", files={"adapter.bin": b"lora"})
    monkeypatch.setattr(checksums, "PUBLISHED", tmp_path / "sets")
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def test_a_set_is_recognised_by_its_file_names_or_else_by_the_first_right_checksum(sets, run_main, capsys):
    (sets / "adapter.bin").write_bytes(b"lora")
    assert run_main("--folder", sets)[-1] == f"{sets}: 1 files are OK by adapter"
    (sets / "adapter.bin").unlink()
    for number, content in enumerate([b"damaged", b"tuned" * 2, b"tuned" * 3], 1):
        (sets / f"part-{number}.bin").write_bytes(content)
    with pytest.raises(ValueError, match="of 3 files of tuned 1 are bad and 0 missing"):
        run_main("--folder", sets)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["BAD", "OK", "OK"]


def test_a_folder_that_fits_no_set_asks_for_a_list(sets, run_main):
    with pytest.raises(ValueError, match=f"holds no {MANIFEST} and no file that a published set lists"):
        run_main("--folder", sets)
    (sets / "part-1.bin").write_bytes(b"another model's")
    with pytest.raises(ValueError, match="no file has the MD5 that base or tuned lists; name the one"):
        run_main("--folder", sets)


def test_a_list_or_folder_that_is_not_there_is_told(sets, run_main):
    with pytest.raises(ValueError, match=r"bse: neither a file nor a published set \(adapter, base, tuned\)"):
        run_main("--folder", sets, "--checksums", "bse")
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        run_main("--folder", sets / "nowhere")


def test_hashing_tells_its_progress_and_knows_gits_way(folder):
    steps: list[int] = []
    assert hash_file(folder / "model.bin", "sha256", steps.append) == hashlib.sha256(FILES["model.bin"]).hexdigest()
    assert len(steps) == 3 and sum(steps) == len(FILES["model.bin"])
    assert hash_file(folder / "docs/read me.md", "git") == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"


def test_the_exit_code_is_0_only_if_all_is_ok(run_script, folder):
    list_in_manifest(folder)
    result = run_script("tools/verify.py", "--folder", folder)
    assert (result.returncode, result.stderr) == (0, "")
    (folder / "config.json").unlink()
    result = run_script("tools/verify.py", "--folder", folder)
    assert result.returncode == 1 and "MISSING  config.json" in result.stdout
    assert result.stderr.startswith("verify.py: error: ") and len(result.stderr.splitlines()) == 1
    result = run_script("tools/verify.py", "--folder", folder, "--checksum", "x")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
