"""tuned = raw + difference, in floats or in bit patterns, a few megabytes at a time."""

from collections.abc import Iterator

import torch

from knowlm.checkpoint_writer import CheckpointWriter
from knowlm.checkpoints import (
    DTYPE_NAMES,
    DTYPES,
    OUTPUT_EMBEDDING,
    Checkpoint,
    Piece,
    Spec,
    check_same_tensors,
    in_file_order,
)
from knowlm.checksums import hash_file
from knowlm.files import inner_name
from knowlm.manifest import MANIFEST, read_manifest

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes; sums of these wrap around
PROBED = 4  # further tensors that are looked at, to tell another base from a damaged one
EXACT, PLAIN = "exact difference", "difference"  # kinds of manifest


def subtract(new: torch.Tensor, old: torch.Tensor, exact: bool) -> torch.Tensor:
    """new - old in the dtype of ``new``, or as bit patterns; overwrites ``new``."""
    old = old.to(new.dtype)
    if exact or new.dtype == torch.bool:
        new, old = new.view(BITS[new.itemsize]), old.view(BITS[new.itemsize])
    return torch.sub(new, old, out=new)


def difference_specs(tuned: Checkpoint, exact: bool) -> dict[str, Spec]:
    """Types and shapes of what ``subtract`` gives."""
    specs = {name: tuned.spec(name) for name in in_file_order(tuned)}
    return {
        name: (BITS[dtype.itemsize] if exact or dtype == torch.bool else dtype, shape)
        for name, (dtype, shape) in specs.items()
    }


def together(names: list[str], one: Checkpoint, other: Checkpoint) -> Iterator[tuple[Piece, Piece]]:
    """The same rows of both models, each read by a thread of its own."""
    return zip(one.pieces(names), other.pieces(names), strict=True)


class Difference:
    """An opened difference: what kind it is, and whether what is read is what it was made from.

    tuned: type and shape of every tensor of the tuned model. manifest: of the difference's folder, or None (those
    published in 2023); the types are then seen from the tensors and the config.
    """

    def __init__(self, raw: Checkpoint, diff: Checkpoint):
        self.raw, self.diff, self.manifest = raw, diff, read_manifest(diff.folder)
        self.tensors: dict[str, dict] = {}
        if self.manifest:
            if self.manifest.get("kind") not in (EXACT, PLAIN):
                raise ValueError(f"{diff.folder}: holds a {self.manifest.get('kind')}; name the difference's folder")
            self.tensors = self.manifest["tensors"]
            self.check_files(self.manifest["files"])
            self.check_specs()
        check_same_tensors(raw, diff)
        self.tuned = {name: (self._tuned_dtype(name), diff.spec(name)[1]) for name in in_file_order(diff)}

    def check_files(self, files: dict) -> None:
        """Raise ValueError naming the first file beside the weights that is missing or isn't that of the manifest."""
        for name, told in files.items():
            path = self.diff.folder / inner_name(name, str(self.diff.folder / MANIFEST))
            if not path.is_file():
                raise ValueError(f"{path}: missing, though {MANIFEST} names it; download it again")
            if path not in self.diff.files and hash_file(path, "blake3") != told["blake3"]:
                raise ValueError(f"{path}: damaged, it isn't what {MANIFEST} says; download it again")

    def check_specs(self) -> None:
        """Raise ValueError naming the file where names, shapes or types aren't those of the manifest."""
        for name, told in self.tensors.items():
            own = self.diff.folder / told["file"]
            if name not in self.diff or self._described(self.diff, name) != (told["dtype"], told["shape"]):
                raise ValueError(f"{own}: damaged, {name} isn't what {MANIFEST} says; download it again")
            if name in self.raw and self._described(self.raw, name) != (told["base"]["dtype"], told["shape"]):
                dtype, shape = self._described(self.raw, name)
                raise ValueError(
                    f"{self.raw.find(name).file}: {name} is {dtype} {shape}; the difference was made with "
                    f"{told['base']['dtype']} {told['shape']}; name that model"
                )
        for name in self.raw:
            if name not in self.tensors and name != OUTPUT_EMBEDDING:
                file = self.raw.find(name).file
                raise ValueError(
                    f"{file}: holds {name}, which the difference's base hadn't; damaged, or another model's"
                )

    @staticmethod
    def _described(model: Checkpoint, name: str) -> tuple[str, list[int]]:
        dtype, shape = model.spec(name)
        return DTYPE_NAMES[dtype], list(shape)

    def is_exact(self, name: str) -> bool:
        if self.manifest:
            return self.manifest["kind"] == EXACT
        return self.raw.spec(name)[0].is_floating_point and not self.diff.spec(name)[0].is_floating_point

    def _tuned_dtype(self, name: str) -> torch.dtype:
        if name in self.tensors:
            return DTYPES[self.tensors[name]["tuned"]["dtype"]]
        dtype = self.diff.spec(name)[0]
        if not self.is_exact(name):
            return dtype
        names = (self.diff.config.get("dtype"), self.diff.config.get("torch_dtype"))
        half = torch.bfloat16 if "bfloat16" in names else torch.float16
        return {4: torch.float32, 2: half}.get(dtype.itemsize, dtype)

    def add_to(self, old: Piece, change: Piece) -> torch.Tensor:
        """The tuned rows; overwrites those of ``change`` where it can. After the last rows of a tensor, ValueError
        names file and fact if base or difference aren't what the manifest says.
        """
        if change.digest and self.tensors:
            self._check(old, change)
        dtype, rows = self.tuned[change.name][0], change.rows
        before = old.rows.to(dtype)
        if self.is_exact(change.name) or dtype == torch.bool:
            return torch.add(before.view(rows.dtype), rows, out=rows).view(dtype)
        rows = rows.to(dtype)
        return torch.add(before, rows, out=rows)

    def check_tuned(self, out: CheckpointWriter) -> None:
        """Raise ValueError if the tuned bits weren't given back, where the difference promises that."""
        for name, told in self.tensors.items():
            same = told["tuned"]["dtype"] == out.tensors[name]["dtype"]
            if self.is_exact(name) and same and told["tuned"]["blake3"] != out.tensors[name]["blake3"]:
                raise ValueError(f"{out.path}: not written: {name} isn't the tuned one; check this machine's memory")

    def _check(self, old: Piece, change: Piece) -> None:
        told = self.tensors[change.name]
        if change.digest != told["blake3"]:
            file = self.diff.find(change.name).file
            raise ValueError(f"{file}: damaged, {change.name} isn't what it was when made; download it again")
        if old.digest != told["base"]["blake3"]:
            raise ValueError(self._about_base(old.name))

    def _about_base(self, name: str) -> str:
        """Is the whole model another one, or is a file damaged? A few more tensors tell."""
        others = [other for other in self.tensors if other != name]
        probed = [piece for piece in self.raw.pieces(others[:: -(-len(others) // PROBED) or 1]) if piece.digest]
        different = sum(piece.digest != self.tensors[piece.name]["base"]["blake3"] for piece in probed)
        if different > len(probed) / 2:
            return f"{self.raw.folder}: another base model than the difference was made from; name or download that one"
        return f"{self.raw.find(name).file}: damaged, {name} isn't what the difference was made from; download it again"
