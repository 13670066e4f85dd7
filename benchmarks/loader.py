"""How fast samples are read: knowlm.corpus.Corpus against Python lists, as the release of 2023 held its index.

    python benchmarks/loader.py --num_samples 10000000

Writes a corpus of short samples to a temporary folder, opens it both ways, each in a process of its own, and draws
samples at random as tensors. Lists take some 90 bytes a sample.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

import numpy as np

from knowlm.cli import ArgumentParser, run
from knowlm.corpus import Corpus, CorpusWriter

DRAWN = 200_000  # samples read
TOKENS = 800  # of each sample read: they overlap in the file, which is small then
SETTINGS = {"vocab_size": 32_000, "bos": 1, "eos": 2}


def main() -> None:
    args = parse_args()
    if args.only:
        print(json.dumps({"lists": read_lists, "ours": read_ours}[args.only[0]](args.only[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        prefix = f"{folder}/corpus"
        write_corpus(prefix, args.num_samples)
        found = {}
        for kind in ("ours", "lists"):
            command = [sys.executable, __file__, "--only", kind, prefix]
            process = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found[kind] = json.loads(process.stdout)
    print(f"{args.num_samples} samples of {TOKENS} tokens, {DRAWN} drawn at random as tensors")
    print("| loader | seconds to open | samples per CPU s | memory over an empty process, MB |\n|---|---|---|---|")
    for kind, (opening, speed, memory) in found.items():
        print(f"| {kind} | {opening:.3f} | {speed:,.0f} | {memory / 1e6:.0f} |")
    print(f"ours / lists: {found['ours'][1] / found['lists'][1]:.1f} × the samples per CPU second")


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
    starts = np.random.default_rng(0).integers(0, 99_000 * TOKENS, num_samples, dtype=np.uint64)
    starts[-1] = 99_999 * TOKENS  # the last sample ends where the file does
    with open(f"{prefix}.idx", "wb") as index:
        starts.tofile(index)
        np.full(num_samples, TOKENS, np.uint16).tofile(index)
    Path(f"{prefix}.dis").unlink()


def drawn(num_samples: int) -> list[int]:
    return np.random.default_rng(1).integers(0, num_samples, DRAWN).tolist()


def anonymous_memory() -> int:
    """Bytes that only this process holds; pages of mapped files can be dropped at any time."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def read_ours(prefix: str) -> tuple[float, float, int]:
    import torch

    empty, begin = anonymous_memory(), time.monotonic()
    corpus = Corpus(prefix)
    opening = time.monotonic() - begin
    numbers, before = drawn(len(corpus)), cpu_seconds()
    for number in numbers:
        torch.from_numpy(corpus[number])
    return opening, DRAWN / (cpu_seconds() - before), anonymous_memory() - empty


def read_lists(prefix: str) -> tuple[float, float, int]:
    import torch

    empty, begin = anonymous_memory(), time.monotonic()
    size = Path(f"{prefix}.idx").stat().st_size // 10
    starts = np.fromfile(f"{prefix}.idx", np.uint64, size).tolist()
    lengths = np.fromfile(f"{prefix}.idx", np.uint16, size, offset=8 * size).tolist()
    tokens = np.memmap(f"{prefix}.bin", np.uint16, "r")
    opening = time.monotonic() - begin
    numbers, before = drawn(size), cpu_seconds()
    for number in numbers:
        torch.tensor(tokens[starts[number] : starts[number] + lengths[number]].tolist())
    return opening, DRAWN / (cpu_seconds() - before), anonymous_memory() - empty


if __name__ == "__main__":
    run(main)
