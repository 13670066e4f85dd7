"""Read JSON and what models make of it: single quotes, missing ends, stray commas, text in between, full-width marks.

One pass from left to right that never goes back, with a stack of its own: linear, at any depth.
"""

import json
import re
from typing import Any

from knowlm.extraction.records import Half, Pairs

# A quote closes a string where a mark, the line's end or another string follows; so an apostrophe doesn't, nor a quote
# whose backslash was forgotten.
END = r"(?=[ \t]*+(?:[,:\]}{\[\n]|\)\s*+[,)\]}]|\Z)|[ \t]++[\"'])"
TOKEN = re.compile(
    rf"""(?P<mark>[{{}}\[\],:)]|\((?=\s*+["'(]))
    |(?P<string>"(?:[^"\\\n]++|\\.|"(?!{END}))*+"|'(?:[^'\\\n]++|\\.|'(?!{END}))*+')
    |(?P<broken>["'][^\n]*+)
    |(?P<bare>[^\s{{}}\[\],:"'][^{{}}\[\],:\n]*+)
    |(?P<space>\s++|\\)""",
    re.VERBOSE,
)
KEY = re.compile(r"""("|')\w++\1\s*+:""")
OPEN = re.compile(r"[\[{]")
EVIDENCE = re.compile(r"""["']\s*+:|\{\s*+\w++\s*+:""")  # a key: without one it isn't JSON
PARENTHESES = {"(": "[", ")": "]"}  # of a Python tuple
PYTHON = {"None": None, "null": None, "True": None, "False": None, "true": None, "false": None}


def read_json(text: str) -> list | None:
    """The one value of a text that is JSON; None if it isn't (or too deep for the C reader's stack)."""
    if text[:1] not in ("[", "{") or text[-1:] not in ("]", "}"):
        return None
    try:
        return [json.loads(text, object_pairs_hook=Pairs, parse_int=str, parse_float=str, parse_constant=str)]
    except (ValueError, RecursionError):
        return None


class Literals:
    """What a text holds of objects and lists."""

    def __init__(self, structure: str, text: str):
        """structure: ``text`` with ASCII marks for full-width ones, of equal length."""
        self.structure, self.text = structure, text
        self.values: list = []
        self.repairs: set[str] = set()
        self.outside: list[str] = []
        self._stack: list[list] = []
        self._keys: list[str | None] = []  # of the objects on the stack, the key that waits for its value
        self._open = {"[": 0, "{": 0}
        self._read()

    def _read(self) -> None:
        place, last = 0, ""
        if KEY.match(self.structure):
            self._push("{")
            self.repairs.add("unbalanced brackets")
        while place < len(self.structure):
            if not self._stack:
                start = OPEN.search(self.structure, place)
                self.outside.append(self.text[place : start.start() if start else None])
                if not start:
                    return
                place = start.start()
            match = TOKEN.match(self.structure, place)
            assert match, "every character begins a token"
            token, kind = match[0], match.lastgroup
            if kind == "mark":
                self._mark(PARENTHESES.get(token, token), last)
                if self.text[place] != token:
                    self.repairs.add("full-width marks")
            elif kind == "broken":
                ended = match.end() == len(self.text)
                self._value(Half(self.text[place + 1 :].strip()) if ended else None)
            elif kind != "space":
                if last and last not in "[{,:":
                    self.repairs.add("missing comma")
                if token[0] == "'":
                    self.repairs.add("single quotes")
                written = self.text[place : match.end()].strip()
                if kind == "string":
                    self._value(unquoted(written, token))
                else:  # at the very end it may be half a word
                    self._value(None if match.end() == len(self.text) else PYTHON.get(written, written))
            if kind != "space":
                last = token if kind == "mark" else "x"
            place = match.end()
        if self._stack:
            self.repairs.add("cut off")
        while self._stack:
            self._pop()

    def _mark(self, mark: str, last: str) -> None:
        if mark in "[{":
            if self._stack and isinstance(self._stack[-1], Pairs) and self._keys[-1] is None:
                self.repairs.add("unbalanced brackets")  # an object that wants a key: it wasn't closed
                if self._stack[-1]:
                    self._pop()
            elif last in ("}", "]") and self._stack:
                self.repairs.add("missing comma")
            self._push(mark)
        elif mark in "]}":
            if last == ",":
                self.repairs.add("trailing comma")
            self._close("[" if mark == "]" else "{")
        elif mark == ",":
            self._keys[-1] = None
        elif not isinstance(self._stack[-1], Pairs) and last == "x":
            self._begin_object()

    def _begin_object(self) -> None:
        """A colon in a list: the name before it is the first key of an object that wasn't opened."""
        key = self._stack[-1].pop()
        self._push("{")
        self._keys[-1] = key
        self.repairs.add("unbalanced brackets")

    def _push(self, opening: str) -> None:
        self._stack.append(Pairs() if opening == "{" else [])
        self._keys.append(None)
        self._open[opening] += 1

    def _close(self, opening: str) -> None:
        top = "{" if isinstance(self._stack[-1], Pairs) else "["
        if top != opening:
            if not self._open[opening]:
                self.repairs.add("mixed brackets")
                self._pop()
                return
            self.repairs.add("unbalanced brackets")
            while isinstance(self._stack[-1], Pairs) != (opening == "{"):
                self._pop()
        self._pop()

    def _pop(self) -> None:
        value = self._stack.pop()
        self._keys.pop()
        self._open["{" if isinstance(value, Pairs) else "["] -= 1
        if self._stack:
            self._value(value)
        else:
            self.values.append(value)

    def _value(self, value: Any) -> None:
        top = self._stack[-1]
        if not isinstance(top, Pairs):
            top.append(value)
        elif self._keys[-1] is None and isinstance(value, list):
            top.append(("", value))
        elif self._keys[-1] is None:
            self._keys[-1] = value
        else:
            top.append((self._keys[-1], value))
            self._keys[-1] = None


def unquoted(written: str, structure: str = "") -> str:
    """The text of a quoted string; escapes are undone where they are JSON's, else only those of quotes.

    >>> unquoted('"a \\\\u0041"'), unquoted("'it\\\\'s'")
    ('a A', "it's")
    """
    inner = written[1:-1]
    if (structure or written)[0] == '"':
        try:
            return json.loads(f'"{inner}"', strict=False)
        except ValueError:
            pass
    return re.sub(r"\\(.)", r"\1", inner)
