"""Model folders of a few numbers, in every layout."""

import json

import torch
from safetensors.torch import save_file

from knowlm.checkpoints import Checkpoint


def save(folder, weights, form="safetensors", shards=1, index=True, **config):
    """A model folder in any of the layouts that Hugging Face has written."""
    folder.mkdir(parents=True)
    names = list(weights)
    stem, suffix = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    files = (
        [f"{stem}.{suffix}"] if shards == 1 else [f"{stem}-{i + 1:05d}-of-{shards:05d}.{suffix}" for i in range(shards)]
    )
    for number, file in enumerate(files):
        part = {name: weights[name] for name in names[number::shards]}
        save_file(part, folder / file) if form == "safetensors" else torch.save(part, folder / file)
    if shards > 1 and index:
        weight_map = {name: files[number % shards] for number, name in enumerate(names)}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


def weights_of(folder):
    with Checkpoint(folder) as checkpoint:
        return dict(checkpoint)


def same_bits(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and torch.equal(one[name].reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8))
        for name in one
    )


def random_weights(generator, shapes, dtypes):
    """Any bits, so NaN and infinities too."""
    weights = {}
    for number, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
        bits = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=generator)
        weights[f"w{number}"] = bits.view(dtype).reshape(shape)
    return weights
