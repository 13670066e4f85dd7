"""tuned = raw + difference, in floats or in bit patterns, a few megabytes at a time."""

from collections.abc import Iterator

import numpy as np

from knowlm.checkpoint_writer import CheckpointWriter
from knowlm.checkpoints import OUTPUT_EMBEDDING, Checkpoint, Piece, Spec, check_same_tensors, in_file_order
from knowlm.checksums import hash_file
from knowlm.dtypes import BITS, FLOATS, FP8, HELD, SHORT, convert, fit
from knowlm.files import inner_name
from knowlm.manifest import MANIFEST, read_manifest

PROBED = 4  # further tensors that are looked at, to tell another base from a damaged one
EXACT, PLAIN = "exact difference", "difference"  # kinds of manifest


def subtract(new: Piece, old: Piece, exact: bool) -> tuple[np.ndarray, int]:
    """new - old in the dtype of ``new``, or as bit patterns, and how many of them became infinite."""
    before = convert(old.rows, old.dtype, new.dtype)
    return calculate(np.subtract, new.rows, before, new.dtype, exact or new.dtype == "BOOL")


def calculate(
    operation: np.ufunc, one: np.ndarray, other: np.ndarray, dtype: str, of_bits: bool
) -> tuple[np.ndarray, int]:
    """The sum or difference of numbers of a dtype, rounded to it, or of their bit patterns, and how many of them became
    infinite. May overwrite ``one``.
    """
    if of_bits:
        one, other = (array.view(HELD[BITS[array.itemsize]]) for array in (one, other))
        return operation(one, other, out=one), 0
    wide = "F32" if dtype in SHORT else dtype
    one, other = convert(one, dtype, wide), convert(other, dtype, wide)
    with np.errstate(all="ignore"):
        return fit(operation(one, other, out=one), wide, dtype)


def difference_specs(tuned: Checkpoint, exact: bool) -> dict[str, Spec]:
    """Types and shapes of what ``subtract`` gives; ValueError if a plain difference would say nothing."""
    specs = {name: tuned.spec(name) for name in in_file_order(tuned)}
    for name, (dtype, _) in specs.items():
        if dtype in FP8 and not exact:
            fact = f"{name} is {dtype}, too coarse for a difference of numbers"
            raise ValueError(f"{tuned.find(name).file}: {fact}; use --exact")
    return {
        name: (BITS[HELD[dtype].itemsize] if exact or dtype == "BOOL" else dtype, shape)
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
        return dtype, list(shape)

    def is_exact(self, name: str) -> bool:
        if self.manifest:
            return self.manifest["kind"] == EXACT
        return self.raw.spec(name)[0] in FLOATS and self.diff.spec(name)[0] not in FLOATS

    def _tuned_dtype(self, name: str) -> str:
        if name in self.tensors:
            return self.tensors[name]["tuned"]["dtype"]
        dtype = self.diff.spec(name)[0]
        if not self.is_exact(name):
            return dtype
        names = (self.diff.config.get("dtype"), self.diff.config.get("torch_dtype"))
        half = "BF16" if "bfloat16" in names else "F16"
        tuned = {8: "F64", 4: "F32", 2: half}.get(HELD[dtype].itemsize, self.raw.spec(name)[0])
        if HELD[tuned].itemsize != HELD[dtype].itemsize:
            fact = f"{name} has {dtype} for {tuned}, and no {MANIFEST} tells what comes of it"
            raise ValueError(f"{self.diff.find(name).file}: {fact}; download that file too")
        return tuned

    def add_to(self, old: Piece, change: Piece, dtype: str) -> tuple[np.ndarray, int]:
        """The tuned rows in ``dtype``, and how many of their numbers became infinite. After the last rows of a tensor,
        ValueError names file and fact if base or difference aren't what the manifest says.
        """
        if change.digest and self.tensors:
            self._check(old, change)
        tuned = self.tuned[change.name][0]
        of_bits = self.is_exact(change.name) or tuned == "BOOL"
        before = convert(old.rows, old.dtype, tuned)
        rows = change.rows if of_bits else convert(change.rows, change.dtype, tuned)
        rows, infinite = calculate(np.add, before, rows, tuned, of_bits)
        rows, more = fit(rows.view(HELD[tuned]), tuned, dtype)
        return rows, infinite + more

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
