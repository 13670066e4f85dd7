"""Lists of checksums, as md5sum, sha256sum and weight_diff.py write them, and the sets published with ZhiXi-13B."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from knowlm.files import inner_name, require_file
from knowlm.manifest import open_manifest

PUBLISHED = Path(__file__).resolve().parents[1] / "tools/checksums"
ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}  # by hexadecimal digits
GNU_LINE = re.compile(r"([0-9a-fA-F]+) [ *](.+)")  # 83cc50…  model.bin
BSD_LINE = re.compile(r"[A-Z0-9-]+ \((.+)\) = ([0-9a-fA-F]+)")  # MD5 (model.bin) = 83cc50…


@dataclass(frozen=True)
class Checksum:
    algorithm: str  # a name of hashlib's, blake3, or "git": SHA-1 of the content behind git's header
    hex: str
    size: int | None = None  # bytes, where the list tells them


def read_checksums(path: str | Path) -> dict[str, Checksum]:
    """The files that ``path`` lists, by name: output of md5sum or its like, or a manifest in JSON.

    Raises ValueError naming the line that is none, or that names a file outside the folder.
    """
    path = require_file(path)
    if path.suffix == ".json":
        return read_files(path)
    listed: dict[str, Checksum] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file; a list of checksums is needed, as md5sum writes it") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        gnu, bsd = GNU_LINE.fullmatch(line), BSD_LINE.fullmatch(line)
        name, digits = (gnu[2], gnu[1]) if gnu else (bsd[1], bsd[2]) if bsd else ("", "")
        if len(digits) not in ALGORITHMS:
            raise ValueError(
                f"{path}, line {number}: not a checksum and a file name, as md5sum or sha256sum write them"
            )
        name = inner_name(name, f"{path}, line {number}")
        checksum = Checksum(ALGORITHMS[len(digits)], digits.lower())
        if listed.setdefault(name, checksum) != checksum:
            raise ValueError(f"{path}, line {number}: {name} is listed before with another checksum; remove one line")
    if not listed:
        raise ValueError(f"{path}: lists no file; a list of checksums is needed, as md5sum writes it")
    return listed


def read_files(path: Path) -> dict[str, Checksum]:
    """The files of a manifest."""
    try:
        files = {
            inner_name(name, str(path)): Checksum("blake3", facts["blake3"], facts["bytes"])
            for name, facts in open_manifest(path)["files"].items()
        }
    except (AttributeError, KeyError, TypeError):
        files = {}
    if not files:
        raise ValueError(f"{path}: lists no files; a manifest of weight_diff.py is needed")
    return files


def published_sets() -> dict[str, Path]:
    """The lists of tools/checksums/ by name."""
    return {path.stem: path for path in sorted(PUBLISHED.glob("*.md5"))}


def hash_file(path: Path, algorithm: str, advance: Callable[[int], object] = int) -> str:
    """The file's checksum in hexadecimal digits, in constant memory; ``advance`` is told the bytes read."""
    digest = blake3() if algorithm == "blake3" else hashlib.new("sha1" if algorithm == "git" else algorithm)
    if algorithm == "git":  # what the hub names small files by
        digest.update(b"blob %d\0" % path.stat().st_size)
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
            advance(count)
    return digest.hexdigest()
