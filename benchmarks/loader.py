"""How fast samples are read: knowlm.corpus.Corpus against Megatron-LM's IndexedDataset and against Python lists.

    python benchmarks/loader.py --num_samples 10000000

Writes a corpus of short samples to a temporary folder, opens it each way in a process of its own, and draws the same
samples at random as tensors. The release of 2023 held its index in Python lists, some 90 bytes a sample; they are left
out above 30 million samples. IndexedDataset, of the package megatron-core, gets the same tokens and an index of its own
format; it is left out if the package isn't installed.
"""

import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

import numpy as np
from peers import NO_MEGATRON, has_megatron

from knowlm.cli import ArgumentParser, run
from knowlm.corpus import Corpus, CorpusWriter

DRAWN = 200_000  # samples read
TOKENS = 800  # of each sample read: they overlap in the file, which is small then
MOST_LISTED = 30_000_000  # samples that lists are tried with: 3 GB
BLOCK = 1 << 20  # samples written at once
SETTINGS = {"vocab_size": 32_000, "bos": 1, "eos": 2}


def main() -> None:
    args = parse_args()
    if args.only:
        print(json.dumps(measure(args.only[0], args.only[1], args.num_samples)))
        return
    found = {}
    print(f"{args.num_samples} samples of {TOKENS} tokens, {DRAWN} drawn at random as tensors")
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(f"{folder}/ours", args.num_samples)
        write_for_megatron(f"{folder}/ours", f"{folder}/megatron", args.num_samples)
        for kind, prefix in (("ours", "ours"), ("Megatron", "megatron"), ("lists", "ours")):
            if kind == "Megatron" and not has_megatron():
                print(f"Megatron: {NO_MEGATRON}")
            elif kind == "lists" and args.num_samples > MOST_LISTED:
                print(f"lists: left out, they would take {args.num_samples * 90 / 1e9:.0f} GB")
            else:
                command = [sys.executable, "-W", "ignore", __file__, "--num_samples", str(args.num_samples)]
                command += ["--only", kind, f"{folder}/{prefix}"]
                process = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                found[kind] = json.loads(process.stdout)
    print("| loader | seconds to open | samples per CPU s | memory over an empty process, MB | ours |")
    print("|---|---|---|---|---|")
    for kind, (opening, speed, memory) in found.items():
        print(f"| {kind} | {opening:.4f} | {speed:,.0f} | {memory / 1e6:.1f} | {found['ours'][1] / speed:.1f} × |")


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--num_samples", type=int, default=10_000_000, help="in the corpus (default: 10000000)")
    parser.add_argument("--only", nargs=2, metavar="X", help="for this script itself: one loader")
    return parser.parse_args()


def write_corpus(prefix: str, num_samples: int) -> None:
    """A corpus whose index has ``num_samples`` entries, over few tokens."""
    with CorpusWriter(prefix, SETTINGS) as corpus:
        for _ in range(100):
            corpus.add(np.arange(TOKENS * 1000, dtype=np.uint32) % 32_000, [TOKENS] * 1000)
    with open(f"{prefix}.idx", "wb") as index:
        for starts in blocks_of_starts(num_samples):
            starts.tofile(index)
        for starts in blocks_of_starts(num_samples):
            np.full(len(starts), TOKENS, np.uint16).tofile(index)
    Path(f"{prefix}.dis").unlink()


def blocks_of_starts(num_samples: int):
    """Where the samples start, in tokens, BLOCK at a time; always the same."""
    generator = np.random.default_rng(0)
    for first in range(0, num_samples, BLOCK):
        starts = generator.integers(0, 99_000 * TOKENS, min(BLOCK, num_samples - first), dtype=np.uint64)
        if first + BLOCK >= num_samples:
            starts[-1] = 99_999 * TOKENS  # the last sample ends where the file does
        yield starts


def write_for_megatron(ours: str, prefix: str, num_samples: int) -> None:
    """The samples of ``ours`` as one document of an IndexedDataset; its own builder would hold lists of them."""
    os.link(f"{ours}.bin", f"{prefix}.bin")
    with open(f"{prefix}.idx", "wb") as index:
        index.write(struct.pack("<9sQBQQ", b"MMIDIDX", 1, 8, num_samples, 2))  # version 1; 8 is uint16
        for starts in blocks_of_starts(num_samples):
            np.full(len(starts), TOKENS, np.int32).tofile(index)
        for starts in blocks_of_starts(num_samples):
            (starts * 2).astype(np.int64).tofile(index)
        np.array([0, num_samples], np.int64).tofile(index)


def measure(kind: str, prefix: str, num_samples: int) -> tuple[float, float, int]:
    """Seconds to open, samples per CPU second, anonymous bytes at the end over those at the beginning."""
    import torch

    loaders: dict[str, Callable[[str], Any]] = {"ours": Corpus, "lists": Lists}
    if kind == "Megatron":
        from megatron.core.datasets.indexed_dataset import IndexedDataset

        loaders[kind] = IndexedDataset
    to_tensor = torch.tensor if kind == "lists" else torch.from_numpy
    numbers = np.random.default_rng(1).integers(0, num_samples, DRAWN).tolist()
    empty, begin = anonymous_memory(), time.monotonic()
    samples = loaders[kind](prefix)
    opening, before = time.monotonic() - begin, cpu_seconds()
    for number in numbers:
        to_tensor(samples[number])
    return opening, DRAWN / (cpu_seconds() - before), anonymous_memory() - empty


class Lists:
    def __init__(self, prefix: str):
        size = Path(f"{prefix}.idx").stat().st_size // 10
        self.starts = np.fromfile(f"{prefix}.idx", np.uint64, size).tolist()
        self.lengths = np.fromfile(f"{prefix}.idx", np.uint16, size, offset=8 * size).tolist()
        self.tokens = np.memmap(f"{prefix}.bin", np.uint16, "r")

    def __getitem__(self, number: int) -> list[int]:
        return self.tokens[self.starts[number] : self.starts[number] + self.lengths[number]].tolist()


def anonymous_memory() -> int:
    """Bytes that only this process holds; pages of mapped files can be dropped at any time."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    run(main)
