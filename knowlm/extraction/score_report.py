"""Scores for people: a table in Markdown and two pictures."""

import re
from collections.abc import Sequence
from pathlib import Path

from knowlm.extraction.forms import write_answer
from knowlm.extraction.scoring import GROUPS, LONGEST, scores_of
from knowlm.files import replacing

SHOWN = 10  # answers that the report quotes
QUOTED = 200  # characters of a text beside an error
FIGURES = "precision | recall | F1 | right / predicted / gold |"
KINDS = (
    "Each wrong item and each missing one counts once. wrong type: gold's span under another label; wrong span: gold's "
    "label on a span that overlaps gold's; invented: a span that isn't in the text; not in gold: one that is; missed: "
    "gold that no wrong item stands for."
)


def one_line(metrics: dict) -> str:
    """``NER F1 0.500; 0.0% of 2 answers unparsable``, and by how much another report's F1 is lower."""
    parts = [f"{name} F1 {figures['f1']:.3f}" for name, figures in scores_of(metrics)]
    parts.append(f"{metrics['unparsable']:.1%} of {metrics['cases']} answer{'s' * (metrics['cases'] != 1)} unparsable")
    compared = metrics.get("compared", {})
    differences = [f"{name} {_difference(f)}" for name, f in compared.items() if name != "with"]
    if differences:
        parts.append(f"against {compared['with']}: {', '.join(differences)}")
    return "; ".join(parts)


def _difference(figures: dict) -> str:
    return f"{figures['difference']:+.3f} ({figures['interval'][0]:+.3f} to {figures['interval'][1]:+.3f})"


