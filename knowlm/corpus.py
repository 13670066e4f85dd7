"""Packed corpora on disk: ``PREFIX.bin .idx .dis .tmp`` as published in 2023, and ``PREFIX.json`` with what they lack.

.bin   token ids of all samples one after another
.idx   all start offsets in tokens, then all lengths in tokens
.dis   samples per data type, in file order (a ``torch.save`` of ``list[int]``)
.tmp   samples with BOS only, EOS only, neither, both (the same)
.json  token dtype, tokenizer, settings, counts
.ledger          where each sample comes from (LEDGER)
.rejected.jsonl  lines of the input that were left out, and why
"""

import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from knowlm import __version__
from knowlm.checksums import hash_file
from knowlm.files import locked, replacing, require_file, require_space, sync, write_json, write_text

START = np.dtype("<u8")  # where a sample starts in .bin, in tokens, not bytes
LENGTH = np.dtype("<u2")  # a sample has fewer than 65,536 tokens
LEDGER = np.dtype([("source", "<u4"), ("document", "<u8"), ("start", "<u8"), ("stop", "<u8")])  # see Corpus.origin
REJECTED = ".rejected.jsonl"
SUFFIXES = (".idx", ".dis", ".tmp", ".json", ".ledger", ".bin")  # .bin comes last: with it a corpus is whole
BLOCK = 1 << 20  # samples handled at once


def token_dtype(vocab_size: int) -> np.dtype:
    """2 bytes a token up to 65,536 pieces, as published; 4 above."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class Corpus:
    """A memory-mapped corpus: ``corpus[i]`` is sample i's ids, a view of the file.

    Raises ValueError naming the file when one is missing, truncated or not of the others.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = str(prefix)
        sidecar = Path(f"{prefix}.json")
        self.settings = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}
        token = np.dtype(self.settings.get("dtype", "<u2"))
        index = require_file(f"{prefix}.idx")
        size = index.stat().st_size
        if size == 0 or size % 10:
            raise ValueError(
                f"{index}: {size} bytes is not a positive multiple of 10; rebuild it with pretrain/preprocess.py"
            )
        count = size // 10
        # as plain arrays: a memmap takes three times as long to slice
        self.starts = np.asarray(np.memmap(index, START, "r", shape=(count,)))
        self.lengths = np.asarray(np.memmap(index, LENGTH, "r", offset=8 * count, shape=(count,)))
        tokens = require_file(f"{prefix}.bin")
        expected = int(self.starts[-1]) + int(self.lengths[-1])
        if tokens.stat().st_size != expected * token.itemsize:
            raise ValueError(
                f"{tokens}: {tokens.stat().st_size} bytes, its index says {expected * token.itemsize}; "
                "copy both files again or rebuild them with pretrain/preprocess.py"
            )
        self.tokens = np.asarray(np.memmap(tokens, token, "r"))
        self.type_counts = read_counts(f"{prefix}.dis") if Path(f"{prefix}.dis").is_file() else [count]
        if sum(self.type_counts) != count:
            raise ValueError(
                f"{prefix}.dis: counts {sum(self.type_counts)} samples, the index {count}; merge the corpora again"
            )
        self.ledger = self._open_ledger(Path(f"{prefix}.ledger"), count)

    def _open_ledger(self, path: Path, count: int) -> np.ndarray | None:
        if not path.is_file():
            return None
        if path.stat().st_size != count * LEDGER.itemsize:
            raise ValueError(f"{path}: {path.stat().st_size} bytes, {count * LEDGER.itemsize} expected; copy it again")
        return np.asarray(np.memmap(path, LEDGER, "r"))

    def origin(self, sample: int) -> tuple[str, int, int, int] | None:
        """(source file, line counted from 1, first and last byte in the document's text) of a sample, if known."""
        if self.ledger is None:
            return None
        source, document, start, stop = self.ledger[sample].tolist()
        return self.settings["sources"][source]["path"], document, start, stop

    @cached_property
    def digest(self) -> str:
        """BLAKE3 of index and sidecar: no other corpus, nor one of the same samples in another order, has it."""
        files = [Path(f"{self.prefix}{suffix}") for suffix in (".idx", ".json")]
        return " ".join(hash_file(file, "blake3") for file in files if file.is_file())

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, sample: int) -> np.ndarray:
        start = int(self.starts[sample])
        return self.tokens[start : start + int(self.lengths[sample])]


