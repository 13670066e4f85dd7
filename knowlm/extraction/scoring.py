"""Strict micro precision, recall and F1: exact matches over multisets, never the best of several tries."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from knowlm.extraction.errors import Element, errors_of
from knowlm.extraction.parsing import Parsed, parse

GROUPS = ("language", "source", "domain")  # fields of a case by whose values scores are told apart, where it has them
EXAMPLES = 5  # of each kind of error, each of another case, that a report shows
LONGEST = 300  # characters of an answer that a report shows
Counts = tuple[int, int, int]  # right, predicted, gold


def elements(task: str, items: Iterable[dict]) -> dict[str, Counter[Element]]:
    """What is compared, by the name of its score; white space around a name or label is no part of it.

    >>> elements("NER", [{"text": " Paris", "type": "place"}])
    {'NER': Counter({Element(labels=('place',), spans=('Paris',)): 1})}
    """
    if task == "NER":
        return {"NER": Counter(stripped((item["type"],), (item["text"],)) for item in items)}
    if task == "RE":
        return {"RE": Counter(stripped((item["relation"],), (item["head"], item["tail"])) for item in items)}
    items = list(items)
    return {
        "EE trigger": Counter(stripped((item["type"],), (item["trigger"],)) for item in items),
        "EE argument": Counter(
            stripped((item["type"], argument["role"]), (argument["text"],))
            for item in items
            for argument in item["arguments"]
        ),
    }


def stripped(labels: Iterable[str], spans: Iterable[str]) -> Element:
    return Element(tuple(label.strip() for label in labels), tuple(span.strip() for span in spans))


def score(cases: Sequence[dict], answers: Sequence[str], resamples: int = 1000, counting: str = "multiset") -> dict:
    """Scores of raw answers against gold.

    cases: ``{"id", "task", "language", "schema", "input", "gold"}``, see the package; fields named in ``GROUPS`` give
    tables of their own. counting: ``multiset``, where an item given twice must be there twice, or ``set``.
    Returns ``{"NER": {...}, "RE": {...}, "EE": {"trigger": {...}, "argument": {...}}, "unparsable": share, ...}``,
    each with precision, recall, f1, a 95 % bootstrap interval of f1 over cases, tables by label and by group, and the
    errors by kind. An answer that can't be read counts as a miss.
    """
    parsed = read(cases, answers)
    tables = count(cases, parsed, counting)
    asked = Counter(case["task"] for case in cases)
    unread = [(case, text) for case, text, found in zip(cases, answers, parsed, strict=True) if not found.readable]
    of_task = Counter(case["task"] for case, _ in unread)
    report: dict = {
        "cases": len(cases),
        "counting": counting,
        "unparsable": len(unread) / max(len(cases), 1),
        "unparsable_by_task": {task: of_task[task] / asked[task] for task in asked},
        "unparsable_examples": [{"id": case["id"], "output": text[:LONGEST]} for case, text in unread[:EXAMPLES]],
    }
    for name, table in tables.items():
        task, _, part = name.partition(" ")
        entry = table.figures(resamples)
        if part:
            report.setdefault(task, {})[part] = entry
        else:
            report[task] = entry
    return report


def read(cases: Sequence[dict], answers: Sequence[str]) -> list[Parsed]:
    return [parse(case["task"], answer, case["schema"]) for case, answer in zip(cases, answers, strict=True)]


def count(cases: Sequence[dict], parsed: Sequence[Parsed], counting: str) -> dict[str, "Table"]:
    """The counts of each score."""
    if counting not in ("multiset", "set"):
        raise ValueError(f"counting {counting}: must be multiset or set")
    tables: dict[str, Table] = {}
    for case, answer in zip(cases, parsed, strict=True):
        predicted, gold = elements(case["task"], answer.items), elements(case["task"], case["gold"])
        for name in gold:
            if counting == "set":
                predicted[name], gold[name] = Counter(set(predicted[name])), Counter(set(gold[name]))
            tables.setdefault(name, Table()).add(case, predicted[name], gold[name])
    return tables


class Table:
    """The counts of one score, over cases, by label and by group, and the errors."""

    def __init__(self) -> None:
        self.cases: list[Counts] = []
        self.labels: defaultdict[str, Counter] = defaultdict(Counter)
        self.groups: dict[str, defaultdict[str, Counter]] = {field: defaultdict(Counter) for field in GROUPS}
        self.errors: Counter = Counter()
        self.examples: defaultdict[str, list[dict]] = defaultdict(list)

    def add(self, case: dict, predicted: Counter, gold: Counter) -> None:
        right = predicted & gold
        counts = {"right": right.total(), "predicted": predicted.total(), "gold": gold.total()}
        self.cases.append((counts["right"], counts["predicted"], counts["gold"]))
        for field, groups in self.groups.items():
            if isinstance(case.get(field), str):
                groups[case[field]].update(counts)
        for column, counter in (("right", right), ("predicted", predicted), ("gold", gold)):
            for element, count in counter.items():
                self.labels[element.labels[0]][column] += count
        for error in errors_of(predicted - right, gold - right, case["input"]):
            self.errors[error.kind] += 1
            shown = self.examples[error.kind]
            if len(shown) < EXAMPLES and (not shown or shown[-1]["id"] != case["id"]):
                shown.append(
                    {
                        "id": case["id"],
                        "input": case["input"],
                        "predicted": written(error.predicted),
                        "gold": written(error.gold),
                    }
                )

    def figures(self, resamples: int) -> dict:
        counts = np.array(self.cases)
        right, predicted, gold = counts.sum(axis=0)
        return {
            **f1_of(right, predicted, gold),
            "cases": len(self.cases),
            "interval": bootstrap(counts, resamples),
            "labels": {label: f1_of(**self._counts(row)) for label, row in sorted(self.labels.items())},
            **{
                f"by_{field}": {value: f1_of(**self._counts(row)) for value, row in sorted(groups.items())}
                for field, groups in self.groups.items()
                if groups
            },
            "errors": {
                kind: {"count": count, "examples": self.examples[kind]} for kind, count in self.errors.most_common()
            },
        }

    @staticmethod
    def _counts(row: Counter) -> dict[str, int]:
        return {column: row[column] for column in ("right", "predicted", "gold")}


def written(element: Element | None) -> str | None:
    """``label: span → span``."""
    return element and f"{' / '.join(element.labels)}: {' → '.join(element.spans)}"


def f1_of(right: int, predicted: int, gold: int) -> dict:
    """Precision, recall and F1; 0 where there is nothing to divide by."""
    return {
        "precision": float(right / predicted) if predicted else 0.0,
        "recall": float(right / gold) if gold else 0.0,
        "f1": float(2 * right / (predicted + gold)) if predicted + gold else 0.0,
        "right": int(right),
        "predicted": int(predicted),
        "gold": int(gold),
    }


def bootstrap(counts: np.ndarray, resamples: int) -> list[float]:
    """2.5th and 97.5th percentile of F1 over resampled cases; counts: (cases, 3)."""
    return _bounds(_resampled_f1(counts, resamples))


def difference(
    cases: Sequence[dict],
    answers: Sequence[str],
    others: Sequence[str],
    resamples: int = 1000,
    counting: str = "multiset",
) -> dict[str, dict]:
    """By score, F1 of ``answers`` minus F1 of ``others`` to the same cases, and its 95 % interval: a paired bootstrap,
    which draws the same cases for both (Koehn 2004, https://aclanthology.org/W04-3250).
    """
    ours, theirs = (count(cases, read(cases, texts), counting) for texts in (answers, others))
    found = {}
    for name, table in ours.items():
        pair = [np.array(table.cases), np.array(theirs[name].cases)]
        f1 = [f1_of(*counts.sum(axis=0))["f1"] for counts in pair]
        resampled = [_resampled_f1(counts, resamples) for counts in pair]  # the same seed draws the same cases
        found[name] = {"difference": f1[0] - f1[1], "interval": _bounds(resampled[0] - resampled[1])}
    return found


def _resampled_f1(counts: np.ndarray, resamples: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    sums = np.empty((resamples, 3))
    for i in range(resamples):  # one at a time: cases × resamples would not fit for large test sets
        sums[i] = counts[generator.integers(len(counts), size=len(counts))].sum(axis=0)
    right, predicted, gold = sums.T
    return 2 * right / np.maximum(predicted + gold, 1)


def _bounds(values: np.ndarray) -> list[float]:
    return [float(bound) for bound in np.percentile(values, [2.5, 97.5])]


def spread(reports: Sequence[dict]) -> dict[str, dict]:
    """How F1 depends on the order of the schema's labels: the same cases asked with the labels in other orders.

    Returns, by score, ``{"f1": [one per order], "mean", "deviation", "worst"}``; the best is left out on purpose.
    """
    by_score: dict[str, list[float]] = {}
    for report in reports:
        for name, figures in scores_of(report):
            by_score.setdefault(name, []).append(figures["f1"])
    return {
        name: {"f1": f1, "mean": float(np.mean(f1)), "deviation": float(np.std(f1)), "worst": min(f1)}
        for name, f1 in by_score.items()
    }


def scores_of(report: dict) -> list[tuple[str, dict]]:
    """(name, figures) of every score in a report, in order of tasks."""
    found = []
    for task in ("NER", "RE", "EE"):
        entry = report.get(task, {})
        found += [(task, entry)] if "f1" in entry else [(f"{task} {part}", figures) for part, figures in entry.items()]
    return found
