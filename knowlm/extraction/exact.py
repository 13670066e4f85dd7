"""Read answers that are written exactly as ``write_answer`` writes them; anything else is left to the tolerant reader.

So that tolerance can't spoil an answer without a fault: a name in quotes comes back letter by letter.
"""

import json
import re
from collections.abc import Iterator
from functools import cache

from knowlm.extraction.forms import DATA, NOTHING, bare_pattern
from knowlm.extraction.items import Schema, event_item, named, ner_item, relation_item

QUOTED = r'"(?:[^"\\\n]++|\\.)*+"'
OPENINGS = {"(": ")", "（": "）", "[": "]", "{": "}", "<": ">"}


def read_exact(task: str, text: str, schema: Schema) -> list[dict] | None:
    """Items of an answer in bracketed groups, "labelled" or "sentence"; None where a single letter is out of place."""
    if text[:1] in OPENINGS:
        return _groups(task, text, schema)
    return _labelled(text, schema) if task == "RE" else None


def _groups(task: str, text: str, schema: Schema) -> list[dict] | None:
    found = list(leading_groups(task, text, schema))
    return [item for item, _ in found] if found and found[-1][1] == len(text) else None


def leading_groups(task: str, text: str, schema: Schema) -> Iterator[tuple[dict, int]]:
    """(item, the offset behind it) of each group, up to the first that isn't written letter by letter as it should."""
    patterns = _patterns(task, text[0]) if text[:1] in OPENINGS else []
    place = 0
    while place < len(text):
        matches = ((read, pattern.match(text, place)) for read, pattern in patterns)
        match, item = next(((match, read(match, schema)) for read, match in matches if match), (None, None))
        if match is None or item is None:
            return
        yield item, match.end()
        place = match.end()
        place += text.startswith("\n", place)


@cache
def _patterns(task: str, opening: str) -> list[tuple]:
    """(reader, pattern) of one item in that bracket."""
    plain = _name(opening)
    a, b, comma = re.escape(opening), re.escape(OPENINGS[opening]), "，" if opening == "（" else ", ?"
    if task == "NER":
        return [(_entity, re.compile(f"{a}{plain}{comma}{plain}{b}"))]
    if task == "RE":
        return [(_triple, re.compile(f"{a}{plain}{comma}{plain}{comma}{plain}{b}"))]
    inner = plain.replace("(", "(?:", 1)
    pair = f"{a}{inner}{comma}{inner}{b}"
    left, right = ("［", "］") if opening == "（" else (r"\[", r"\]")
    listed = re.compile(f"{a}{plain}{comma}{plain}{comma}{left}((?:{pair}(?:{comma}{pair})*+)?+){right}{b}")
    capturing = re.compile(f"{a}{plain}{comma}{plain}{b}")
    if opening not in "(<":
        return [(lambda match, schema: _event(match, schema, capturing, False), listed)]
    hashed, hashed_inner = _name(opening, True), _name(opening, True).replace("(", "(?:", 1)
    tagged = f"{hashed_inner}#{hashed_inner}"
    joined = re.compile(f"{a}{hashed}(?P<comma>{comma}){hashed}(?:{comma}(?P<pairs>{tagged}(?:; ?{tagged})*+))?+{b}")
    tag = re.compile(f"{hashed}#{hashed}")
    found = [(lambda match, schema: _event(match, schema, tag, opening == "<"), joined)]
    if opening == "(":
        found.insert(0, (lambda match, schema: _event(match, schema, capturing, False), listed))
    return found


def _name(opening: str, hashed: bool = False) -> str:
    """Pattern of a name as one capturing group."""
    return f"({QUOTED}|{bare_pattern(opening, hashed).pattern})"


def _plain(field: str) -> str:
    """A field's name; "" for one that has none and so isn't exact."""
    if field[0] != '"':
        return "" if field == NOTHING else field
    try:
        return json.loads(field).strip()
    except ValueError:
        return ""


def _entity(match: re.Match, schema: Schema) -> dict | None:
    text, kind = map(_plain, match.groups())
    item, swapped = ner_item(text, kind, schema)
    return item if text and kind and not swapped else None


def _triple(match: re.Match, schema: Schema) -> dict | None:
    names = [_plain(field) for field in match.groups()]
    item, swapped = relation_item(names, schema)
    return item if all(names) and not swapped else None


def _event(match: re.Match, schema: Schema, pair: re.Pattern, angle: bool) -> dict | None:
    groups = match.groupdict()
    fields = [_plain(match[1]), _plain(match[3] if groups else match[2])]
    if not all(fields):
        return None
    label_first = angle or (groups.get("comma") == ", " and all(name in schema.labels for name in fields))
    region = (groups["pairs"] if groups else match[3]) or ""
    pairs = []
    for written in pair.findall(region):
        text, role = map(_plain, reversed(written) if angle else written)
        if written[angle] == NOTHING:
            continue
        if not text or not role:
            return None
        pairs.append((text, role))
    item, swapped = event_item(fields[0], fields[1], pairs, schema, label_first, either=bool(groups))
    return None if swapped else item


@cache
def _line() -> re.Pattern:
    name = _name("")
    return re.compile(f"{name}[:：] ?{name}[,，] ?{name}(\n|[;；] ?|$)")


def _labelled(text: str, schema: Schema) -> list[dict] | None:
    lead = next((lead for lead in DATA["sentence"].values() if text.startswith(lead)), "")
    items = []
    place = len(lead)
    while place < len(text):
        match = _line().match(text, place)
        if not match or (match[4] not in ("\n", "")) != bool(lead and match[4]):
            return None
        relation, head, tail = map(_plain, match.groups()[:3])
        if not (relation and head and tail):
            return None
        items.append(named("RE", head, relation, tail))
        place = match.end()
    if schema.labels and not lead and not any(item["relation"] in schema.labels for item in items):
        return None  # prose with a colon
    return items