class NoSamplesError(ValueError):
    """A corpus would be empty."""

    def __init__(self, prefix: str, counts: dict):
        of_all: Counter[str] = sum(map(Counter, counts.values()), Counter())
        reason = "the input holds no text"
        if of_all["documents"]:
            reason = f"all {of_all['short samples']} samples have --min_sample_tokens or fewer"
        elif of_all["rejected lines"]:
            with open(f"{prefix}{REJECTED}", encoding="utf-8") as lines:
                reason = f"see {prefix}{REJECTED}, which begins with: {json.loads(lines.readline())['reason']}"
        super().__init__(f"{prefix}: no sample is left to write; {reason}")
        self.counts = counts


class CorpusWriter:
    """Appends samples to a new corpus; its files take their names when the ``with`` block ends well.

    settings: what the sidecar keeps besides counts; ``vocab_size`` decides the token dtype, ``bos`` and ``eos`` are
    ids. After a kill or a failure a writer of the same prefix, settings and ``basis`` goes on behind the last
    ``commit``: ``progress`` is what every ``commit`` was told, from the first. ``counts`` go into the sidecar.
    """

    def __init__(self, prefix: str | Path, settings: dict, ledger: bool = False, basis: Sequence[str | int] = ()):
        self.prefix, self.settings = str(prefix), json.loads(json.dumps(settings))
        self.dtype = token_dtype(settings["vocab_size"])
        self.has_ledger, self.basis = ledger, list(basis)
        self.progress: list[dict] = []
        self.counts: dict = {}
        self.num_samples = self.num_tokens = 0
        self.edges = [0, 0, 0, 0]  # samples with BOS only, EOS only, neither, both
        self._is_whole = False
        self._journal = Path(f"{self.prefix}.journal")
        self._paths = {name: Path(f"{self.prefix}{name}.partial") for name in (".bin", ".lengths", ".ledger", REJECTED)}

    def __enter__(self) -> "CorpusWriter":
        Path(self.prefix).parent.mkdir(parents=True, exist_ok=True)
        sizes = self._recall() or dict.fromkeys(self._paths, 0)
        self._log = self._journal.open("ab")
        self._files: dict[str, BinaryIO] = {}
        for name, path in {} if self._is_whole else self._paths.items():
            self._files[name] = path.open("r+b" if self.progress else "wb")
            self._files[name].truncate(sizes[name])
            self._files[name].seek(sizes[name])
        return self

    def _recall(self) -> dict[str, int] | None:
        """Take up what a run with the same settings committed, if there was one; the sizes of its files."""
        header = json.dumps([self.settings, self.has_ledger, self.basis]).encode() + b"\n"
        lines = self._journal.read_bytes().splitlines(keepends=True) if self._journal.is_file() else []
        records = [json.loads(line) for line in lines[1:] if line.endswith(b"\n")]  # else the kill cut it off
        if records and lines[:1] != [header]:
            print(f"{self.prefix}: beginning anew; what was unfinished had other settings or input", file=sys.stderr)
        if lines[:1] != [header] or not records:
            write_text(self._journal, header.decode())
            return None
        os.truncate(self._journal, sum(map(len, lines[: len(records) + 1])))
        self.progress, last = [record["progress"] for record in records], records[-1]
        self.num_samples, self.num_tokens, self.edges = (last[name] for name in ("num_samples", "num_tokens", "edges"))
        self._is_whole = last["is_whole"]
        return last["sizes"]

    def add(self, ids: np.ndarray, lengths: Sequence[int] | np.ndarray, ledger: np.ndarray | None = None) -> None:
        """ids: (tokens,) of all samples one after another; lengths: (samples,), at most 65,535 each;
        ledger: (samples,) of dtype LEDGER.
        """
        lengths = np.asarray(lengths, LENGTH)
        if not len(lengths):
            return
        self._write(".bin", ids.astype(self.dtype, copy=False).data)
        self._write(".lengths", lengths.data)
        if self.has_ledger and ledger is not None:
            self._write(".ledger", ledger.tobytes())
        stops = np.cumsum(lengths, dtype=np.int64)
        begins, ends = ids[stops - lengths] == self.settings["bos"], ids[stops - 1] == self.settings["eos"]
        for kind, samples in enumerate((begins & ~ends, ~begins & ends, ~begins & ~ends, begins & ends)):
            self.edges[kind] += int(samples.sum())
        self.num_samples += len(lengths)
        self.num_tokens += len(ids)

    def reject(self, rows: Sequence[dict]) -> None:
        """Keep what was wrong with input in ``PREFIX.rejected.jsonl``."""
        self._write(REJECTED, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())

    def _write(self, name: str, content: bytes | memoryview) -> None:
        try:
            self._files[name].write(content)
        except OSError as error:
            raise self._told(error) from None

    def _told(self, error: OSError) -> OSError:
        return OSError(f"{self.prefix}: {error.strerror}; mend that, then run the same command again: it goes on")

    def commit(self, progress: dict, is_whole: bool = False) -> None:
        """All that was added so far is safe on disk once this returns, with ``progress``, a JSON object."""
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            record = {
                "progress": progress,
                "is_whole": is_whole,
                "sizes": {name: file.tell() for name, file in self._files.items()},
                "num_samples": self.num_samples,
                "num_tokens": self.num_tokens,
                "edges": self.edges,
            }
            self._log.write(json.dumps(record).encode() + b"\n")
            self._log.flush()
            os.fsync(self._log.fileno())
        except OSError as error:
            raise self._told(error) from None
        self.progress.append(progress)
        self._is_whole = is_whole

    def __exit__(self, error_type, *_) -> None:
        if not error_type and self.num_samples and not self._is_whole:
            self.commit(self.progress[-1] if self.progress else {}, is_whole=True)
        for file in [self._log, *self._files.values()]:
            with suppress(OSError):  # a full disk again; the journal knows what is safe
                file.close()
        if self._is_whole:
            self._publish()
        elif not self.progress or not (error_type or self.num_samples):
            rejected = self._paths[REJECTED]
            self._journal.unlink()  # first: it tells of files that must be there
            if not error_type and rejected.stat().st_size:
                os.replace(rejected, f"{self.prefix}{REJECTED}")
            for path in self._paths.values():
                path.unlink(missing_ok=True)
        if not error_type and not self.num_samples:
            raise NoSamplesError(self.prefix, self.counts)

    def _publish(self) -> None:
        """Give the files their names. May be repeated after a kill: the journal goes last."""
        if self._paths[".bin"].is_file():
            Path(f"{self.prefix}.bin").unlink(missing_ok=True)  # of an earlier run
        if self._paths[".lengths"].is_file():
            write_index(self.prefix, [np.memmap(self._paths[".lengths"], LENGTH, "r")])
            write_counts(f"{self.prefix}.dis", [self.num_samples])
            write_counts(f"{self.prefix}.tmp", self.edges)
            counts: dict = {"num_samples": self.num_samples, "num_tokens": self.num_tokens, "knowlm": __version__}
            counts["counts"] = self.counts
            write_json(f"{self.prefix}.json", {**self.settings, "dtype": self.dtype.str, **counts})
        for name in (".ledger", REJECTED, ".bin"):
            path = self._paths[name]
            if path.is_file() and path.stat().st_size:
                os.replace(path, f"{self.prefix}{name}")
            elif path.is_file():
                path.unlink()
                Path(f"{self.prefix}{name}").unlink(missing_ok=True)
        self._paths[".lengths"].unlink(missing_ok=True)
        self._journal.unlink()


