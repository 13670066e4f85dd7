"""A grammar of every answer that a text and a schema allow, for llguidance; and the reader of such answers.

The form is the one that models are tuned on, ``write_answer(task, items, "tuple")``, but a span always stands as in
the text, without quotes or escapes around it, and may hold any mark. So that an answer still has one reading only, a
span that holds what ends a span there (as ``,person)`` does) is not in the grammar. The whole answer is one regular
expression: llguidance splits an answer into terminals greedily, and of ``Paris,`` it would not give the comma back.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from knowlm.extraction.forms import NOTHING

# Spans begin and end where a word does in scripts that part words by spaces, anywhere in the others.
CHUNK = re.compile(r"[A-Za-z\u00aa-\u024f\u0370-\u052f\u1e00-\u1fff\u0300-\u036f]+|\d+|.", re.DOTALL)
BLANK = r"\s\x1c-\x1f"  # what str.strip takes away; a span neither begins nor ends with it
LONGEST_SPAN = 100  # characters
MOST_ITEMS = 64  # of one answer
MOST_ARGUMENTS = 16  # of one event
ITEM_END = ")\n("  # where a tail ends, unless the answer ends with it


@dataclass
class Part:
    """An item of an answer, and the characters of the answer that it takes: from the end of the item before."""

    item: dict
    start: int
    stop: int


def chunk_ends(text: str) -> list[int]:
    """The offsets, 0 among them, at which a span may begin or end.

    >>> chunk_ends("in 2023年")
    [0, 2, 3, 7, 8]
    """
    return [0, *(match.end() for match in CHUNK.finditer(text))]


def grammar(task: str, schema: Sequence, text: str) -> str:
    """llguidance's Lark grammar of the answers for ``text``: verbatim spans, labels of the schema, bounded counts.

    >>> grammar("NER", ["place"], " ")
    'start: "NAN"'
    """
    if not text.strip():
        return f'start: "{NOTHING}"'
    chunks = [text[start:stop] for start, stop in pairwise(chunk_ends(text))]
    lines = [
        "start: ANSWER",
        "ANY: /(?s:.*)/",
        f"SOME: /[^{BLANK}]((?s:.{{0,{LONGEST_SPAN - 2}}})[^{BLANK}])?/",
        f"SPAN: SOME & %regex {json.dumps({'substring_chunks': chunks})}",
    ]
    first, *of_roles = span_ends(task, schema)
    if task == "NER":
        lines += [*_span("ENTITY", first), f'ITEM: "(" ENTITY "," {_one_of(schema)} ")"']
    elif task == "RE":
        lines += [*_span("HEAD", first), *_span("TAIL", [ITEM_END])]
        lines.append(f'ITEM: "(" HEAD "," {_one_of(schema)} "," TAIL ")"')
    else:
        lines += _span("TRIGGER", first)
        for number, (event, ends) in enumerate(zip(schema, of_roles, strict=True)):
            arguments = ""
            if ends:
                lines += _span(f"NAME{number}", ends)
                lines.append(f'ARGUMENT{number}: "(" NAME{number} "," {_one_of(event["roles"])} ")"')
                arguments = f'(ARGUMENT{number} ("," ARGUMENT{number}){{0,{MOST_ARGUMENTS - 1}}})? '
            lines.append(f'EVENT{number}: {_quoted("," + event["type"] + ",[")} {arguments}"])"')
        lines.append(f'ITEM: "(" TRIGGER ({" | ".join(f"EVENT{number}" for number in range(len(schema)))})')
    lines.append(f'ANSWER: "{NOTHING}" | ITEM ("\\n" ITEM){{0,{MOST_ITEMS - 1}}}')
    return "\n".join(lines)


def span_ends(task: str, schema: Sequence) -> list[list[str]]:
    """For each kind of span that a label follows, the texts that may follow it: the label within its marks."""
    if task == "NER":
        return [[f",{label})" for label in schema]]
    if task == "RE":
        return [[f",{label}," for label in schema]]
    roles = [[f",{role})" for role in event["roles"]] for event in schema]
    return [[f",{event['type']},[" for event in schema], *roles]


def check_labels(task: str, schema: Sequence) -> None:
    """ValueError if an answer could be read in two ways because a label holds the marks between labels and spans."""
    for ends in span_ends(task, schema):
        for one in ends:
            for other in ends:
                if one != other and other.startswith(one):
                    raise ValueError(
                        f"schema: the labels {one[1:].rstrip(',)[')!r} and {other[1:].rstrip(',)[')!r} can't be told "
                        "apart in an answer; ask for them in two runs, or rename one"
                    )


def _span(name: str, ends: Iterable[str]) -> list[str]:
    """Terminal ``name``: a span that one of ``ends`` can follow, the first place where any of them stands then.

    So it neither holds one, nor finishes with what the one behind it would complete to another.
    """
    ends = list(dict.fromkeys(ends))
    halves = {
        first[:cut]
        for first in ends
        for second in ends
        for cut in range(1, len(first))
        if second.startswith(first[cut:])
    }
    inner = " | ".join([f"{_one_of(ends)} ANY", *([_one_of(sorted(halves))] if halves else [])])
    return [f"{name}_BAD: ANY ({inner})", f"{name}: SPAN & ~{name}_BAD"]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _one_of(texts: Sequence[str]) -> str:
    return f"({' | '.join(map(_quoted, texts))})"


def read_items(task: str, schema: Sequence, answer: str, is_whole: bool = True) -> list[Part]:
    """The items of an answer in the grammar, in its one reading.

    is_whole: the model ended it; else it was cut off, and what is not surely complete is left out.
    """
    parts: list[Part] = []
    position, stop = 0, 0
    while answer.startswith("(" if not parts else "\n(", position):
        position += 1 if not parts else 2
        read = {"NER": _read_entity, "RE": _read_relation, "EE": _read_event}[task]
        found = read(schema, answer, position, is_whole)
        if not found:
            break
        item, position = found
        parts.append(Part(item, stop, position))
        stop = position
    return parts


def _until(answer: str, start: int, ends: dict[str, str]) -> tuple[str, str, int] | None:
    """(span, label, where the end's text stops) of the first end behind ``start``; ends: label by text."""
    pattern = re.compile("|".join(re.escape(end) for end in sorted(ends, key=len, reverse=True)))
    match = pattern.search(answer, start)
    return (answer[start : match.start()], ends[match[0]], match.end()) if match else None


def _read_entity(schema: Sequence, answer: str, start: int, is_whole: bool) -> tuple[dict, int] | None:
    found = _until(answer, start, {f",{label})": label for label in schema})
    return ({"text": found[0], "type": found[1]}, found[2]) if found else None


def _read_relation(schema: Sequence, answer: str, start: int, is_whole: bool) -> tuple[dict, int] | None:
    found = _until(answer, start, {f",{label},": label for label in schema})
    if not found:
        return None
    head, relation, position = found
    stop = answer.find(ITEM_END, position)
    if stop < 0:
        stop = len(answer) - 1 if is_whole and answer.endswith(")") else -1
    return ({"head": head, "relation": relation, "tail": answer[position:stop]}, stop + 1) if stop > position else None


def _read_event(schema: Sequence, answer: str, start: int, is_whole: bool) -> tuple[dict, int] | None:
    found = _until(answer, start, {f",{event['type']},[": event["type"] for event in schema})
    if not found:
        return None
    trigger, kind, position = found
    roles = next(event["roles"] for event in schema if event["type"] == kind)
    arguments: list[dict] = []
    while not answer.startswith("])", position):
        opening = ",(" if arguments else "("
        if not answer.startswith(opening, position):
            return None
        found = _until(answer, position + len(opening), {f",{role})": role for role in roles}) if roles else None
        if not found:
            return None
        arguments.append({"text": found[0], "role": found[1]})
        position = found[2]
    return {"type": kind, "trigger": trigger, "arguments": arguments}, position + 2
