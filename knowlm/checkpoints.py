"""Read model folders in pieces: memory holds a few megabytes of a tensor, however large the model."""

import json
import math
import os
import re
import warnings
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar

import numpy as np
from blake3 import blake3

from knowlm.dtypes import HELD, NAMES, as_array, torch_dtype
from knowlm.files import read_json
from knowlm.models import check_weight_folder, find_weights

if TYPE_CHECKING:
    import torch

OUTPUT_EMBEDDING, INPUT_EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
PIECE = 1 << 18  # elements read at once: they stay in the cache from reading to writing
AHEAD = BEHIND = 2  # pieces that are read before they are needed, and that may wait to be written

Spec = tuple[str, tuple[int, ...]]  # dtype and shape
T = TypeVar("T")


class Piece(NamedTuple):
    """Some rows of a tensor (see ``as_rows``), ``first`` being the number of the first. They are overwritten once
    ``BEHIND`` more pieces were taken. The last piece of a tensor has the BLAKE3 of the whole one's bytes.
    """

    name: str
    dtype: str
    first: int
    rows: np.ndarray
    digest: str | None


@dataclass
class Stored:
    """Where the bytes of a tensor are: in a safetensors file at ``offset``, or in a mapped pickle."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    content: BinaryIO | np.ndarray  # of rows
    offset: int = 0

    def read(self, first: int, rows: np.ndarray) -> None:
        """Fill ``rows`` with those from number ``first`` on."""
        if isinstance(self.content, np.ndarray):
            rows[...] = self.content[first : first + len(rows)]
            return
        buffer = as_bytes(rows)
        position = self.offset + first * (buffer.nbytes // max(len(rows), 1))
        while buffer.nbytes:
            count = os.preadv(self.content.fileno(), [buffer], position)
            if not count:
                raise ValueError(f"{self.file}: ends before its tensors do; download or make it again")
            buffer, position = buffer[count:], position + count


class Checkpoint(Mapping[str, "torch.Tensor"]):
    """The weights of a model folder by name, each read when asked for.

    Takes one or many ``.safetensors`` or ``pytorch_model*.bin``, with an index or without. ``.bin`` pickles are
    mapped into memory and loaded without running code. Use it in a ``with`` block.
    Raises ValueError naming the file when the folder is no whole model.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        check_weight_folder(str(folder))
        self.config = read_json(self.folder / "config.json")

    def __enter__(self) -> "Checkpoint":
        self._open = ExitStack()
        self.stored: dict[str, Stored] = {}
        self.files, places = find_weights(self.folder)
        for file in self.files:
            found = self._safetensors(file) if file.suffix == ".safetensors" else _mapped(file)
            for name, it in found.items():
                if name in self.stored and name not in places:
                    raise ValueError(f"{file}: holds {name}, as {self.stored[name].file.name} does; remove one of them")
                # Old pickles hold the rotary frequencies, which are computed and no weights.
                is_meant = self.folder / places.get(name, file.name) == file
                if is_meant and not name.endswith("rotary_emb.inv_freq"):
                    self.stored[name] = it
        for name in places:
            if name not in self.stored and not name.endswith("rotary_emb.inv_freq"):
                raise ValueError(f"{self.folder / places[name]}: lacks {name}, unlike its index says; get it again")
        if not self.stored:
            raise ValueError(f"{self.folder}: its files hold no weights; download them again")
        return self

    def _safetensors(self, file: Path) -> dict[str, Stored]:
        content = self._open.enter_context(file.open("rb", buffering=0))
        stored = {}
        for name, dtype, shape, offset in read_header(file):
            stored[name] = Stored(file, dtype, shape, content, offset)
        return stored

    def __exit__(self, *error) -> None:
        self._open.close()
        self.stored.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.stored))

    def __len__(self) -> int:
        return len(self.stored)

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def __getitem__(self, name: str) -> "torch.Tensor":
        import torch

        stored = self.find(name)
        tensor = torch.empty(stored.shape, dtype=torch_dtype(stored.dtype))
        if tensor.numel():
            stored.read(0, as_array(tensor.view(shape_in_rows(stored.shape))))
        return tensor

    def find(self, name: str) -> Stored:
        """Where a tensor is, a KeyError if nowhere. A model with tied embeddings stores only one of the two."""
        if name not in self.stored and name == OUTPUT_EMBEDDING and self.config.get("tie_word_embeddings"):
            name = INPUT_EMBEDDING
        return self.stored[name]

    def spec(self, name: str) -> Spec:
        """Type and shape, without reading the values."""
        stored = self.find(name)
        return stored.dtype, stored.shape

    def pieces(self, names: Iterable[str], together: int = 1) -> Iterator[Piece]:
        """The rows of the tensors in order, read ahead by a thread of their own; ``together`` rows aren't separated."""
        return read_ahead(self._pieces(list(names), together))

    def _pieces(self, names: list[str], together: int) -> Iterator[Piece]:
        plans = {name: (self.find(name), rows_at_once(self.find(name).shape, together)) for name in names}
        sizes = [
            rows * math.prod(stored.shape[1:][-1:]) * HELD[stored.dtype].itemsize for stored, rows in plans.values()
        ]
        ring = [np.empty(max(sizes, default=0), np.uint8) for _ in range(AHEAD + 1 + BEHIND)]
        number = 0
        for name, (stored, rows) in plans.items():
            hasher, (total, *width) = blake3(), shape_in_rows(stored.shape)
            for first in range(0, max(total, 1), rows):
                shape = (min(rows, total - first), *width)
                size = math.prod(shape) * HELD[stored.dtype].itemsize
                piece = ring[number % len(ring)][:size].view(HELD[stored.dtype]).reshape(shape)
                if size:
                    stored.read(first, piece)
                    hasher.update(as_bytes(piece))
                yield Piece(name, stored.dtype, first, piece, hasher.hexdigest() if first + rows >= total else None)
                number += 1

    def identity(self) -> list:
        """Tells the model's files from any others, by their sizes and times."""
        return identity([self.folder / "config.json", *self.files])


