"""What lies beside a model's files and tells whether they are whole: their BLAKE3 and that of every tensor."""

import json
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from knowlm.files import inner_name, read_json, write_json

MANIFEST = "knowlm_manifest.json"


def write_manifest(folder: Path, content: dict) -> None:
    """content: ``files`` {name: {bytes, blake3}}, ``tensors`` {name: {file, shape, dtype, blake3, …}} and what else."""
    write_json(folder / MANIFEST, {**content, "blake3": digest_of(content)})


def read_manifest(folder: str | Path) -> dict | None:
    """The manifest of a folder, None if it has none; ValueError if it was changed since it was written."""
    path = Path(folder) / MANIFEST
    return open_manifest(path) if path.is_file() else None


def require_model(folder: str | Path) -> None:
    """Raise ValueError if a folder's manifest says that it holds a difference."""
    kind = (read_manifest(folder) or {}).get("kind")
    if "difference" in str(kind):
        raise ValueError(f"{folder}: not a model but the {kind} of two; recover the model from it, then name that")


def check_files(folder: str | Path) -> None:
    """Raise ValueError naming the first file that a folder's manifest lists and that is missing, or a weight file of
    another size: a copy that was broken off. Other files may have been edited since. Reads no weights.
    """
    for name, told in (read_manifest(folder) or {"files": {}})["files"].items():
        path = Path(folder) / inner_name(name, str(Path(folder) / MANIFEST))
        if not path.is_file():
            raise ValueError(f"{path}: missing, though {MANIFEST} names it; copy or make the folder again")
        if path.suffix in (".safetensors", ".bin") and path.stat().st_size != told["bytes"]:
            raise ValueError(
                f"{path}: has {path.stat().st_size} bytes, {MANIFEST} says {told['bytes']}; copy or make it again"
            )


def open_manifest(path: Path) -> dict:
    content = read_json(path)
    if not isinstance(content, dict) or content.pop("blake3", None) != digest_of(content):
        raise ValueError(f"{path}: damaged, it doesn't have its own BLAKE3; download it again")
    facts = {"files": {"bytes", "blake3"}, "tensors": {"file", "shape", "dtype", "blake3"}}
    if "difference" in str(content.get("kind")):
        facts["tensors"] |= {"base", "tuned"}
    for part, names in facts.items():
        listed = content.get(part)
        if not isinstance(listed, dict) or not all(
            isinstance(it, dict) and names <= it.keys() for it in listed.values()
        ):
            raise ValueError(f"{path}: has no {part} as weight_diff.py tells them; make it again")
    return content


def digest_of(content: Mapping) -> str:
    return blake3(json.dumps(content, sort_keys=True).encode()).hexdigest()
