"""What a cleaning run removed and why: report.md, report.json and a picture."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from humanize import naturalsize

from knowlm.files import read_json, replacing, write_json, write_text

EXAMPLES = 3
SHOWN = 160  # characters of an example


class ReportWriter(PipelineStep):
    type, name = "📊 - REPORT", "cleaning report"

    def __init__(self, folder: Path, settings: dict):
        super().__init__()
        self.folder, self.settings = folder, settings

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        report = gather(self.folder, self.settings)
        if (kept := self.folder / "work" / "documents").exists():  # else a killed run had done this
            kept.rename(self.folder / "documents")
        write_json(self.folder / "report.json", report)
        write_text(self.folder / "report.md", describe(report))
        draw_reasons(report, self.folder / "report.png")


def gather(folder: Path, settings: dict) -> dict:
    """Counts of [documents, bytes], with a few examples for each reason.

    Raises ValueError when the documents that were read aren't those kept and removed.
    """
    read, kept = add_counts(folder, "read"), add_counts(folder, "kept").get("kept", [0, 0])
    removed = add_counts(folder, "alone") | add_counts(folder, "equal") | add_counts(folder, "similar")
    rejected = read["rejected"][0]
    sums = [sum(column) for column in zip(kept, *removed.values(), strict=True)]
    if sums != read["read"]:
        raise ValueError(f"{folder}: {read['read']} documents and bytes were read, {sums} kept or removed; start anew")
    reasons = [
        {"reason": name, "documents": documents, "bytes": size, "examples": find_examples(folder / "removed" / name)}
        for name, (documents, size) in sorted(removed.items(), key=lambda item: (-item[1][0], item[0]))
    ]
    return {
        "in": {"documents": sums[0] + rejected, "bytes": sums[1]},
        "kept": dict(zip(("documents", "bytes"), kept, strict=True)),
        "removed": {"documents": sums[0] - kept[0], "bytes": sums[1] - kept[1]},
        "rejected_lines": rejected,
        "reasons": reasons,
        "settings": settings,
    }


def add_counts(folder: Path, stage: str) -> dict[str, list[int]]:
    total: dict[str, list[int]] = {}
    for path in sorted((folder / "work" / "counts" / stage).glob("*.json")):
        for reason, counts in read_json(path).items():
            total[reason] = [old + new for old, new in zip(total.get(reason, [0, 0]), counts, strict=True)]
    return total


def find_examples(folder: Path) -> list[dict]:
    """The first removed documents, shortened."""
    examples: list[dict] = []
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for row in map(json.loads, islice(lines, EXAMPLES - len(examples))):
                text = " ".join(row["text"].split())
                shown = text if len(text) <= SHOWN else text[:SHOWN] + "…"
                examples.append({"id": row["id"], "text": shown} | {k: row[k] for k in ["duplicate_of"] if k in row})
        if len(examples) == EXAMPLES:
            break
    return examples


def describe(report: dict) -> str:
    total = report["in"]
    rows = [
        ("in", total),
        ("kept", report["kept"]),
        ("removed", report["removed"]),
        ("rejected lines", {"documents": report["rejected_lines"], "bytes": 0}),
    ]
    rows += [(f"removed: {row['reason']}", row) for row in report["reasons"]]
    told = ("language", "min_words", "min_sentences", "skip")
    settings = ", ".join(f"{name} {report['settings'][name]}" for name in told if report["settings"][name])
    files = len(report["settings"]["file_path"])
    lines = ["# Cleaning report", "", f"{files} files; {as_text(settings)}", ""]
    lines += ["| | documents | share | bytes of text |", "|---|---:|---:|---:|"]
    for name, row in rows:
        share = row["documents"] / max(total["documents"], 1)
        lines.append(f"| {name} | {row['documents']:,} | {share:.1%} | {row['bytes']:,} |")
    lines += ["", "![removed documents](report.png)", "", "## Examples", ""]
    for row in report["reasons"]:
        lines += [f"### {row['reason']}", ""]
        for example in row["examples"]:
            copy = f", as `{example['duplicate_of']}`" if "duplicate_of" in example else ""
            lines += [f"- `{example['id']}`{copy}: {as_text(example['text'])}"]
        lines += [""]
    return "\n".join(lines)


def as_text(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join("\\" + character if character in "\\`*_<>[]|#&" else character for character in text)


def draw_reasons(report: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [row["reason"] for row in report["reasons"]] or ["nothing removed"]
    documents = [row["documents"] for row in report["reasons"]] or [0]
    figure, axes = pyplot.subplots(figsize=(7, 1.5 + 0.25 * len(names)), layout="constrained")
    axes.bar_label(axes.barh(names, documents), padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel=f"removed documents, of {report['in']['documents']:,}")
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    pyplot.close(figure)


def summarize(folder: Path) -> str:
    report = read_json(folder / "report.json")
    kept, total, removed = report["kept"], report["in"], report["removed"]
    rejected = f", {report['rejected_lines']} bad lines in {folder}/rejected" if report["rejected_lines"] else ""
    return (
        f"{folder}/documents: {kept['documents']} of {total['documents']} documents, {naturalsize(kept['bytes'])} of "
        f"{naturalsize(total['bytes'])}; {removed['documents']} removed{rejected}; see {folder}/report.md"
    )
