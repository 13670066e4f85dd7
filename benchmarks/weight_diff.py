"""What tools/weight_diff.py takes: time and memory against loading both models, as in 2023, and against `cat`.

    python benchmarks/weight_diff.py
    python benchmarks/weight_diff.py --layers 4 --dtype bfloat16

Makes a pair of LLaMA-like models with random weights in a temporary folder (1.1 billion parameters, 17 GB of disk with
what is made of them) and runs all three over it in turn. `cat` reads both folders and writes one, and waits for the
disk as weight_diff.py does. Memory is what a process has for itself: pages of mapped files can be dropped at any time.
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
        print("| what | wall s | CPU s | memory GB | time / cat | time / loading both |\n|---|---|---|---|---|---|")
        ours = [sys.executable, SCRIPT]
        copy = "cat raw/*.safetensors > /dev/null; cat tuned/*.safetensors > copy; sync copy"
        runs = {
            "cat": ["env", "-C", folder, "bash", "-c", copy],
            "loading both, make_diff": [sys.executable, __file__, "--only", raw, tuned, folder / "loaded"],
            "make_diff": [*ours, "make_diff", "--path_raw", raw, "--path_tuned", tuned, "--path_diff", diff],
            "make_diff --exact": [*ours, "make_diff", "--path_raw", raw, "--path_tuned", tuned, "--path_diff", diff],
            "recover": [*ours, "recover", "--path_raw", raw, "--path_diff", diff, "--path_tuned", folder / "again"],
        }
        runs["make_diff --exact"].append("--exact")
        walls: dict[str, float] = {}
        for what, command in runs.items():
            if what != "recover":
                shutil.rmtree(diff, ignore_errors=True)
            walls[what], cpu, peak = measure([str(part) for part in command])
            ratios = [walls[what] / walls[base] if base in walls else 0.0 for base in list(runs)[:2]]
            print(
                f"| {what} | {walls[what]:.1f} | {cpu:.1f} | {peak / 1e9:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} |",
                flush=True,
            )
            for made in ("copy", "loaded"):
                remove(folder / made)


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
        specs = {tensor: (dtype, shape) for tensor, shape in shapes.items()}
        with CheckpointWriter(folder / name, folder / "settings", specs, {}) as out:
            for tensor, shape in shapes.items():
                out.add(tensor, torch.randn(shape).to(dtype))
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


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


if __name__ == "__main__":
    run(main)
