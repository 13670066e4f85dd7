"""Which labels are asked for together: the answer's own, confusable ones, a few others; in small batches.

After IEPile (arXiv 2402.14710): asked for twenty labels at once, a model that learnt on six does badly, and the labels
it mistakes for each other are those it must see side by side.
"""

import heapq
import random
from collections.abc import Mapping, Sequence, Set

from knowlm.extraction.cases import schema_labels
from knowlm.extraction.forms import LABELS_AT_ONCE

NEAR = 4  # confusable labels that are taken for each label of the answer
OTHERS = 2  # other labels that are taken for each label of the answer; at least one batch is filled


def label_of(item: dict, task: str) -> str:
    return item["relation"] if task == "RE" else item["type"]


def spans_of(item: dict, task: str) -> tuple[str, ...]:
    """The texts that an item labels as a whole: name, trigger, or head and tail."""
    return (item["head"], item["tail"]) if task == "RE" else (item["text" if task == "NER" else "trigger"],)


def confusable(spans: Mapping[str, Set[str]]) -> dict[str, list[str]]:
    """For each label up to ``NEAR`` that may be mistaken for it, the likeliest first: they label the same texts, or
    their names have words (Chinese: characters) in common. Time grows with the square of the number of labels: 6 s for
    2,000.

    spans: for each label the names, heads, tails or triggers that the gold of the whole data gives it.

    >>> confusable({"birth place": {"Rome"}, "birth date": set(), "capital": {"Rome"}})["birth place"]
    ['capital', 'birth date']
    """
    parts = {label: set(label.lower().split()) if label.isascii() else set(label) for label in spans}

    def likeness(one: str, other: str) -> float:
        return overlap(spans[one], spans[other]) + overlap(parts[one], parts[other])

    near = {}
    for label in spans:
        ranked = heapq.nsmallest(NEAR, ((-likeness(label, other), other) for other in spans if other != label))
        near[label] = [other for negative, other in ranked if negative < 0]
    return near


def overlap(one: Set, other: Set) -> float:
    """Jaccard's index.

    >>> overlap({1, 2}, {2, 3})
    0.3333333333333333
    """
    return len(one & other) / len(one | other) if one | other else 0.0


def batched(
    case: dict, schema: Sequence, near: Mapping[str, Sequence[str]], seed: int, every_label: bool = False
) -> list[dict]:
    """The case as several, each with a few labels of ``schema`` and the gold that belongs to them.

    near: what ``confusable`` gives, or a table of one's own. every_label: ask for all of the schema, as one must in a
    test; else for the answer's labels, ``NEAR`` confusable and ``OTHERS`` other ones for each of them.
    The same seed gives the same batches.
    """
    generator = random.Random(f"{seed} {case['id']}")
    task, size = case["task"], LABELS_AT_ONCE[case["task"]]
    known = dict(zip(schema_labels(case | {"schema": schema}), schema, strict=True))
    positive = [label for label in known if any(label_of(item, task) == label for item in case["gold"])]
    if every_label:
        asked = list(known)
    else:
        hard = [other for label in positive for other in list(near.get(label, ()))[:NEAR]]
        others = [label for label in known if label not in positive and label not in hard]
        wanted = max(OTHERS * len(positive), size - len({*positive, *hard}))
        asked = [*positive, *hard, *generator.sample(others, min(wanted, len(others)))]
        asked = [label for label in dict.fromkeys(asked) if label in known]
    generator.shuffle(asked)
    batches = [asked[first : first + size] for first in range(0, len(asked), size)]
    return [
        case
        | {
            "id": case["id"] if len(batches) == 1 else f"{case['id']}-{number}",
            "schema": [known[label] for label in labels],
            "gold": [item for item in case["gold"] if label_of(item, task) in labels],
        }
        for number, labels in enumerate(batches)
    ]


class FewEmpty:
    """A filter for cases: those with an answer pass, and so many of those without for each that passed before.

    >>> list(filter(FewEmpty(1), [{"gold": gold} for gold in ([], [1], [], [])]))
    [{'gold': [1]}, {'gold': []}]
    """

    def __init__(self, share: float):
        self.share = share
        self.full = self.empty = 0

    def __call__(self, case: dict) -> bool:
        if case["gold"]:
            self.full += 1
            return True
        self.empty += 1
        passes = self.empty <= self.share * self.full
        self.empty -= not passes
        return passes
