"""Strict micro precision, recall and F1: exact matches over multisets, never the best of several tries."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from knowlm.extraction.parsing import parse

Counts = tuple[int, int, int]  # right, predicted, gold


def elements(task: str, items: Iterable[dict]) -> dict[str, Counter]:
    """What is compared, by the name of its score; every element begins with its label.

    >>> elements("NER", [{"text": "Paris", "type": "place"}])
    {'NER': Counter({('place', 'Paris'): 1})}
    """
    if task == "NER":
        return {"NER": Counter((item["type"], item["text"]) for item in items)}
    if task == "RE":
        return {"RE": Counter((item["relation"], item["head"], item["tail"]) for item in items)}
    items = list(items)
    return {
        "EE trigger": Counter((item["type"], item["trigger"]) for item in items),
        "EE argument": Counter(
            (item["type"], argument["text"], argument["role"]) for item in items for argument in item["arguments"]
        ),
    }


def schema_labels(case: dict) -> list[str]:
    """The labels of a case's schema; event types for EE."""
    return [entry["type"] for entry in case["schema"]] if case["task"] == "EE" else list(case["schema"])


def score(cases: Sequence[dict], answers: Sequence[str], resamples: int = 1000) -> dict:
    """Scores of raw answers against gold.

    cases: ``{"id", "task", "language", "schema", "input", "gold"}``, see the package.
    Returns ``{"NER": {...}, "RE": {...}, "EE": {"trigger": {...}, "argument": {...}}, "unparsable": share, ...}``,
    each with precision, recall, f1, a 95 % bootstrap interval of f1 over cases, and a table by label.
    An answer that can't be read counts as a miss.
    """
    per_case: dict[str, list[Counts]] = {}
    by_label: dict[str, dict[str, list[int]]] = {}
    unreadable = 0
    for case, answer in zip(cases, answers, strict=True):
        parsed = parse(case["task"], answer, schema_labels(case))
        unreadable += not parsed.readable
        predicted, gold = elements(case["task"], parsed.items), elements(case["task"], case["gold"])
        for name in gold:
            right = predicted[name] & gold[name]
            per_case.setdefault(name, []).append((right.total(), predicted[name].total(), gold[name].total()))
            for column, counter in enumerate((right, predicted[name], gold[name])):
                for element, count in counter.items():
                    by_label.setdefault(name, {}).setdefault(element[0], [0, 0, 0])[column] += count
    report: dict = {"cases": len(cases), "unparsable": unreadable / max(len(cases), 1)}
    for name, counts in per_case.items():
        totals = np.array(counts).sum(axis=0)
        entry = {
            **_f1(*totals),
            "cases": len(counts),
            "interval": _bootstrap(np.array(counts), resamples),
            "labels": {label: _f1(*row) for label, row in sorted(by_label.get(name, {}).items())},
        }
        task, _, part = name.partition(" ")
        if part:
            report.setdefault(task, {})[part] = entry
        else:
            report[task] = entry
    return report


def _f1(right: int, predicted: int, gold: int) -> dict:
    precision = right / predicted if predicted else 0.0
    recall = right / gold if gold else 0.0
    f1 = 2 * right / (predicted + gold) if predicted + gold else 0.0
    return {
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "right": int(right),
        "predicted": int(predicted),
        "gold": int(gold),
    }


def _bootstrap(counts: np.ndarray, resamples: int) -> list[float]:
    """2.5th and 97.5th percentile of F1 over resampled cases; counts: (cases, 3)."""
    generator = np.random.default_rng(0)
    picks = generator.integers(len(counts), size=(resamples, len(counts)))
    right, predicted, gold = counts[picks].sum(axis=1).T  # each (resamples,)
    f1 = 2 * right / np.maximum(predicted + gold, 1)
    return [float(bound) for bound in np.percentile(f1, [2.5, 97.5])]