def write_index(prefix: str, lengths: Sequence[np.ndarray]) -> None:
    """lengths: arrays (samples,) of tokens each, in file order; memory maps stay on disk."""
    blocks = [array[first : first + BLOCK] for array in lengths for first in range(0, len(array), BLOCK)]
    with replacing(f"{prefix}.idx") as partial, partial.open("wb") as index:
        start = 0
        for block in blocks:
            stops = start + np.cumsum(block, dtype=START)
            (stops - block).astype(START).tofile(index)
            start = int(stops[-1])
        for block in blocks:
            block.astype(LENGTH).tofile(index)


def merge_corpora(prefixes: Sequence[str], types: Sequence[int], new_prefix: str) -> "Corpus":
    """Join corpora; samples of one data type lie together, types in ascending order.

    Raises ValueError when the corpora weren't made with one tokenizer, or the new one would take the place of one.
    """
    if len(prefixes) != len(types):
        raise ValueError(f"{len(prefixes)} corpora but {len(types)} types; give one type number for each corpus")
    if Path(new_prefix).resolve() in [Path(prefix).resolve() for prefix in prefixes]:
        raise ValueError(f"{new_prefix}: is one of the corpora to join; name another for the result")
    corpora = [Corpus(prefix) for prefix in prefixes]
    for corpus in corpora[1:]:
        for key in ("dtype", "tokenizer_sha256"):
            if corpus.settings.get(key) != corpora[0].settings.get(key):
                raise ValueError(
                    f"{corpus.prefix}: made with another tokenizer than {corpora[0].prefix} ({key} differs); "
                    "write both with the same --tokenizer_path"
                )
    require_space(Path(new_prefix).parent, sum(corpus.tokens.nbytes + 40 * len(corpus) for corpus in corpora))
    with locked(new_prefix), unfinished(new_prefix) as partial:
        write_joined(corpora, types, partial)
        publish(partial, new_prefix)
    return Corpus(new_prefix)


