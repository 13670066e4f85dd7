"""The whole way once: base model, corpus, pretraining, difference, instructions, LoRA, scores, merging, answers.

    ./quickstart.sh [--base_model FOLDER] [--output_dir runs/quickstart] [--serve | --web]

Every step is a script of the README. A step that is done is not done again; a killed one starts over, training goes on
from its last checkpoint. Output: report.md, metrics.json and every step's files in the output folder.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout holds knowlm/

from knowlm.cli import ArgumentParser, run
from knowlm.files import read_json, read_records, write_json, write_text
from knowlm.models import check_model_folder

POEM = "床前明月光，"
SOURCES = {"chinese_poems": ("chinese", 0), "chinese_articles": ("chinese", 0), "english_stories": ("english", 1),
           "english_questions": ("english", 1), "code": ("code", 2)}  # name: (language, data type)
HELDOUT = {"heldout_chinese": ("chinese", 0), "heldout_english": ("english", 1), "heldout_code": ("code", 2)}


@dataclass
class Step:
    """Commands, run one after another; ``outputs`` are removed before a step that was not finished, unless it resumes."""

    name: str
    title: str
    commands: list[list[str]]
    outputs: list[Path]
    resumes: bool = False


def main() -> None:
    args = parse_args()
    out = Path(args.output_dir).absolute()
    if args.base_model:
        check_model_folder(args.base_model)
    base = Path(args.base_model).absolute() if args.base_model else out / "base"
    steps = plan(out, base, download=not args.base_model)
    out.mkdir(parents=True, exist_ok=True)
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # huge pages: a quarter less CPU time in training
    fingerprint = hashlib.sha256(str(base).encode())
    for number, step in enumerate(steps, 1):
        fingerprint.update(json.dumps(step.commands).encode() + inputs_digest(step))
        do_step(step, f"[{number}/{len(steps)}]", out, fingerprint.hexdigest())
    metrics = collect(out, base, steps)
    write_json(out / "metrics.json", metrics)
    write_text(out / "report.md", report(metrics, out))
    print(summary(metrics, out), flush=True)
    if args.serve:
        print("when the server says it is ready, ask it in another terminal with the curl that it prints", flush=True)
        os.execv(sys.executable, [sys.executable, str(ROOT / "inference/launch_vllm.py"), "--model", str(out / "merged"),
                                  "--port", "8090", "--max-model-len", "2048"])
    if args.web:
        os.execv(sys.executable, [sys.executable, str(ROOT / "examples/generate_lora_web.py"),
                                  "--base_model", str(out / "merged")])


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--base_model", help="Hugging Face folder of a LLaMA-like model (default: SmolLM2-135M)")
    parser.add_argument("--output_dir", default=str(ROOT / "runs" / "quickstart"), help="folder for everything made")
    then = parser.add_mutually_exclusive_group()
    then.add_argument("--serve", action="store_true", help="then serve the merged model with vLLM on port 8090")
    then.add_argument("--web", action="store_true", help="then open the LoRA page on port 7860")
    return parser.parse_args()


def plan(out: Path, base: Path, download: bool) -> list[Step]:
    def script(name: str, *command: str, **flags) -> list[str]:
        values = [[f"--{flag}"] if value is True else [f"--{flag}", str(value)] for flag, value in flags.items()]
        return [str(ROOT / name), *command, *chain(*values)]

    def write(source: str, language: str) -> list[str]:
        return script("pretrain/preprocess.py", mode="write", file_path=ROOT / f"pretrain/data/{source}.jsonl",
                      language=language, do_split_sentences=True, do_keep_newlines=True, seq_length=256,
                      tokenizer_path=base, save_path=out / "corpus", save_prefix=source)

    def join(sources: dict, name: str) -> list[str]:
        return script("pretrain/preprocess.py", mode="merge", merge_path_prefix=[str(out / "corpus" / s) for s in sources],
                      merge_path_type=[kind for _, kind in sources.values()], new_path_prefix=out / "corpus" / name)

    def recite(model: Path, when: str) -> list[str]:
        return script("examples/generate_finetune.py", base_model=model, prompt=POEM, max_new_tokens=48, num_beams=1,
                      repetition_penalty=1.0, output=out / f"poem_{when}.jsonl")

    def evaluate(name: str, **model) -> list[str]:
        return script("finetune/evaluate.py", data=out / "instructions/heldout.jsonl", max_new_tokens=96,
                      batch_size=16, report=out / name, **model)

    encyclopedia, tuned, lora, merged = ROOT / "finetune/data/encyclopedia", out / "pretrained", out / "lora", out / "merged"
    recovered = out / "recovered"
    steps = [Step("base", "fetch the base model", [script("tools/download.py", default_model=True, download_path=base)],
                  [base])] if download else []
    return [
        *steps,
        Step("corpus", "pack the corpus", [*(write(source, language) for source, (language, _) in (SOURCES | HELDOUT).items()),
                                           join(SOURCES, "merged"), join(HELDOUT, "heldout")], [out / "corpus"]),
        Step("before", "recite before pretraining", [recite(base, "before")], []),
        Step("pretrain", "pretrain all parameters", [
            script("pretrain/train.py", model_name_or_path=base, data_path=out / "corpus/merged",
                   eval_data_path=out / "corpus/heldout", output_dir=tuned, per_device_train_batch_size=3,
                   num_train_epochs=3, learning_rate=2e-4, lr_scheduler_type="linear", warmup_steps=3, logging_steps=3,
                   save_steps=18, save_total_limit=1, train_sampling_strategy="group_by_length", eval_strategy="epoch",
                   per_device_eval_batch_size=8)], [tuned], resumes=True),
        Step("after", "recite after pretraining", [recite(tuned, "after")], []),
        Step("difference", "make the difference, recover from it", [
            script("tools/weight_diff.py", "make_diff", path_raw=base, path_tuned=tuned, path_diff=out / "diff", exact=True),
            script("tools/weight_diff.py", "recover", path_raw=base, path_diff=out / "diff", path_tuned=recovered)],
            [out / "diff", recovered]),
        Step("instructions", "make instructions from the knowledge graph", [
            script("finetune/kg2instructions.py", english=encyclopedia / "english.jsonl",
                   chinese=encyclopedia / "chinese.jsonl", knowledge=encyclopedia, output_dir=out / "instructions",
                   piece_length=60, wordings=1, max_train=240, max_heldout=60)], [out / "instructions"]),
        Step("score_before", "score before LoRA tuning", [evaluate("score_before", base_model=recovered)],
             [out / "score_before"]),
        Step("lora", "tune LoRA weights", [
            script("finetune/lora/finetune.py", base_model=recovered, data_path=out / "instructions/train.json",
                   output_dir=lora, batch_size=8, micro_batch_size=4, num_epochs=1, learning_rate=1e-3, val_set_size=0,
                   group_by_length=True, warmup_steps=3, save_steps=10, save_total_limit=1)], [lora], resumes=True),
        Step("score_after", "score after LoRA tuning", [
            evaluate("score_after", base_model=recovered, lora_weights=lora)], [out / "score_after"]),
        Step("merge", "merge, answer with and without the adapter", [
            script("tools/weight_diff.py", "merge", path_zhixi=recovered, path_lora=lora, path_sfted=merged),
            script("examples/generate_lora.py", base_model=recovered, lora_weights=lora, cases=out / "instructions/valid.json",
                   limit=4, max_new_tokens=64, output=out / "answers_adapter.jsonl"),
            script("examples/generate_lora.py", base_model=merged, cases=out / "instructions/valid.json", limit=4,
                   max_new_tokens=64, output=out / "answers_merged.jsonl")],
            [merged]),
    ]


def inputs_digest(step: Step) -> bytes:
    """A checksum of the scripts and of this repository's data files that a step reads: changed, the step is done again."""
    digest = hashlib.sha256()
    for argument in sorted(set(chain(*step.commands))):
        path = Path(argument)
        if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "runs"):
            for file in sorted(path.rglob("*.tsv")) if path.is_dir() else [path]:
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
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(f"{Path(command[0]).relative_to(ROOT)} ended with code {process.returncode}; "
                         "mend what it says above, then run ./quickstart.sh again: it goes on here")
    return usage.ru_maxrss * 1024


