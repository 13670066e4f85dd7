"""The score from which on extracted items are kept, fitted on held-out cases."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from knowlm.extraction.scoring import elements
from knowlm.files import read_json


def read_threshold(text: str, tasks: Iterable[str]) -> dict[str, float]:
    """The threshold of each task: a number for all, or those that a report's ``metrics.json`` says were fitted.

    Raises ValueError if it is neither, or the report lacks a task's.
    """
    try:
        thresholds = dict.fromkeys(tasks, float(text))
    except ValueError:
        if not Path(text).exists():
            raise ValueError(f"--threshold {text}: neither a number nor a report of finetune/evaluate.py") from None
        report = read_json(Path(text) / "metrics.json" if Path(text).is_dir() else text)
        fitted = report.get("thresholds", {}) if isinstance(report, dict) else {}
        lacking = set(tasks) - fitted.keys()
        if lacking:
            raise ValueError(
                f"{text}: has no threshold for {min(lacking)}; make it with --grounded on such cases"
            ) from None
        thresholds = {task: fitted[task]["threshold"] for task in tasks}
    if not all(0 <= value <= 1 for value in thresholds.values()):
        raise ValueError(f"--threshold {text}: must be from 0 to 1")
    return thresholds


def fit_threshold(
    task: str, extracted: Iterable[Sequence[dict]], gold: Iterable[Sequence[dict]]
) -> tuple[float, float]:
    """(threshold, F1): the score that an item must reach for the best micro F1 over all cases, and that F1.

    extracted: for each case its items with their "score"; gold: for each case its items. Fit on held-out cases and
    report on others, else the F1 is too good. For events the elements of trigger and arguments count together.

    >>> fit_threshold("NER", [[{"text": "a", "type": "x", "score": 0.9}, {"text": "b", "type": "x", "score": 0.2}]],
    ...               [[{"text": "a", "type": "x"}]])
    (0.9, 1.0)
    """
    scored: list[tuple[float, int, int]] = []  # (score, right elements, predicted elements) of each item
    total = 0
    for found, wanted in zip(extracted, gold, strict=True):
        left = elements(task, wanted)
        total += sum(counter.total() for counter in left.values())
        for item in sorted(found, key=lambda item: -item["score"]):
            predicted = elements(task, [item])
            right = {name: predicted[name] & left[name] for name in predicted}
            for name, counter in right.items():
                left[name] -= counter
            num_right, num_predicted = (sum(c.total() for c in kinds.values()) for kinds in (right, predicted))
            scored.append((item["score"], num_right, num_predicted))
    scored.sort(reverse=True)
    best, threshold, sum_right, sum_predicted = 0.0, 0.0, 0, 0
    for place, (score, num_right, num_predicted) in enumerate(scored):
        sum_right, sum_predicted = sum_right + num_right, sum_predicted + num_predicted
        f1 = 2 * sum_right / (sum_predicted + total)
        if f1 > best and (place + 1 == len(scored) or scored[place + 1][0] < score):
            best, threshold = f1, score
    return threshold, best


def fit_thresholds(cases: Sequence[dict], answers: Sequence[str]) -> dict[str, dict]:
    """For each task the threshold that is best for these cases, and the F1 with it; nothing if the answers aren't JSON
    lists of items with scores.
    """
    by_task: dict[str, list] = {}
    fitted = {}
    try:
        for case, answer in zip(cases, answers, strict=True):
            by_task.setdefault(case["task"], []).append((json.loads(answer), case["gold"]))
        for task, pairs in by_task.items():
            threshold, f1 = fit_threshold(task, *zip(*pairs, strict=True))
            fitted[task] = {"threshold": threshold, "f1": f1}
    except (ValueError, TypeError, KeyError):
        return {}
    return fitted if any(items for pairs in by_task.values() for items, _ in pairs) else {}


def only_above(threshold: float, answer: str) -> str:
    """An answer without the items whose score is lower; ValueError if its items have none."""
    try:
        return json.dumps([item for item in json.loads(answer) if item["score"] >= threshold], ensure_ascii=False)
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"--threshold: {answer[:60]!r} has no scores; take the answers of a run with --grounded"
        ) from None
