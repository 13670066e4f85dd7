"""Read and write model folders a tensor at a time: memory holds one tensor, however large the model."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from tqdm import tqdm

from knowlm.files import new_folder, read_json, require_space
from knowlm.models import check_model_folder

SHARD_BYTES = 2 * 10**9
SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
OUTPUT_EMBEDDING, INPUT_EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class Checkpoint(Mapping[str, torch.Tensor]):
    """The weights of a model folder by name, each read when asked for.

    Takes one or many ``.safetensors`` or ``pytorch_model*.bin``, with an index or without. ``.bin`` pickles are
    mapped into memory and loaded without running code. Use it in a ``with`` block.
    Raises ValueError naming the file when the folder is no whole model.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        check_model_folder(str(folder))
        self.config = read_json(self.folder / "config.json")

    def __enter__(self) -> "Checkpoint":
        self._files = ExitStack()
        self._sources: dict[str, Mapping | safe_open] = {}
        shards = sorted(self.folder.glob("*.safetensors")) or sorted(self.folder.glob("pytorch_model*.bin"))
        for shard in tqdm(shards, desc=f"open {self.folder.name}", disable=len(shards) < 2 or None):
            if shard.suffix == ".safetensors":
                opened = self._files.enter_context(safe_open(shard, "pt"))
            else:
                opened = load_pickle(shard)
            # Old pickles hold the rotary frequencies, which are computed and no weights.
            self._sources |= {name: opened for name in opened.keys() if not name.endswith("rotary_emb.inv_freq")}  # noqa: SIM118
        return self

    def __exit__(self, *error) -> None:
        self._files.close()
        self._sources.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._sources))

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._sources and name == OUTPUT_EMBEDDING and self.config.get("tie_word_embeddings"):
            name = INPUT_EMBEDDING
        source = self._sources[name]
        return source.get_tensor(name) if hasattr(source, "get_tensor") else source[name]

    def spec(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape, without reading the values where the format allows."""
        source = self._sources.get(name)
        if source is not None and hasattr(source, "get_slice"):
            part = source.get_slice(name)
            names = {text: dtype for dtype, text in SAFETENSORS_NAMES.items()}
            return names[part.get_dtype()], tuple(part.get_shape())
        tensor = self[name]
        return tensor.dtype, tuple(tensor.shape)


def load_pickle(shard: Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``torch.save`` file, mapped into memory; ValueError if it holds anything else."""
    try:
        return torch.load(shard, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # pickle, zip and runtime errors alike
        raise ValueError(
            f"{shard}: damaged, or holds more than weights ({str(error).splitlines()[0]}); "
            "nothing of it was run; download it again"
        ) from None


def check_same_tensors(one: Checkpoint, other: Checkpoint) -> None:
    """Raise ValueError naming the first tensor that only one of the two has, or has in another shape."""
    for name in sorted({*one, *other} - {OUTPUT_EMBEDDING}):
        for here, there in ((one, other), (other, one)):
            if name not in here:
                raise ValueError(f"{here.folder}: lacks {name}, which {there.folder} has; the two aren't one model's")
        if one.spec(name)[1] != other.spec(name)[1]:
            raise ValueError(
                f"{name}: shape {one.spec(name)[1]} in {one.folder}, {other.spec(name)[1]} in {other.folder}; "
                "the two aren't one model's (was the vocabulary extended?)"
            )


def write_checkpoint(
    folder: str | Path,
    like: Checkpoint,
    specs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterator[tuple[str, torch.Tensor]],
) -> None:
    """Write a model folder with ``.safetensors`` shards and the config and tokenizer files of ``like``.

    specs: type and shape of every tensor, in the order in which ``tensors`` yields them. The folder takes its name
    when it is whole. Raises OSError before any work when the disk is too small.
    """
    sizes = {name: dtype.itemsize * torch.Size(shape).numel() for name, (dtype, shape) in specs.items()}
    require_space(folder, sum(sizes.values()))
    shards: list[list[str]] = [[]]
    for name in specs:
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + sizes[name] > SHARD_BYTES:
            shards.append([])
        shards[-1].append(name)
    files = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    )
    with new_folder(folder) as partial, tqdm(total=len(specs), unit="tensor", desc=str(folder), disable=None) as bar:
        for file, names in zip(files, shards, strict=True):
            with open(partial / file, "wb") as shard:
                shard.write(_header({name: specs[name] for name in names}, sizes))
                for expected in names:
                    name, tensor = next(tensors)
                    assert name == expected and (tensor.dtype, tuple(tensor.shape)) == specs[name], name
                    flat = tensor.detach().contiguous().reshape(-1)
                    shard.write(flat.view(torch.uint8).numpy().data)
                    bar.update()
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(sizes.values())},
                "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
            }
            (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
        copy_settings(like.folder, partial)


def _header(specs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], sizes: Mapping[str, int]) -> bytes:
    """The safetensors header: 8 bytes of length, then JSON padded to 8 bytes."""
    entries: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in specs.items():
        entries[name] = {
            "dtype": SAFETENSORS_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + sizes[name]],
        }
        offset += sizes[name]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def copy_settings(source: Path, target: Path) -> None:
    """Copy config, generation config and tokenizer files: everything small that is no weight."""
    for file in sorted(source.iterdir()):
        if (
            file.is_file()
            and file.suffix in (".json", ".model", ".jinja", ".txt")
            and "index" not in file.name
            and file.name != "trainer_state.json"
        ):
            shutil.copyfile(file, target / file.name)
