"""Read documents from files of any size in pieces: plain or JSON lines, gzip, bzip2, zstd, Parquet."""

import bz2
import glob
import gzip
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import orjson

from knowlm.files import require_file

CHUNK_BYTES = 4 << 20  # of text at once: enough to be fast, little enough to lose
# Fields of the published sources, tried in turn.
KNOWN_FIELDS = (
    ["title", "content"],
    ["title", "text"],
    ["text"],
    ["content"],
    ["instruction", "input", "output"],
    ["instruction", "output"],
    ["input", "output"],
)


@dataclass
class Chunk:
    """Whole lines of a source, line numbers counted from 1."""

    source: int  # its number
    is_json: bool
    first_line: int
    next_line: int
    size: int
    stop: int  # where the next chunk begins, in bytes of uncompressed text
    data: bytes


def find_sources(patterns: Sequence[str]) -> list[Path]:
    """The files that paths and globs name, each once, in the order given and by name within a glob.

    Raises ValueError on a path that is no file or a glob that matches none.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        if not Path(pattern).exists() and glob.has_magic(pattern):
            matches = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
            if not matches:
                raise ValueError(f"{pattern}: matches no file; check the pattern")
            found |= dict.fromkeys(map(Path, matches))
        else:
            found[require_file(pattern)] = None
    return list(found)


def read_chunks(path: Path, source: int, is_json: bool, start: int = 0, first_line: int = 1) -> Iterator[Chunk]:
    """Chunks from byte ``start`` of the uncompressed text, which must be the beginning of line ``first_line``."""
    with open_text(path) as text:
        skip(text, start)
        while data := text.read(CHUNK_BYTES):
            data += text.readline()
            start += len(data)
            next_line = first_line + data.count(b"\n")
            chunk = Chunk(source, is_json, first_line, next_line, len(data), start, data)
            del data  # who takes the chunk may drop them
            yield chunk
            first_line = next_line


@contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
    """A stream of the file's text, uncompressed; a Parquet file's rows as JSON lines.

    Raises ValueError naming the file where it can't be read to its end.
    """
    try:
        if path.suffix == ".gz":
            stream: Any = io.BufferedReader(gzip.GzipFile(path))
        elif path.suffix == ".bz2":
            stream = io.BufferedReader(bz2.BZ2File(path))
        elif path.suffix == ".zst":
            import zstandard

            stream = io.BufferedReader(zstandard.open(path, "rb"))
        elif path.suffix == ".parquet":
            stream = io.BufferedReader(ParquetLines(path), CHUNK_BYTES)
        else:
            stream = path.open("rb")
        with stream:
            yield stream
    except Exception as error:  # every library has errors of its own
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"{path}: can't be read to its end ({error}); get the file again") from None


def skip(text: IO[bytes], count: int) -> None:
    """Go ``count`` bytes on, by seeking where the stream can."""
    if isinstance(text, io.BufferedReader) and text.seekable():
        text.seek(count)
        return
    while count and (passed := text.read(min(count, CHUNK_BYTES))):
        count -= len(passed)


class ParquetLines(io.RawIOBase):
    """The rows of a Parquet file as JSON lines, a batch of rows in memory at a time."""

    def __init__(self, path: Path):
        from pyarrow import parquet

        self._batches = parquet.ParquetFile(path).iter_batches(1024)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._rest:
            batch = next(self._batches, None)
            if batch is None:
                return 0
            rows = (json.dumps(row, ensure_ascii=False, default=str) for row in batch.to_pylist())
            self._rest = "".join(f"{row}\n" for row in rows).encode("utf-8", "surrogatepass")
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def looks_like_json(path: Path) -> bool:
    """Whether the first line that isn't blank is a JSON object."""
    with open_text(path) as text:
        for line in text:
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                if path.suffix == ".json" and line.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
                    raise ValueError(f"{path}: a JSON list; write it as JSON lines, an object a line: jq -c '.[]'")
                return bool(re.match(rb'(\xef\xbb\xbf)?\s*\{\s*"', line)) or path.suffix == ".parquet"
    return False


@lru_cache(1024)
def known_fields(names: tuple[str, ...]) -> list[list[str]]:
    """Those of KNOWN_FIELDS that a record with these fields has."""
    return [fields for fields in KNOWN_FIELDS if set(fields) <= set(names)]


def parse_document(line: bytes, is_json: bool, fields: Sequence[str] = (), template: str = "") -> str:
    """The text of one corpus line: the line itself, or a JSON object's fields joined by line breaks.

    line: in UTF-8; fields: other fields than the published sources'; template: text with ``{field}`` in it, instead.
    Raises ValueError on a line without.

    >>> parse_document('{"title": "静夜思", "content": "床前明月光"}'.encode(), is_json=True)
    '静夜思\\n床前明月光'
    >>> parse_document(b'{"q": "1+1?", "a": "2"}', is_json=True, template="Q: {q} A: {a}")
    'Q: 1+1? A: 2'
    """
    if not is_json:
        return line.decode()
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = json.loads(line.decode())  # knows NaN, and says better what is wrong
    if not isinstance(record, dict):
        raise ValueError(f"an object is needed, found {type(record).__name__}")
    wanted = tuple(re.findall(r"\{(\w+)\}", template) if template else fields)
    for names in [wanted] if wanted else known_fields(tuple(record)):
        if all(isinstance(record.get(name), str) for name in names):
            if template:
                return re.sub(r"\{(\w+)\}", lambda match: record[match[1]], template)
            return "\n".join(record[name] for name in names if record[name])
    missing = f"no text under {', '.join(wanted)}" if wanted else "none of the known text fields"
    raise ValueError(f"{missing} in {sorted(record)}; name them with --text_fields or --text_template")
