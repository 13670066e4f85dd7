"""What the quickstart made: every figure of a run, its report and its closing words."""

import os
from pathlib import Path

from knowlm.files import read_json, read_records

ROOT = Path(__file__).resolve().parents[1]
POEM = "床前明月光，"


def collect(out: Path, base: Path, steps: list[str]) -> dict:
    """Every figure of the run."""
    records = {step: read_json(out / "steps" / f"{step}.json") for step in steps}
    history = read_json(out / "pretrained/trainer_state.json")["log_history"]
    held_out = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    tuning = [entry["loss"] for entry in read_json(out / "lora/trainer_state.json")["log_history"] if "loss" in entry]
    asked = read_json(out / "instructions/valid.json")
    answers = {name: read_records(out / f"answers_{name}.jsonl") for name in ("adapter", "merged")}
    return {
        "base_model": str(base),
        "machine": {
            "cpus": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        },
        "seconds": {name: round(record["seconds"], 1) for name, record in records.items()},
        "peak_gb": {name: round(record["peak_gb"], 2) for name, record in records.items()},
        "total_seconds": round(sum(record["seconds"] for record in records.values()), 1),
        "corpus": {
            name: value for name, value in read_json(out / "corpus/merged.json").items() if name.startswith("num_")
        },
        "heldout_loss": {"before": held_out[0], "after": held_out[-1]},
        "poem": {when: read_records(out / f"poem_{when}.jsonl")[0]["output"] for when in ("before", "after")},
        "recovered_equals_tuned": same_weights(out / "pretrained", out / "recovered"),
        "instructions": {
            name: value
            for name, value in read_json(out / "instructions/report.json").items()
            if name == "rows" or not isinstance(value, dict | list)
        },
        "lora_loss": {"first": tuning[0], "last": tuning[-1]},
        "scores": {when: without_tables(read_json(out / f"score_{when}/metrics.json")) for when in ("before", "after")},
        "merged_answers_as_adapter": answers["merged"] == answers["adapter"],
        "answers": [
            answer | {"gold": row["output"]} for answer, row in zip(answers["merged"], asked, strict=False)
        ],  # of the first held-out cases
    }


def without_tables(scores: dict) -> dict:
    """The figures of a score report alone, without those by label, by group and the errors."""
    return {
        name: without_tables({k: v for k, v in value.items() if k not in ("labels", "errors") and k[:3] != "by_"})
        if isinstance(value, dict)
        else value
        for name, value in scores.items()
    }


def same_weights(one: Path, other: Path) -> bool:
    """Whether two models' weights are the same bit for bit."""
    import torch

    from knowlm.checkpoints import Checkpoint

    with Checkpoint(one) as first, Checkpoint(other) as second:
        return set(first) == set(second) and all(
            first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
        )


def f1_table(scores: dict) -> list[tuple[str, float, float]]:
    """(task, F1 before, F1 after)."""
    return [
        (task, scores["before"][task]["f1"], scores["after"][task]["f1"])
        for task in ("NER", "RE")
        if task in scores["after"]
    ]


def summary(metrics: dict, out: Path) -> str:
    loss = metrics["heldout_loss"]
    lines = [
        "",
        f"The whole way took {metrics['total_seconds']:.0f} s. Report: {out / 'report.md'}",
        f"  held-out loss      {loss['before']:.3f} → {loss['after']:.3f}",
        f"  {POEM}      before: {shortened(metrics['poem']['before'])}",
        f"  {' ' * 18}after:  {shortened(metrics['poem']['after'])}",
        f"  recovered = tuned  {metrics['recovered_equals_tuned']}",
        *(
            f"  {task + ' strict F1':<18} {before:.3f} → {after:.3f}"
            for task, before, after in f1_table(metrics["scores"])
        ),
        f"  merged answers as base + adapter does  {metrics['merged_answers_as_adapter']}",
        "",
        "Play with it:",
        f"  .venv/bin/python examples/generate_finetune.py --base_model {relative(out / 'pretrained')} --interactive",
        f"  .venv/bin/python examples/generate_lora_web.py --base_model {relative(out / 'merged')}",
        "  ./quickstart.sh --serve",
    ]
    return "\n".join(lines)


def relative(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def shortened(text: str) -> str:
    words = " ".join(text.split())
    return (words if len(words) <= 60 else words[:60] + " …").replace("\ufffd", "")  # a character that was cut off


def report(metrics: dict, titles: dict[str, str]) -> str:
    """report.md: what each step took, what came out. titles: a step's words by its name."""
    loss, scores = metrics["heldout_loss"], metrics["scores"]
    steps = "\n".join(
        f"| {titles[name]} | {metrics['seconds'][name]:.0f} | {metrics['peak_gb'][name]:.1f} |"
        for name in metrics["seconds"]
    )
    rows = []
    for task, before, after in f1_table(scores):
        low, high = scores["after"][task]["interval"]
        rows.append(f"| {task} | {before:.3f} | {after:.3f} | {low:.3f}–{high:.3f} | {scores['after'][task]['gold']} |")
    answers = "\n".join(
        f"- {answer['instruction']}\n  - {answer['input']}\n"
        f"  - answer: `{shortened(answer['output'])}`\n  - gold: `{shortened(answer['gold'])}`"
        for answer in metrics["answers"]
    )
    return f"""# From raw text to extracted knowledge

{metrics["machine"]["cpus"]} CPUs, {metrics["machine"]["memory_gb"]} GB of memory.

| step | seconds | peak GB |
|---|---|---|
{steps}
| all | {metrics["total_seconds"]:.0f} | {max(metrics["peak_gb"].values()):.1f} |

## Pretraining

{metrics["corpus"]["num_samples"]} samples, {metrics["corpus"]["num_tokens"]} tokens;
held-out loss {loss["before"]:.3f} → {loss["after"]:.3f}.

![loss](pretrained/loss.png)

Asked to go on after {POEM}

- before: {shortened(metrics["poem"]["before"])}
- after: {shortened(metrics["poem"]["after"])}

Base + difference equals the tuned weights bit for bit: {metrics["recovered_equals_tuned"]}.

## Extraction

| task | strict F1 before | after | 95 % interval | gold |
|---|---|---|---|---|
{chr(10).join(rows)}

Unparsable answers: {scores["before"]["unparsable"]:.0%} before, {scores["after"]["unparsable"]:.0%} after.
The gold is distantly supervised, so noisy. More: [scores by label and answers](score_after/report.md),
[the instructions](instructions/report.md).

![loss](lora/loss.png)

The merged model answers as base + adapter does: {metrics["merged_answers_as_adapter"]}.

{answers}
"""
