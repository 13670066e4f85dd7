"""What tools/weight_diff.py takes: time and memory against loading both models, as in 2023, and against `cat`.

    python benchmarks/weight_diff.py
    python benchmarks/weight_diff.py --layers 4 --dtype bfloat16

Makes a pair of LLaMA-like models with random weights in a temporary folder (1.1 billion parameters, 22 GB of disk with
what is made of them) and runs all three over it in turn, twice each: the faster run counts. `cat`, measured anew before
each, reads the same two folders and writes one, and waits for the disk as weight_diff.py does. Memory is what a process
has for itself: pages of mapped files can be dropped at any time.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import ArgumentParser, run

SCRIPT = Path(__file__).resolve().parents[1] / "tools/weight_diff.py"


def main() -> None:
    args = parse_args()
    if args.only:
        load_and_subtract(*args.only)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        make_pair(folder, args)
        raw, tuned, diff = (folder / part for part in ("raw", "tuned", "diff"))
        size = sum(file.stat().st_size for file in raw.glob("*.safetensors")) / 1e9
        print(f"a pair of {size:.1f} GB each; seconds of wall time, CPU seconds, GB of memory")
        print("| what | wall s | CPU s | memory GB | cat, wall s | time / cat | time / loading both |")
        print("|---|---|---|---|---|---|---|", flush=True)
        make = [sys.executable, SCRIPT, "make_diff", "--path_raw", raw, "--path_tuned", tuned, "--path_diff", diff]
        recovered = ["--path_raw", raw, "--path_diff", diff, "--path_tuned", folder / "recovered"]
        runs = {
            "loading both, make_diff": (tuned, folder / "loaded", [sys.executable, __file__, "--only", raw, tuned]),
            "make_diff": (tuned, diff, make),
            "make_diff --exact": (tuned, diff, [*make, "--exact"]),
            "recover": (diff, folder / "recovered", [sys.executable, SCRIPT, "recover", *recovered]),
        }
        runs["loading both, make_diff"][2].append(folder / "loaded")
        slow = 0.0
        for what, (second, made, command) in runs.items():
            copy = f"cat raw/*.safetensors > /dev/null; cat {second.name}/*.safetensors > copy; sync copy"
            cats, ours = [], []
            for _ in range(2):
                cats.append(measure(["env", "-C", str(folder), "bash", "-c", copy]))
                (folder / "copy").unlink()
                shutil.rmtree(made, ignore_errors=True)
                ours.append(measure([str(part) for part in command]))
            cat, (wall, cpu, peak) = min(cats)[0], min(ours)
            slow = slow or wall
            figures = f"{wall:.1f} | {cpu:.1f} | {peak / 1e9:.2f} | {cat:.1f} | {wall / cat:.2f} | {wall / slow:.2f}"
            print(f"| {what} | {figures} |", flush=True)
            shutil.rmtree(folder / "loaded", ignore_errors=True)


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--layers", type=int, default=22, help="of the models; 22 make 1.1 billion parameters")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--folder", help="where to make the temporary folder (default: the system's)")
    parser.add_argument("--only", nargs=3, metavar="X", help="for this script itself: the compared way")
    return parser.parse_args()


def make_pair(folder: Path, args: argparse.Namespace) -> None:
    """Two models of the shapes of TinyLlama-1.1B, a layer in memory at a time."""
    import torch

    from knowlm.checkpoint_writer import CheckpointWriter
    from knowlm.dtypes import NAMES, as_array
    from knowlm.files import write_json

    hidden, inner, key_value, dtype = 2048, 5632, 256, getattr(torch, args.dtype)
    layer = {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    layer |= {f"self_attn.{part}_proj": (hidden, hidden) for part in "qo"}
    layer |= {f"self_attn.{part}_proj": (key_value, hidden) for part in "kv"}
    shapes = {"model.embed_tokens.weight": (32_000, hidden), "lm_head.weight": (32_000, hidden)}
    shapes |= {f"model.layers.{n}.{part}.weight": shape for n in range(args.layers) for part, shape in layer.items()}
    write_json(folder / "settings/config.json", {"model_type": "llama", "dtype": args.dtype})
    for seed, name in enumerate(("raw", "tuned")):
        torch.manual_seed(seed)
        specs = {tensor: (NAMES[str(dtype)], shape) for tensor, shape in shapes.items()}
        with CheckpointWriter(folder / name, folder / "settings", specs, {}) as out:
            for tensor, shape in shapes.items():
                out.add(tensor, as_array(torch.randn(shape).to(dtype)))
                out.finish(tensor)


def load_and_subtract(raw: str, tuned: str, out: str) -> None:
    """As the release of 2023 did: both models in memory, one subtracted from the other, saved."""
    from safetensors.torch import load_file, save_file

    Path(out).mkdir()
    one, other = (
        {name: tensor for file in sorted(Path(f).glob("*.safetensors")) for name, tensor in load_file(file).items()}
        for f in (raw, tuned)
    )
    for name in other:
        other[name] -= one[name]
    save_file(other, Path(out) / "model.safetensors")
    with open(Path(out) / "model.safetensors", "rb") as file:
        os.fsync(file.fileno())


def measure(command: list[str]) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds, most bytes of anonymous memory."""
    begin, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while (found := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max(peak, *(int(line.split()[1]) * 1024 for line in status.splitlines() if "RssAnon" in line), 0)
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(found[1])
    if process.returncode:
        raise ValueError(f"{command[1]} ended with code {process.returncode}")
    return time.monotonic() - begin, found[2].ru_utime + found[2].ru_stime, peak


if __name__ == "__main__":
    run(main)
