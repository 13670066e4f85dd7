"""Dtypes by the names that safetensors gives them: how numpy holds their numbers, and how one becomes another.

Numbers are calculated with in numpy, which starts at once. PyTorch, whose import takes 1.7 s, only turns short floats
into longer ones and back: numpy lacks bf16 and fp8, and takes ten times as long for fp16.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

DTYPES = {  # how numpy holds it, what PyTorch calls it
    "F64": ("<f8", "float64"),
    "F32": ("<f4", "float32"),
    "F16": ("<f2", "float16"),
    "BF16": ("<u2", "bfloat16"),
    "F8_E4M3": ("|u1", "float8_e4m3fn"),
    "F8_E5M2": ("|u1", "float8_e5m2"),
    "F8_E8M0": ("|u1", "float8_e8m0fnu"),
    "I64": ("<i8", "int64"),
    "I32": ("<i4", "int32"),
    "I16": ("<i2", "int16"),
    "I8": ("|i1", "int8"),
    "U64": ("<u8", "uint64"),
    "U32": ("<u4", "uint32"),
    "U16": ("<u2", "uint16"),
    "U8": ("|u1", "uint8"),
    "BOOL": ("|b1", "bool"),
}
HELD = {dtype: np.dtype(held) for dtype, (held, _) in DTYPES.items()}
NAMES = {f"torch.{name}": dtype for dtype, (_, name) in DTYPES.items()}  # of a tensor's dtype as text
FP8 = ("F8_E4M3", "F8_E5M2", "F8_E8M0")
SHORT = ("F16", "BF16", *FP8)
FLOATS = ("F64", "F32", *SHORT)
BITS = {1: "U8", 2: "I16", 4: "I32", 8: "I64"}  # what a pattern of so many bytes is saved as; its sums wrap around


def as_tensor(array: np.ndarray, dtype: str) -> "torch.Tensor":
    """The same memory."""
    import torch

    return torch.from_numpy(array).view(torch_dtype(dtype))


def as_array(tensor: "torch.Tensor") -> np.ndarray:
    """The same memory."""
    import torch

    held = HELD[NAMES[str(tensor.dtype)]]
    return tensor.detach().view(getattr(torch, held.name)).numpy()


def torch_dtype(dtype: str) -> "torch.dtype":
    import torch

    return getattr(torch, DTYPES[dtype][1])


def convert(rows: np.ndarray, dtype: str, to: str) -> np.ndarray:
    """The numbers in another dtype, each rounded to the nearest there; the same array if the dtype is the same."""
    if dtype == to:
        return rows
    if dtype in SHORT or to in SHORT:
        return as_array(as_tensor(rows, dtype).to(torch_dtype(to)))
    with np.errstate(all="ignore"):
        return rows.astype(HELD[to])


def fit(rows: np.ndarray, dtype: str, to: str) -> tuple[np.ndarray, int]:
    """The numbers in another dtype, and how many of them are too large for fp16 and so became infinite."""
    found = convert(rows, dtype, to)
    if to != "F16" or dtype == to or (found.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00:
        return found, 0
    return found, int((np.isfinite(convert(rows, dtype, "F64")) & ~np.isfinite(found)).sum())


def sum_of(rows: np.ndarray, dtype: str) -> float:
    """The sum of all numbers, within a row in 32 bits."""
    with np.errstate(all="ignore"):
        return float(convert(rows, dtype, "F32").sum(-1, dtype=np.float32).sum(dtype=np.float64))
