"""Read what a model answered. Never raises on any text; each character is looked at a bounded number of times."""

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass

from knowlm.extraction.forms import NOTHING

FULL_WIDTH = str.maketrans("（）【】［］｛｝《》〈〉＜＞，、：；＃“”‘’＂", '()[][]{}<><><>,,:;#""\'\'"')
OPEN, CLOSE = "([{<", ")]}>"
MAX_CHARACTERS = 100_000  # an answer longer than this has run away; the rest is not read


@dataclass
class Parsed:
    """What was found, and whether the answer could be read: an answer that says "nothing" could."""

    items: list[dict]
    readable: bool


def parse(task: str, answer: str, labels: Sequence[str] = ()) -> Parsed:
    """Items of an answer in any known form; an item given twice is there twice.

    labels: those of the schema; they tell which comma separates where a name holds one.

    >>> parse("RE", "(Washington, D.C.,country,U.S.)", ["country"]).items
    [{'head': 'Washington, D.C.', 'relation': 'country', 'tail': 'U.S.'}]
    """
    answer = answer[:MAX_CHARACTERS].strip()
    if answer.strip(" .。\n") in ("", NOTHING, "[]", "{}", "无", "None"):
        return Parsed([], True)
    items = _from_json(task, answer)
    if items is None:
        items = _from_groups(task, answer, set(labels))
    return Parsed(items, bool(items))


def _from_json(task: str, answer: str) -> list[dict] | None:
    """Items of a JSON (or Python literal) answer; None when it is neither."""
    starts = [i for i in (answer.find("["), answer.find("{")) if i >= 0]
    stop = max(answer.rfind("]"), answer.rfind("}"))
    if not starts or stop < min(starts):
        return None
    text = answer[min(starts) : stop + 1]
    if text.count("[") + text.count("{") > 10_000:  # too deep for the parsers' stacks
        return None
    value = None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
            break
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    if isinstance(value, dict):
        value = (
            _by_label(task, value) if not {"text", "head", "subject", "trigger", "entity"} & value.keys() else [value]
        )
    if not isinstance(value, list):
        return None
    items = [_item_of_dict(task, entry) for entry in value if isinstance(entry, dict)]
    found = [item for item in items if item]
    return found or None


def _by_label(task: str, by_label: dict) -> list[dict]:
    """IEPile's form, keyed by schema label, as a list of plain records."""
    records: list[dict] = []
    for label, entries in by_label.items():
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, str) and task == "NER" and entry != NOTHING:
                records.append({"text": entry, "type": label})
            elif isinstance(entry, dict):
                records.append({**entry, "relation" if task == "RE" else "type": label})
    return records


def _item_of_dict(task: str, entry: dict) -> dict | None:
    def first(*names: str) -> str | None:
        return next(
            (str(entry[name]).strip() for name in names if isinstance(entry.get(name), str | int | float)), None
        )

    if task == "NER":
        text, kind = first("text", "entity", "name"), first("type", "entity_type", "label")
        return {"text": text, "type": kind} if text and kind else None
    if task == "RE":
        head, relation, tail = first("head", "subject"), first("relation", "predicate"), first("tail", "object")
        return {"head": head, "relation": relation, "tail": tail} if head and relation and tail else None
    trigger, kind, arguments = first("trigger", "event_trigger"), first("type", "event_type"), entry.get("arguments")
    if not trigger or not kind:
        return None
    if isinstance(arguments, dict):
        arguments = [
            {"role": role, "text": text}
            for role, texts in arguments.items()
            for text in (texts if isinstance(texts, list) else [texts])
        ]
    pairs = []
    for argument in arguments if isinstance(arguments, list) else []:
        if isinstance(argument, dict):
            text, role = argument.get("text", argument.get("argument")), argument.get("role")
            if isinstance(text, str) and isinstance(role, str) and text != NOTHING:
                pairs.append({"text": text, "role": role})
    return {"type": kind, "trigger": trigger, "arguments": pairs}


def _from_groups(task: str, answer: str, labels: set[str]) -> list[dict]:
    """Items of bracketed groups in any bracket, one a line or run together; a cut-off last group is dropped."""
    items = []
    for inner in _outer_groups(answer.translate(FULL_WIDTH), answer):
        structure, text = inner
        item = _event(structure, text) if task == "EE" else _flat(task, structure, text, labels)
        if item:
            items.append(item)
    return items


def _outer_groups(structure: str, text: str) -> list[tuple[str, str]]:
    """The insides of outermost bracket pairs: as structure (in ASCII brackets) and as text, equally long."""
    groups, depth, start = [], 0, 0
    for i, mark in enumerate(structure):
        if mark in OPEN:
            if depth == 0:
                start = i + 1
            depth += 1
        elif mark in CLOSE and depth:
            depth -= 1
            if depth == 0:
                groups.append((structure[start:i], text[start:i]))
    return groups


def _parts(structure: str, text: str, separators: str = ",") -> list[str]:
    """``text`` split at separators outside of brackets."""
    parts, depth, start = [], 0, 0
    for i, mark in enumerate(structure):
        depth += (mark in OPEN) - (mark in CLOSE)
        if mark in separators and depth <= 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def _clean(part: str) -> str:
    return part.strip().strip("\"'“”‘’").strip()


def _flat(task: str, structure: str, text: str, labels: set[str]) -> dict | None:
    parts = _parts(structure, text)
    if task == "NER":
        if len(parts) < 2:
            return None
        cut = len(text) - len(parts[-1])
        entity, kind = _clean(text[: cut - 1]), _clean(parts[-1])
        return {"text": entity, "type": kind} if entity and kind else None
    if len(parts) < 3:
        return None
    middle = next((i for i in range(1, len(parts) - 1) if _clean(parts[i]) in labels), 1 if len(parts) == 3 else None)
    if middle is None:
        return None
    before = sum(len(part) + 1 for part in parts[:middle])
    after = before + len(parts[middle]) + 1
    head, relation, tail = _clean(text[: before - 1]), _clean(parts[middle]), _clean(text[after:])
    return {"head": head, "relation": relation, "tail": tail} if head and relation and tail else None


def _event(structure: str, text: str) -> dict | None:
    parts = _parts(structure, text)
    if len(parts) < 2:
        return None
    trigger, kind = _clean(parts[0]), _clean(parts[1])
    if not trigger or not kind:
        return None
    arguments = []
    rest_at = len(parts[0]) + len(parts[1]) + 2
    for outer_structure, outer_text in _outer_groups(structure[rest_at:], text[rest_at:]):
        for inner_structure, inner_text in _outer_groups(outer_structure, outer_text) or [
            (outer_structure, outer_text)
        ]:
            pair = _parts(inner_structure, inner_text)
            if len(pair) >= 2 and _clean(pair[-1]):
                name = _clean(inner_text[: len(inner_text) - len(pair[-1]) - 1])
                if name and name != NOTHING:
                    arguments.append({"text": name, "role": _clean(pair[-1])})
    return {"type": kind, "trigger": trigger, "arguments": arguments}
