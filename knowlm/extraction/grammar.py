"""A grammar of every answer that a text and a schema allow, for llguidance; and the reader of such answers.

The form is the one that models are tuned on, ``write_answer(task, items, "tuple")``: a span that holds a comma, half a
pair of brackets, a line break, … is a JSON string, any other stands bare. So an answer has one reading only. Quotes may
also stand where none are needed: a model that begins with one isn't driven on to the next comma, and to forbid them
takes ten times the work, beyond what vLLM allows.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from knowlm.extraction.exact import leading_groups
from knowlm.extraction.forms import INVISIBLE, NOTHING, OPENING, QUOTES, tuple_field
from knowlm.extraction.items import Schema

LONGEST_SPAN = 200  # characters; a word of more is never named
MOST_ITEMS = 64  # of one answer
MOST_ARGUMENTS = 16  # of one event
# Spans begin and end where a word does in scripts that part words by spaces, anywhere in the others.
LETTER = r"[A-Za-z\u00aa-\u024f\u0370-\u052f\u1e00-\u1fff\u0300-\u036f]"
CHUNK = re.compile(rf"{LETTER}+|\d+|.", re.DOTALL)
WITHIN_CHUNK = re.compile(rf"(?<={LETTER})(?={LETTER})|(?<=\d)(?=\d)")

# Characters as Rust's regular expressions have them between [ and ].
BLANK = r"\s\x1c-\x1f"  # what str.strip takes away; a span neither begins nor ends with it
BRACKETS = "()（）"  # in a bare name only in pairs
MARKS = rf",，\n\r{INVISIBLE}{BRACKETS}"
FIRST_MARKS = rf"{MARKS}{BLANK}{QUOTES}{OPENING}"
JSON_CHARACTER = r'[^"\\]|\\["\\bfnrt]|\\u[0-9a-f]{4}'  # itself or its escape
JSON_SOLID = rf'[^"\\{BLANK}]|\\["\\b]|\\u00(0[0-8e-f]|1[0-9a-b])'  # not blank


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


def is_chunk_end(text: str, place: int) -> bool:
    """Whether ``chunk_ends`` has it, without looking at the whole text."""
    return not WITHIN_CHUNK.match(text, place)


def grammar(task: str, schema: Sequence, text: str) -> str:
    """llguidance's Lark grammar of the answers for ``text``: verbatim spans, labels of the schema, bounded counts.

    >>> grammar("NER", ["place"], " ")
    'start: "NAN"'
    """
    if not text.strip():
        return f'start: "{NOTHING}"'
    lines = [f'start: "{NOTHING}" | item ("\\n" item){{0,{MOST_ITEMS - 1}}}', *_names(text)]
    if task == "NER":
        lines.append(f'item: "(" name "," {_one_of(schema)} ")"')
    elif task == "RE":
        lines.append(f'item: "(" name "," {_one_of(schema)} "," name ")"')
    else:
        kinds = []
        for number, event in enumerate(schema):
            arguments = ""
            if event["roles"]:
                lines.append(f'argument{number}: "(" name "," {_one_of(event["roles"])} ")"')
                arguments = f'(argument{number} ("," argument{number}){{0,{MOST_ARGUMENTS - 1}}})? '
            kinds.append(f'{_one_of([event["type"]])} "," "[" {arguments}"]"')
        lines.append(f'item: "(" name "," ({" | ".join(kinds)}) ")"')
    return "\n".join(lines)


def _names(text: str) -> list[str]:
    """The rule "name": a span of ``text``, bare if ``forms.bare_pattern`` matches it, or as a JSON string."""
    chunks = [text[start:stop] for start, stop in pairwise(chunk_ends(text))]
    escaped = [json.dumps(chunk, ensure_ascii=False)[1:-1] for chunk in chunks]
    inner = f"[^{MARKS}]"
    return [
        "name: BARE | QUOTED",
        f'BARE: SPAN & /[^{FIRST_MARKS}]({inner}|\\({inner}*\\)|（{inner}*）)*/ & ~"{NOTHING}"',
        f"SPAN: {_trimmed(f'[^{BLANK}]', '(?s:.)')} & {_substring(chunks)}",
        r'QUOTED: "\"" ESCAPED "\""',
        f"ESCAPED: {_trimmed(JSON_SOLID, JSON_CHARACTER)} & {_substring(escaped)}",
    ]


def _trimmed(solid: str, character: str) -> str:
    return f"/({solid})(({character}){{0,{LONGEST_SPAN - 2}}}({solid}))?/"


def _substring(chunks: list[str]) -> str:
    return f"%regex {json.dumps({'substring_chunks': chunks})}"


def _one_of(labels: Iterable[str]) -> str:
    return f"({' | '.join(json.dumps(tuple_field(label), ensure_ascii=False) for label in labels)})"


def read_items(task: str, schema: Sequence, answer: str) -> list[Part]:
    """The items of an answer in the grammar, in its one reading; one that was cut off is left out."""
    stops = [0]
    parts = []
    for item, stop in leading_groups(task, answer, Schema.of(schema)):
        parts.append(Part(item, stops[-1], stop))
        stops.append(stop)
    return parts