def identity(files: Sequence[Path]) -> list:
    found = [(file.absolute(), file.stat()) for file in files]
    return [[str(path), status.st_size, status.st_mtime_ns] for path, status in found]


def in_file_order(model: Checkpoint) -> list[str]:
    """Tensor names as they lie on disk, which is how they are read fastest."""
    return sorted(model, key=lambda name: (str(model.stored[name].file), model.stored[name].offset, name))


def read_header(file: Path) -> list[tuple[str, str, tuple[int, ...], int]]:
    """(name, dtype, shape, offset in the file) of each tensor of a safetensors file that ``check_safetensors`` passed.

    The format: 8 bytes with the length of a JSON object, that object, the tensors' bytes.
    """
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        entries = json.loads(content.read(length))
    entries.pop("__metadata__", None)
    for name, entry in entries.items():
        if entry["dtype"] not in HELD:
            raise ValueError(f"{file}: {name} has type {entry['dtype']}; {', '.join(HELD)} are supported")
    return [
        (name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
    ]


def _mapped(file: Path) -> dict[str, Stored]:
    stored = {}
    for name, tensor in load_pickle(file).items():
        dtype, shape = NAMES.get(str(tensor.dtype)), tuple(tensor.shape)
        if not dtype or str(tensor.layout) != "torch.strided":
            raise ValueError(f"{file}: {name} has type {tensor.dtype}; {', '.join(HELD)} are supported")
        stored[name] = Stored(file, dtype, shape, as_array(tensor.reshape(shape_in_rows(shape))))
    return stored


def load_pickle(file: Path) -> dict[str, "torch.Tensor"]:
    """The tensors of a ``torch.save`` file, mapped into memory; ValueError if it holds anything else."""
    import torch

    try:
        is_mapped = zipfile.is_zipfile(file)  # as PyTorch writes since 1.6; older ones are read whole
        with warnings.catch_warnings(action="ignore"):  # an odd pickle is told of below
            found = torch.load(file, map_location="cpu", mmap=is_mapped, weights_only=True)
    except Exception as error:  # pickle, zip and runtime errors alike
        code = re.search(r"GLOBAL (\S+)", str(error))
        fact = f"holds {code[1]}, which is no weight" if code else "cut short, damaged or no file of weights"
        raise ValueError(f"{file}: {fact}; nothing of it was run; download it again") from None
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items()
    ):
        raise ValueError(f"{file}: holds something else than a model's tensors by name; download it again")
    return found


def shape_in_rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(rows, numbers of a row): all dimensions but the last are taken together; (numbers,) where there is only one."""
    return (math.prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (math.prod(shape),)


def rows_at_once(shape: tuple[int, ...], together: int = 1) -> int:
    """A multiple of ``together``; the same for one shape in any dtype, so that two models' pieces fit together."""
    rows = PIECE // max(math.prod(shape[1:][-1:]), 1)
    return max(rows // together, 1) * together


def as_bytes(array: np.ndarray) -> memoryview:
    """The same memory; ``array`` must be contiguous."""
    return array.reshape(-1).view(np.uint8).data


def read_ahead(items: Iterator[T], depth: int = AHEAD) -> Iterator[T]:
    """The same items, the next ``depth`` of them made by another thread before they are asked for."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]


def check_same_tensors(one: Checkpoint, other: Checkpoint) -> None:
    """Raise ValueError naming the first tensor that only one of the two has, or has in another shape."""
    for name in sorted({*one, *other}):
        for here, there in ((one, other), (other, one)):
            if name not in here and not (name == OUTPUT_EMBEDDING and here.config.get("tie_word_embeddings")):
                raise ValueError(f"{here.folder}: lacks {name}, which {there.folder} has; the two aren't one model's")
        if one.spec(name)[1] != other.spec(name)[1]:
            raise ValueError(
                f"{name}: shape {one.spec(name)[1]} in {one.folder}, {other.spec(name)[1]} in {other.folder}; "
                "the two aren't one model's (was the vocabulary extended?)"
            )