def as_markdown(metrics: dict, cases: Sequence[dict], answers: Sequence[str]) -> str:
    lines = ["# Extraction, strict micro scores", "", one_line(metrics), ""]
    lines += [
        "| score | cases | unparsable | precision | recall | F1 | 95 % interval | right / predicted / gold |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, f in scores_of(metrics):
        unparsable = metrics["unparsable_by_task"][name.split()[0]]
        lines.append(
            f"| {name} | {f['cases']} | {unparsable:.1%} | {f['precision']:.3f} | {f['recall']:.3f} | {f['f1']:.3f} | "
            f"{f['interval'][0]:.3f}–{f['interval'][1]:.3f} | {f['right']} / {f['predicted']} / {f['gold']} |"
        )
    lines += ["", f"Counted over {metrics['counting']}s of items. The interval is a bootstrap over cases.", ""]
    for task, f in metrics.get("thresholds", {}).items():
        if f["f1"]:
            lines += [f"Without {task} items scored below {f['threshold']:.3f}, F1 would be {f['f1']:.3f} here.", ""]
    lines += ["![scores](scores.png)", "", "![errors](errors.png)", "", KINDS]
    lines += _compared(metrics.get("compared", {}))
    lines += _orders(metrics.get("schema_orders", {}))
    for name, figures in scores_of(metrics):
        lines += _table(f"{name} by label", "label", figures["labels"])
        for field in GROUPS:
            if len(figures.get(f"by_{field}", {})) > 1:
                lines += _table(f"{name} by {field}", field, figures[f"by_{field}"])
        lines += _errors(name, figures["errors"])
    if metrics["unparsable_examples"]:
        lines += ["", "## Answers that can't be parsed", ""]
        lines += [
            f"- {_cell(str(example['id']))}: {_code(example['output'])}" for example in metrics["unparsable_examples"]
        ]
    lines += ["", "## First answers", ""]
    for case, answer in list(zip(cases, answers, strict=True))[:SHOWN]:
        lines += [
            f"- {_cell(str(case['id']))}: **{_cell(case['input'])}**",
            f"  - gold: {_code(write_answer(case['task'], case['gold']))}",
            f"  - answer: {_code(answer[:LONGEST])}",
        ]
    return "\n".join(lines) + "\n"


def _table(title: str, column: str, rows: dict[str, dict]) -> list[str]:
    """The most frequent in gold first."""
    return ["", f"## {title}", "", f"| {column} | {FIGURES}", "|---|---|---|---|---|"] + [
        f"| {_cell(value)} | {f['precision']:.3f} | {f['recall']:.3f} | {f['f1']:.3f} | "
        f"{f['right']} / {f['predicted']} / {f['gold']} |"
        for value, f in sorted(rows.items(), key=lambda row: (-row[1]["gold"], row[0]))
    ]


def _compared(compared: dict) -> list[str]:
    if not compared:
        return []
    head = [
        "",
        f"## Compared with {compared['with']}",
        "",
        "| score | F1 is higher by (95 % interval) |",
        "|---|---|",
    ]
    return head + [f"| {name} | {_difference(f)} |" for name, f in compared.items() if name != "with"]


def _orders(orders: dict[str, dict]) -> list[str]:
    if not orders:
        return []
    return [
        "",
        "## The same cases, labels in other orders",
        "",
        "| score | mean F1 | deviation | worst |",
        "|---|---|---|---|",
    ] + [f"| {name} | {f['mean']:.3f} | {f['deviation']:.3f} | {f['worst']:.3f} |" for name, f in orders.items()]


def _errors(name: str, errors: dict[str, dict]) -> list[str]:
    lines = ["", f"## {name}: errors", "", "| kind | count | predicted | gold | in |", "|---|---|---|---|---|"]
    for kind, found in errors.items():
        for i, example in enumerate(found["examples"]):
            text = example["input"]
            cells = (
                *((kind, found["count"]) if i == 0 else ("", "")),
                example["predicted"] or "",
                example["gold"] or "",
                text if len(text) <= QUOTED else text[:QUOTED] + " …",
            )
            lines.append("| " + " | ".join(_cell(str(cell)) for cell in cells) + " |")
    return lines if errors else []


def _line(text: str) -> str:
    """One line of what can be printed."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _cell(text: str) -> str:
    """A line as Markdown shows it letter by letter, in a table, too."""
    return re.sub(r"([\\|*`])", r"\\\1", _line(text)).replace("<", "&lt;")


def _code(text: str) -> str:
    line = _line(text)
    return f"`` {line} ``" if "`" in line else f"`{line}`" if line else "(empty)"


def draw(metrics: dict, folder: Path) -> None:
    """``scores.png``: F1 with intervals; ``errors.png``: how many errors of each kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scores = scores_of(metrics)
    if not scores:
        return
    names = [name for name, _ in scores]
    figure, axes = pyplot.subplots(figsize=(6, 0.6 + 0.5 * len(names)), layout="constrained")
    for column, color in (("precision", "tab:green"), ("recall", "tab:orange")):
        axes.plot([f[column] for _, f in scores], names, "|", color=color, markersize=14, label=column)
    axes.barh(names, [f["f1"] for _, f in scores], height=0.5, color="tab:blue", alpha=0.5, label="F1")
    for i, (_, f) in enumerate(scores):
        axes.plot(f["interval"], [i, i], color="black", linewidth=1)
    axes.set(xlim=(0, 1.01), xlabel="strict micro score; the line is F1's 95 % interval")
    axes.invert_yaxis()
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    with replacing(folder / "scores.png") as partial:
        figure.savefig(partial, format="png", dpi=150)
    figure, axes = pyplot.subplots(figsize=(6, 0.6 + 0.5 * len(names)), layout="constrained")
    reached = [0] * len(names)
    kinds = sorted({kind for _, f in scores for kind in f["errors"]})
    for kind in kinds:
        counts = [f["errors"].get(kind, {"count": 0})["count"] for _, f in scores]
        axes.barh(names, counts, left=reached, height=0.5, label=kind)
        reached = [a + b for a, b in zip(reached, counts, strict=True)]
    axes.set(xlabel="errors")
    axes.invert_yaxis()
    if kinds:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    with replacing(folder / "errors.png") as partial:
        figure.savefig(partial, format="png", dpi=150)
    pyplot.close("all")
