"""Packed corpora on disk: ``PREFIX.bin .idx .dis .tmp`` as published in 2023, and ``PREFIX.json`` with what they lack.

.bin   token ids of all samples one after another
.idx   all start offsets in tokens, then all lengths in tokens
.dis   samples per data type, in file order (a ``torch.save`` of ``list[int]``)
.tmp   samples with BOS only, EOS only, neither, both (the same)
.json  token dtype, tokenizer, settings, counts
"""

import io
import json
import os
import pickle
import zipfile
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from knowlm import __version__
from knowlm.files import replacing, require_file, require_space, write_json

START = np.dtype("<u8")  # where a sample starts in .bin, in tokens, not bytes
LENGTH = np.dtype("<u2")  # a sample has fewer than 65,536 tokens
SUFFIXES = (".bin", ".idx", ".dis", ".tmp", ".json")


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
        self.starts = np.memmap(index, START, "r", shape=(count,))
        self.lengths = np.memmap(index, LENGTH, "r", offset=8 * count, shape=(count,))
        tokens = require_file(f"{prefix}.bin")
        expected = int(self.starts[-1]) + int(self.lengths[-1])
        if tokens.stat().st_size != expected * token.itemsize:
            raise ValueError(
                f"{tokens}: {tokens.stat().st_size} bytes, its index says {expected * token.itemsize}; "
                "copy both files again or rebuild them with pretrain/preprocess.py"
            )
        self.tokens = np.memmap(tokens, token, "r")
        self.type_counts = read_counts(f"{prefix}.dis") if Path(f"{prefix}.dis").is_file() else [count]
        if sum(self.type_counts) != count:
            raise ValueError(
                f"{prefix}.dis: counts {sum(self.type_counts)} samples, the index {count}; merge the corpora again"
            )

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, sample: int) -> np.ndarray:
        start = int(self.starts[sample])
        return self.tokens[start : start + int(self.lengths[sample])]


class CorpusWriter:
    """Appends samples to a new corpus; the files take their names when the ``with`` block ends well.

    settings: what the sidecar keeps besides counts; ``vocab_size`` decides the token dtype.
    """

    def __init__(self, prefix: str | Path, settings: dict):
        self.prefix, self.settings = str(prefix), dict(settings)
        self.dtype = token_dtype(settings["vocab_size"])
        self.lengths = array("H")
        self.edges = [0, 0, 0, 0]  # samples with BOS only, EOS only, neither, both
        self.num_tokens = 0

    def __enter__(self) -> "CorpusWriter":
        Path(self.prefix).parent.mkdir(parents=True, exist_ok=True)
        self._file = open(f"{self.prefix}.bin.partial", "wb")
        return self

    def add(self, ids: np.ndarray, bos: int, eos: int) -> None:
        """ids: (tokens,), at most 65,535 of them."""
        ids.astype(self.dtype).tofile(self._file)
        self.lengths.append(len(ids))
        self.num_tokens += len(ids)
        starts, ends = ids[0] == bos, ids[-1] == eos
        self.edges[3 if starts and ends else 0 if starts else 1 if ends else 2] += 1

    def __exit__(self, error_type, *_) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if error_type or not self.lengths:
            os.unlink(f"{self.prefix}.bin.partial")
            if not error_type:
                raise ValueError(
                    f"{self.prefix}: no sample is left to write; look at the input and --min_sample_tokens"
                )
            return
        os.replace(f"{self.prefix}.bin.partial", f"{self.prefix}.bin")
        lengths = np.frombuffer(self.lengths, np.uint16)
        write_index(self.prefix, lengths)
        write_counts(f"{self.prefix}.dis", [len(lengths)])
        write_counts(f"{self.prefix}.tmp", self.edges)
        write_json(
            f"{self.prefix}.json",
            {
                **self.settings,
                "dtype": self.dtype.str,
                "num_samples": len(lengths),
                "num_tokens": self.num_tokens,
                "knowlm": __version__,
            },
        )


def write_index(prefix: str, lengths: np.ndarray) -> None:
    """lengths: (samples,) tokens each, in file order."""
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.uint64)[:-1]]).astype(START)
    with replacing(f"{prefix}.idx") as partial, partial.open("wb") as index:
        starts.tofile(index)
        lengths.astype(LENGTH).tofile(index)


def merge_corpora(prefixes: Sequence[str], types: Sequence[int], new_prefix: str) -> "Corpus":
    """Join corpora; samples of one data type lie together, types in ascending order.

    Raises ValueError when the corpora weren't made with one tokenizer.
    """
    if len(prefixes) != len(types):
        raise ValueError(f"{len(prefixes)} corpora but {len(types)} types; give one type number for each corpus")
    corpora = [Corpus(prefix) for prefix in prefixes]
    for corpus in corpora[1:]:
        for key in ("dtype", "tokenizer_sha256"):
            if corpus.settings.get(key) != corpora[0].settings.get(key):
                raise ValueError(
                    f"{corpus.prefix}: made with another tokenizer than {corpora[0].prefix} ({key} differs); "
                    "write both with the same --tokenizer_path"
                )
    order = sorted(range(len(corpora)), key=lambda i: types[i])
    require_space(Path(new_prefix).parent, sum(corpus.tokens.nbytes + 10 * len(corpus) for corpus in corpora))
    with replacing(f"{new_prefix}.bin") as partial, partial.open("wb") as merged:
        for i in order:
            with open(f"{corpora[i].prefix}.bin", "rb") as tokens:
                while block := tokens.read(1 << 24):
                    merged.write(block)
    write_index(new_prefix, np.concatenate([corpora[i].lengths for i in order]))
    counts = [sum(len(corpora[i]) for i in order if types[i] == kind) for kind in sorted(set(types))]
    write_counts(f"{new_prefix}.dis", counts)
    edges = [read_counts(f"{corpora[i].prefix}.tmp") for i in order if Path(f"{corpora[i].prefix}.tmp").is_file()]
    write_counts(f"{new_prefix}.tmp", [sum(column) for column in zip(*edges, strict=True)])
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
            "sources": [{"prefix": corpora[i].prefix, "type": types[i], "samples": len(corpora[i])} for i in order],
            "knowlm": __version__,
        },
    )
    return Corpus(new_prefix)


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
        archive.writestr("archive/data.pkl", pickle.dumps([int(count) for count in counts], protocol=2))
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
