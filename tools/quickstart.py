"""The whole way once: base model, corpus, pretraining, difference, instructions, LoRA, scores, merging, answers.

    ./quickstart.sh [--base_model FOLDER] [--output_dir runs/quickstart] [--serve | --web]

Every step is a script of the README. A step that is done is not done again; a killed one starts over, training goes on
from its last checkpoint. Output: report.md, metrics.json and every step's files in the output folder.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_WEIGHTS = 540_000_000  # bytes of SmolLM2-135M in 32 bits
sys.path.insert(0, str(ROOT))  # the checkout holds knowlm/

from quickstart_report import POEM, collect, report, summary

from knowlm.cli import ArgumentParser, end_with_parent, run
from knowlm.files import read_json, require_space, write_json, write_text
from knowlm.models import check_model_folder, cpu_multiplies_bf16


@dataclass
class Step:
    """Commands, run one after another. ``outputs`` of an unfinished step are removed first, unless it resumes."""

    name: str
    title: str
    commands: list[list[str]]
    outputs: list[Path]
    resumes: bool = False


def main() -> None:
    args = parse_args()
    name = f"quickstart-{Path(args.base_model).absolute().name}" if args.base_model else "quickstart"
    out = Path(args.output_dir or ROOT / "runs" / name).absolute()
    if args.base_model:
        check_model_folder(args.base_model)
    base = Path(args.base_model).absolute() if args.base_model else out / "base"
    steps = plan(out, base)
    out.mkdir(parents=True, exist_ok=True)
    require_space(out, space_needed(base, out))
    # Freed memory is kept for the next step instead of returned: 15 % less time in training on a CPU.
    os.environ |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(10**12)}
    fingerprint = hashlib.sha256(str(base).encode())
    for number, step in enumerate(steps, 1):
        fingerprint.update(json.dumps(step.commands).encode() + inputs_digest(step, out))
        do_step(step, f"[{number}/{len(steps)}]", out, fingerprint.hexdigest())
    metrics = collect(out, base, [step.name for step in steps])
    write_json(out / "metrics.json", metrics)
    write_text(out / "report.md", report(metrics, {step.name: step.title for step in steps}))
    print(summary(metrics, out), flush=True)
    if args.serve:
        print("when the server says it is ready, ask it in another terminal with the curl that it prints", flush=True)
        become("inference/launch_vllm.py", "--model", out / "merged", "--port", 8090, "--max-model-len", 2048)
    if args.web:
        become("examples/generate_lora_web.py", "--base_model", out / "merged")


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--base_model", help="Hugging Face folder of a LLaMA-like model (default: SmolLM2-135M)")
    parser.add_argument(
        "--output_dir", help="folder for everything made (default: runs/quickstart, and -NAME for a model of yours)"
    )
    then = parser.add_mutually_exclusive_group()
    then.add_argument("--serve", action="store_true", help="then serve the merged model with vLLM on port 8090")
    then.add_argument("--web", action="store_true", help="then open the LoRA page on port 7860")
    return parser.parse_args()


def space_needed(base: Path, out: Path) -> int:
    """Bytes that the steps still write: eight times the base's weights, two of these as optimizer states."""
    weights = sum(file.stat().st_size for file in base.glob("*") if file.suffix in (".safetensors", ".bin"))
    made = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return 8 * max(weights, DEFAULT_WEIGHTS if base == out / "base" else 0) - made


def become(script: str, *arguments) -> None:
    """Replace this process by a script's."""
    os.execv(sys.executable, [sys.executable, str(ROOT / script), *map(str, arguments)])


def plan(out: Path, base: Path) -> list[Step]:
    """The steps of quickstart.toml, their commands in words; a path that is filled in stays one word."""
    recipe = tomllib.loads((ROOT / "tools/quickstart.toml").read_text(encoding="utf-8"))
    rows = 360 if cpu_multiplies_bf16() else 120  # to tune on: so many take about three minutes
    values = {"root": ROOT, "out": out, "base": base, "poem": POEM, "rows": rows}

    def words(command: str) -> list[str]:
        for part in ("pack", "score", "answer"):
            command = command.replace(f"{{{part}}}", recipe[part])
        return [word.format(**values) for word in shlex.split(command)]

    return [
        Step(
            name=step["name"],
            title=step["title"],
            commands=[words(command) for command in step["commands"]],
            outputs=[out / output for output in step["outputs"]],
            resumes=step.get("resumes", False),
        )
        for step in recipe["step"]
        if step["name"] != "base" or base == out / "base"
    ]


def inputs_digest(step: Step, out: Path) -> bytes:
    """A checksum of the step's scripts and of this repository's data that it reads: changed, it is done again."""
    digest = hashlib.sha256()
    for argument in sorted(set(chain(*step.commands))):
        path = ROOT / argument
        if len(argument) < 4096 and path.is_relative_to(ROOT) and not path.is_relative_to(out):
            for file in sorted(path.glob("*.tsv")) if path.is_dir() else [path] if path.is_file() else []:
                digest.update(file.read_bytes())
    return digest.digest()


def do_step(step: Step, number: str, out: Path, fingerprint: str) -> None:
    """Run a step's commands unless its record says that just these were done; then write the record."""
    record = out / "steps" / f"{step.name}.json"
    done = read_json(record) if record.is_file() else {}
    if done.get("fingerprint") == fingerprint:
        print(f"{number} {step.title}: done before, {done['seconds']:.0f} s", flush=True)
        return
    started = out / "steps" / f"{step.name}.started"
    going_on = started.is_file() and started.read_text() == fingerprint
    if not (step.resumes and going_on):
        record.unlink(missing_ok=True)
        for output in step.outputs:
            shutil.rmtree(output, ignore_errors=True)
    write_text(started, fingerprint)
    print(f"{number} {step.title}{', going on' if going_on and step.resumes else ''}", flush=True)
    start, peak = time.monotonic(), 0
    for command in step.commands:
        peak = max(peak, run_command(command))
    seconds = time.monotonic() - start
    write_json(record, {"fingerprint": fingerprint, "seconds": seconds, "peak_gb": peak / 1e9})
    started.unlink()
    print(f"{number} {step.title}: {seconds:.0f} s, {peak / 1e9:.1f} GB", flush=True)


def run_command(command: list[str]) -> int:
    """Run a script; returns its peak memory in bytes. A failure ends the quickstart with the script's own message."""
    arguments = [sys.executable, str(ROOT / command[0]), *command[1:]]
    process = subprocess.Popen(arguments, cwd=ROOT, preexec_fn=partial(end_with_parent, os.getpid()))
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(
            f"{command[0]} ended with code {process.returncode}; "
            "mend what it says above, then run ./quickstart.sh again: it goes on here"
        )
    return usage.ru_maxrss * 1024


if __name__ == "__main__":
    run(main)
