"""What is wrong with a wrong answer."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Element(NamedTuple):
    """What is right or wrong as a whole: an entity, a triple, a trigger, an argument.

    labels: type or relation; for an argument the event's type and the role. spans: what is taken from the text.
    """

    labels: tuple[str, ...]
    spans: tuple[str, ...]


class Error(NamedTuple):
    """A wrong prediction, the gold that it stands for, or both.

    kind: ``wrong type``: gold's spans with other labels; ``wrong span``: gold's labels, and every span overlaps
    gold's; ``invented``: a span isn't in the text; ``not in gold``: the spans are; ``missed``: gold that no prediction
    stands for.
    """

    kind: str
    predicted: Element | None
    gold: Element | None


def errors_of(wrong: Counter[Element], missed: Counter[Element], text: str) -> Iterator[Error]:
    """Pair wrong predictions with missed gold of the same text, each used once.

    >>> ann = [Element((label,), ("Ann",)) for label in ("place", "person")]
    >>> [error.kind for error in errors_of(Counter(ann[:1]), Counter(ann[1:]), "Ann")]
    ['wrong type']
    """

    def overlap(one: str, other: str) -> bool:
        first, second = sorted((one, other), key=text.find)
        start = text.find(first)
        return one in other or other in one or 0 <= start <= text.find(second) < start + len(first)

    def is_other_span(predicted: Element, gold: Element) -> bool:
        return predicted.labels == gold.labels and all(map(overlap, predicted.spans, gold.spans))

    predictions, golds = list(wrong.elements()), list(missed.elements())
    for predicted, gold in _take_pairs(predictions, golds, lambda p, g: p.spans == g.spans):
        yield Error("wrong type", predicted, gold)
    for predicted, gold in _take_pairs(predictions, golds, is_other_span):
        yield Error("wrong span", predicted, gold)
    for predicted in predictions:
        is_verbatim = all(span in text for span in predicted.spans)
        yield Error("not in gold" if is_verbatim else "invented", predicted, None)
    for gold in golds:
        yield Error("missed", None, gold)


def _take_pairs(
    predictions: list[Element], golds: list[Element], fits: Callable[[Element, Element], bool]
) -> list[tuple[Element, Element]]:
    """Pairs that fit, taken out of both lists."""
    pairs = []
    for predicted in list(predictions):
        gold = next((gold for gold in golds if fits(predicted, gold)), None)
        if gold is not None:
            predictions.remove(predicted)
            golds.remove(gold)
            pairs.append((predicted, gold))
    return pairs