@contextmanager
def unfinished(prefix: str) -> Iterator[str]:
    """A prefix for files that are gone afterwards, unless they were published; those of a killed run go first."""
    partial = f"{prefix}.unfinished"
    try:
        remove_files(partial)
        yield partial
    finally:
        remove_files(partial)


def remove_files(prefix: str) -> None:
    for suffix in SUFFIXES:
        Path(prefix + suffix).unlink(missing_ok=True)


def publish(prefix: str, new_prefix: str) -> None:
    """Give a corpus another name; at no time can a mixture with an earlier one of that name be opened."""
    remove_files(new_prefix)
    for suffix in SUFFIXES:
        if Path(prefix + suffix).is_file():
            sync(Path(prefix + suffix))
            os.replace(prefix + suffix, new_prefix + suffix)


def write_joined(corpora: Sequence["Corpus"], types: Sequence[int], new_prefix: str) -> None:
    order = sorted(range(len(corpora)), key=lambda i: types[i])
    with replacing(f"{new_prefix}.bin") as partial, partial.open("wb") as merged:
        for i in order:
            with open(f"{corpora[i].prefix}.bin", "rb") as tokens:
                shutil.copyfileobj(tokens, merged, 1 << 24)
    write_index(new_prefix, [corpora[i].lengths for i in order])
    counts = [sum(len(corpora[i]) for i in order if types[i] == kind) for kind in sorted(set(types))]
    write_counts(f"{new_prefix}.dis", counts)
    edges = [read_counts(f"{corpora[i].prefix}.tmp") for i in order if Path(f"{corpora[i].prefix}.tmp").is_file()]
    write_counts(f"{new_prefix}.tmp", [sum(column) for column in zip(*edges, strict=True)])
    merge_ledgers([corpora[i] for i in order], new_prefix)
    write_json(
        f"{new_prefix}.json",
        {
            **{
                key: corpora[0].settings[key]
                for key in ("vocab_size", "tokenizer_sha256", "seq_length", "bos", "eos")
                if key in corpora[0].settings
            },
            "dtype": corpora[0].tokens.dtype.str,
            "num_samples": sum(counts),
            "num_tokens": sum(len(corpus.tokens) for corpus in corpora),
            "parts": [{"prefix": corpora[i].prefix, "type": types[i], "samples": len(corpora[i])} for i in order],
            "sources": [source for i in order for source in corpora[i].settings.get("sources", [])],
            "knowlm": __version__,
        },
    )


def merge_ledgers(corpora: Sequence["Corpus"], new_prefix: str) -> None:
    """Join the ledgers, if every corpus has one; sources are numbered through."""
    ledgers = [corpus.ledger for corpus in corpora if corpus.ledger is not None]
    if len(ledgers) < len(corpora):
        return
    with replacing(f"{new_prefix}.ledger") as partial, partial.open("wb") as merged:
        sources = 0
        for corpus, ledger in zip(corpora, ledgers, strict=True):
            for first in range(0, len(ledger), BLOCK):
                block = np.array(ledger[first : first + BLOCK])
                block["source"] += sources
                block.tofile(merged)
            sources += len(corpus.settings.get("sources", []))


class _NumbersOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        raise ValueError(f"holds {module}.{name}; only a list of numbers is expected")


def read_counts(path: str | Path) -> list[int]:
    """A ``torch.save`` of ``list[int]``, read without torch and without running anything in it."""
    try:
        with zipfile.ZipFile(require_file(path)) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            counts = _NumbersOnly(io.BytesIO(archive.read(name))).load()
    except (zipfile.BadZipFile, StopIteration, pickle.UnpicklingError, ValueError) as error:
        raise ValueError(f"{path}: not a list of counts ({error}); rebuild the corpus") from None
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise ValueError(f"{path}: not a list of counts; rebuild the corpus")
    return counts


def write_counts(path: str | Path, counts: Sequence[int]) -> None:
    """Write ``list[int]`` as ``torch.save`` does (its zip layout, entries stored), so that releases of 2023 read it."""
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        pickled = pickle.dumps([int(count) for count in counts], protocol=2)
        for name, content in (("data.pkl", pickled), ("byteorder", "little"), ("version", "3\n")):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)  # without the time, so always the same bytes
