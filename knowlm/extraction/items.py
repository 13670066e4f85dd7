"""Make items of the names found: which of them is the label."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

SWAPPED = "label in another place"


@dataclass
class Schema:
    """What an answer may use: labels, and roles where they are known."""

    labels: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()

    @classmethod
    def of(cls, labels: Iterable) -> "Schema":
        """From labels, or from an EE schema's ``{"type", "roles"}``."""
        entries = list(labels)
        types = [entry["type"] if isinstance(entry, dict) else entry for entry in entries]
        roles = [role for entry in entries if isinstance(entry, dict) for role in entry.get("roles", ())]
        return cls(*(frozenset(map(str.strip, names)) - {""} for names in (types, roles)))


@dataclass
class Found:
    """Items on their way to a ``Parsed``: what was read, and what had to be done for it."""

    items: list[dict] = field(default_factory=list)
    repairs: set[str] = field(default_factory=set)
    nothing: bool = False  # it says somewhere that there is nothing


def named(task: str, *names: str) -> dict:
    """An item of NER or RE from its names in order.

    >>> named("NER", "Paris", "place")
    {'text': 'Paris', 'type': 'place'}
    """
    return dict(zip(("text", "type") if task == "NER" else ("head", "relation", "tail"), names, strict=True))


def ner_item(first: str, second: str, schema: Schema) -> tuple[dict, bool]:
    """(item, whether the type stood first)."""
    swapped = first in schema.labels and second not in schema.labels
    return named("NER", second, first) if swapped else named("NER", first, second), swapped


def relation_item(names: Sequence[str], schema: Schema) -> tuple[dict, bool]:
    """(item, whether the relation stood at an end)."""
    first, second, third = names
    if second in schema.labels or (first in schema.labels) == (third in schema.labels):
        return named("RE", first, second, third), False
    if first in schema.labels:
        return named("RE", second, first, third), True
    return named("RE", first, third, second), True


def turn_pairs(pairs: Sequence[tuple[str, str]], schema: Schema) -> tuple[list[tuple[str, str]], bool]:
    """(pairs of text and role, whether the roles, which the schema tells, stood first)."""
    turned = bool(pairs) and all(a in schema.roles and b not in schema.roles for a, b in pairs)
    return [(b, a) if turned else (a, b) for a, b in pairs], turned


def event_item(
    first: str, second: str, pairs: Sequence[tuple[str, str]], schema: Schema, label_first: bool, either: bool
) -> tuple[dict, bool]:
    """(item, whether anything stood in another place than expected).

    pairs: (text, role). label_first: whether the type comes before the trigger where the schema doesn't tell.
    either: whether that form is written in both orders.
    """
    known = (first in schema.labels, second in schema.labels)
    type_first = known[0] if known[0] != known[1] else label_first
    pairs, turned = turn_pairs(pairs, schema)
    arguments = [{"text": text, "role": role} for text, role in pairs]
    kind, trigger = (first, second) if type_first else (second, first)
    item: dict[str, Any] = {"type": kind, "trigger": trigger, "arguments": arguments}
    return item, turned or (type_first != label_first and not either)


def has_repeats(task: str, items: Iterable[dict]) -> bool:
    """Whether an item comes again, or an argument within an event."""
    seen: set[tuple] = set()
    for item in items:
        if task == "EE":
            pairs = tuple((argument["text"], argument["role"]) for argument in item["arguments"])
            if len(set(pairs)) < len(pairs):
                return True
            key: tuple = (item["type"], item["trigger"], pairs)
        else:
            key = tuple(item.values())
        if key in seen:
            return True
        seen.add(key)
    return False
