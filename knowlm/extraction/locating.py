"""Where in a text an answer's items stand: offsets of their mentions, as records that ``examples/extract.py`` writes.

Records: NER ``{"text", "type", "start", "end"}``; RE ``{"head": {"text", "start", "end"}, "relation", "tail": {…}}``;
EE ``{"type", "trigger": {"text", "start", "end"}, "arguments": [{"text", "start", "end", "role"}]}``.
Offsets count characters of the text, as Python's strings do: ``text[start:end]`` is the record's text.
"""

import unicodedata
from collections.abc import Iterable
from functools import cache, cached_property
from itertools import product

from knowlm.chinese import simplified
from knowlm.extraction.grammar import is_chunk_end

Span = tuple[int, int]
QUOTES = str.maketrans("“”„«»「」『』‘’‚‹›–—−‐‑", '"' * 9 + "'" * 5 + "-" * 5)
MOST_PAIRS = 10_000  # of mentions looked at to find the nearest


class Text:
    """A text in which spans are found: as they are written, else in another width, case, form or Chinese script."""

    def __init__(self, text: str):
        self.text = text

    @cached_property
    def folded(self) -> tuple[str, list[int]]:
        """The text in plain letters, and of each of its characters the offset in the text."""
        letters: list[str] = []
        origins: list[int] = []
        for offset, character in enumerate(self.text):
            plain = fold(character)
            if plain.isspace() and letters and letters[-1] == " ":
                continue
            letters += plain
            origins += [offset] * len(plain)
        return "".join(letters), origins

    def find(self, span: str) -> list[Span]:
        """(start, stop) of every mention: between words if there is one, else within them; those written alike first.

        >>> Text("Ｐａｒｉｓ and paris").find("Paris")
        [(0, 5), (10, 15)]
        >>> Text("臺灣大學").find("台湾")
        [(0, 2)]
        """
        span = span.strip()
        if not span:
            return []
        found = [(start, start + len(span)) for start in _occurrences(self.text, span)] or self._find_folded(span)
        apart: list[Span] = []
        for one in [one for one in found if all(is_chunk_end(self.text, place) for place in one)] or found:
            if not apart or one[0] >= apart[-1][1]:
                apart.append(one)
        return apart

    def _find_folded(self, span: str) -> list[Span]:
        letters, origins = self.folded
        wanted = " ".join("".join(map(fold, span)).split())
        found = []
        for start in _occurrences(letters, wanted) if wanted else []:
            stop = start + len(wanted)
            cuts_start = start > 0 and origins[start - 1] == origins[start]  # within what one character became
            cuts_stop = stop < len(letters) and (
                origins[stop] == origins[stop - 1] or unicodedata.combining(letters[stop])
            )
            if not cuts_start and not cuts_stop:
                found.append((origins[start], origins[stop - 1] + 1))
        return found


def _occurrences(text: str, span: str) -> list[int]:
    starts, start = [], text.find(span)
    while start >= 0:
        starts.append(start)
        start = text.find(span, start + 1)
    return starts


@cache
def fold(character: str) -> str:
    """A character without width, case and script: full-width, compatible and capital letters, traditional Chinese.

    >>> "".join(map(fold, "ＡＢ（臺）ﬁ"))
    'ab(台)fi'
    """
    if character.isspace():
        return " "
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    plain = plain.translate(QUOTES)
    return simplified(plain) if plain > "\u2e7f" else plain


def locate(task: str, items: list[dict], text: str) -> list[dict]:
    """The records of ``items`` in ``text``, each with the item's score; an item that isn't in the text has none.

    NER: every mention of an entity, except those within a longer entity's of the same answer. RE: the two mentions
    nearest to each other. EE: the trigger's mention nearest to the arguments', and theirs nearest to it.
    """
    place = Text(text)
    if task == "NER":
        return _entities(items, place)
    records = []
    for item in items:
        record = _relation(item, place) if task == "RE" else _event(item, place)
        if record:
            records.append(record | {"score": item.get("score")})
    return records


def _entities(items: list[dict], place: Text) -> list[dict]:
    spans = [place.find(item["text"]) for item in items]
    inner, furthest = set(), 0
    for span in sorted({span for of_item in spans for span in of_item}, key=lambda span: (span[0], -span[1])):
        if span[1] <= furthest:
            inner.add(span)
        furthest = max(furthest, span[1])
    records = []
    for item, of_item in zip(items, spans, strict=True):
        score = item.get("score")
        records += [
            {"text": place.text[start:stop], "type": item["type"], "start": start, "end": stop, "score": score}
            for start, stop in [span for span in of_item if span not in inner] or of_item
        ]
    return records


def _relation(item: dict, place: Text) -> dict | None:
    pair = _nearest(place.find(item["head"]), place.find(item["tail"]))
    if not pair:
        return None
    return {"head": _mention(pair[0], place), "relation": item["relation"], "tail": _mention(pair[1], place)}


def _event(item: dict, place: Text) -> dict | None:
    triggers = place.find(item["trigger"])
    names = [(argument, found) for argument in item["arguments"] if (found := place.find(argument["text"]))]
    if not triggers:
        return None
    trigger = min(triggers, key=lambda span: sum(min(_gap(span, one) for one in found) for _, found in names))
    arguments = [
        _mention(min(found, key=lambda span: _gap(trigger, span)), place) | {"role": argument["role"]}
        for argument, found in names
    ]
    return {"type": item["type"], "trigger": _mention(trigger, place), "arguments": arguments}


def _mention(span: Span, place: Text) -> dict:
    return {"text": place.text[slice(*span)], "start": span[0], "end": span[1]}


def _nearest(heads: list[Span], tails: list[Span]) -> tuple[Span, Span] | None:
    """The head and the tail with the fewest characters between them; of equal ones the first, overlapping ones last."""
    most = max(1, int(MOST_PAIRS**0.5))
    return min(product(heads[:most], tails[:most]), key=lambda pair: _gap(*pair), default=None)


def _gap(one: Span, other: Span) -> int:
    gap = max(other[0] - one[1], one[0] - other[1])
    return gap if gap >= 0 else 1 << 40


def items_of(task: str, records: Iterable[dict]) -> list[dict]:
    """Items of records, without offsets: each once, with the best score of its mentions.

    >>> items_of("NER", [{"text": "Ann", "type": "person", "start": s, "end": s + 3} for s in (0, 9)])
    [{'text': 'Ann', 'type': 'person'}]
    """
    items: dict[str, dict] = {}
    for record in records:
        if task == "NER":
            item = {"text": record["text"], "type": record["type"]}
        elif task == "RE":
            ends = {end: record[end]["text"] for end in ("head", "tail")}
            item = {"head": ends["head"], "relation": record["relation"], "tail": ends["tail"]}
        else:
            arguments = [{"text": part["text"], "role": part["role"]} for part in record["arguments"]]
            item = {"type": record["type"], "trigger": record["trigger"]["text"], "arguments": arguments}
        known = items.setdefault(str(item), item)
        if record.get("score") is not None:
            known["score"] = max(record["score"], known.get("score", 0.0))
    return list(items.values())