def collect(out: Path, base: Path, steps: list[Step]) -> dict:
    """Every figure of the run."""
    records = {step.name: read_json(out / "steps" / f"{step.name}.json") for step in steps}
    history = read_json(out / "pretrained/trainer_state.json")["log_history"]
    held_out = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    tuning = [entry["loss"] for entry in read_json(out / "lora/trainer_state.json")["log_history"] if "loss" in entry]
    answers = {name: read_records(out / f"answers_{name}.jsonl") for name in ("adapter", "merged")}
    return {
        "base_model": str(base),
        "machine": {"cpus": os.cpu_count(), "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9)},
        "seconds": {name: round(record["seconds"], 1) for name, record in records.items()},
        "peak_gb": {name: round(record["peak_gb"], 2) for name, record in records.items()},
        "total_seconds": round(sum(record["seconds"] for record in records.values()), 1),
        "corpus": read_json(out / "corpus/merged.json"),
        "heldout_loss": {"before": held_out[0], "after": held_out[-1]},
        "poem": {when: read_records(out / f"poem_{when}.jsonl")[0]["output"] for when in ("before", "after")},
        "recovered_equals_tuned": same_weights(out / "pretrained", out / "recovered"),
        "instructions": {key: value for key, value in read_json(out / "instructions/report.json").items() if key != "examples"},
        "lora_loss": {"first": tuning[0], "last": tuning[-1]},
        "scores": {when: read_json(out / f"score_{when}/metrics.json") for when in ("before", "after")},
        "merged_answers_as_adapter": answers["merged"] == answers["adapter"],
        "answers": answers["merged"],
    }


def same_weights(one: Path, other: Path) -> bool:
    """Whether two models' weights are the same bit for bit."""
    import torch

    from knowlm.checkpoints import Checkpoint

    with Checkpoint(one) as first, Checkpoint(other) as second:
        return set(first) == set(second) and all(
            first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first)


def f1_table(scores: dict) -> list[tuple[str, float, float]]:
    """(task, F1 before, F1 after)."""
    return [(task, scores["before"][task]["f1"], scores["after"][task]["f1"]) for task in ("NER", "RE")
            if task in scores["after"]]


def summary(metrics: dict, out: Path) -> str:
    loss = metrics["heldout_loss"]
    lines = ["", f"The whole way took {metrics['total_seconds']:.0f} s. Report: {out / 'report.md'}",
             f"  held-out loss      {loss['before']:.3f} → {loss['after']:.3f}",
             f"  {POEM}      before: {shortened(metrics['poem']['before'])}",
             f"  {' ' * 18}after:  {shortened(metrics['poem']['after'])}",
             f"  recovered = tuned  {metrics['recovered_equals_tuned']}",
             *(f"  {task + ' strict F1':<18} {before:.3f} → {after:.3f}" for task, before, after in f1_table(metrics["scores"])),
             f"  merged answers as base + adapter does  {metrics['merged_answers_as_adapter']}", "",
             "Play with it:",
             f"  .venv/bin/python examples/generate_finetune.py --base_model {relative(out / 'pretrained')} --interactive",
             f"  .venv/bin/python examples/generate_lora_web.py --base_model {relative(out / 'merged')}",
             "  ./quickstart.sh --serve"]
    return "\n".join(lines)


def relative(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def shortened(text: str) -> str:
    return " ".join(text.split())[:60]


def report(metrics: dict, out: Path) -> str:
    loss, lines = metrics["heldout_loss"], ["# From raw text to extracted knowledge", ""]
    lines += ["| step | seconds | peak GB |", "|---|---|---|"]
    lines += [f"| {name} | {seconds:.0f} | {metrics['peak_gb'][name]:.1f} |" for name, seconds in metrics["seconds"].items()]
    lines += [f"| all | {metrics['total_seconds']:.0f} | {max(metrics['peak_gb'].values()):.1f} |", "",
              f"Machine: {metrics['machine']['cpus']} CPUs, {metrics['machine']['memory_gb']} GB.", "", "## Pretraining", "",
              f"{metrics['corpus']['num_samples']} samples, {metrics['corpus']['num_tokens']} tokens; "
              f"held-out loss {loss['before']:.3f} → {loss['after']:.3f}.", "", "![loss](pretrained/loss.png)", "",
              f"Asked to go on after {POEM}", "", f"- before: {shortened(metrics['poem']['before'])}",
              f"- after: {shortened(metrics['poem']['after'])}", "",
              f"Base + difference equals the tuned weights bit for bit: {metrics['recovered_equals_tuned']}.", "",
              "## Extraction", "", "| task | strict F1 before | after | 95 % interval | gold |", "|---|---|---|---|---|"]
    for task, before, after in f1_table(metrics["scores"]):
        low, high = metrics["scores"]["after"][task]["interval"]
        lines.append(f"| {task} | {before:.3f} | {after:.3f} | {low:.3f}–{high:.3f} | "
                     f"{metrics['scores']['after'][task]['gold']} |")
    lines += ["", f"Unparsable answers: {metrics['scores']['before']['unparsable']:.0%} before, "
              f"{metrics['scores']['after']['unparsable']:.0%} after. Gold is distantly supervised, so noisy.", "",
              "![loss](lora/loss.png)", "",
              f"The merged model answers as base + adapter does: {metrics['merged_answers_as_adapter']}.", ""]
    for answer in metrics["answers"]:
        lines += [f"- {answer['instruction']}", f"  - {answer['input']}", f"  - `{shortened(answer['output'])}`"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
