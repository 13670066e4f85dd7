"""Long documents in windows that overlap, long schemas in batches, and their answers put together again."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from knowlm.extraction.forms import LABELS_AT_ONCE, TASKS, render
from knowlm.extraction.locating import locate
from knowlm.files import HALF
from knowlm.sentences import language_of, sentence_ends

LONGEST_WINDOW = 1000  # characters; of 1,500 Chinese ones the first mask takes more work than vLLM lets llguidance do
NAMES = {"NER": "entities", "RE": "relations", "EE": "events"}  # of the records in examples/extract.py's output


@dataclass
class Ask:
    """One prompt's worth of a question: a window of its text, a batch of its schema."""

    question: int
    task: str
    schema: list
    text: str
    start: int  # of the window in the document
    instruction: str


@dataclass
class Extraction:
    """What was extracted from one text.

    items: as gold has them (see the package), each once, with its "score"; a triple or event of two windows is one.
    records: the same with offsets in the text, as ``knowlm.extraction.locating`` describes, in reading order.
    answer: what the model wrote, up to its last complete item; of each window and batch in turn, a line between.
    is_whole: whether the model ended every answer itself; else the rest was cut off at the most tokens.
    not_found: items left out, as the text doesn't hold them or the schema not their label (free decoding alone).
    """

    items: list[dict]
    records: list[dict]
    answer: str
    is_whole: bool = True
    not_found: list[dict] = field(default_factory=list)


def check_question(task: str, schema: Sequence, text: str) -> None:
    """ValueError if it isn't a task, a schema as the package describes, or a text."""
    if task not in TASKS:
        raise ValueError(f"task {task!r}: is one of {', '.join(TASKS)}")
    labels: list = list(schema) if isinstance(schema, list | tuple) and schema else [None]
    if task == "EE":
        fits = all(
            isinstance(e, dict) and e.keys() == {"type", "roles"} and isinstance(e["roles"], list) for e in labels
        )
        names: list = [name for event in labels for name in (event["type"], *event["roles"])] if fits else [None]
    else:
        names = list(labels)
    if not all(isinstance(name, str) and name.strip() == name != "" for name in names):
        form = '[{"type": "trip", "roles": ["who", "where"]}]' if task == "EE" else '["person", "place"]'
        raise ValueError(f"schema: for {task} a list like {form} is needed, without empty labels")
    if not isinstance(text, str):
        raise ValueError("text: must be a text")
    if HALF.search(text + "".join(names)):
        raise ValueError("text: holds half a character (a lone surrogate); read it as UTF-8")


def canonical_schema(task: str, schema: Sequence) -> list:
    """The schema in the one order in which it is asked for, every label once, the roles of one event type together.

    >>> canonical_schema("RE", ["country", "capital", "country"])
    ['capital', 'country']
    """
    if task != "EE":
        return sorted(set(schema))
    roles: dict[str, set] = {}
    for event in schema:
        roles.setdefault(event["type"], set()).update(event["roles"])
    return [{"type": kind, "roles": sorted(roles[kind])} for kind in sorted(roles)]


def windows(text: str, size: int, overlap: int, language: str) -> list[tuple[int, int]]:
    """(start, stop) of windows of at most ``size`` characters that cover a text.

    They end where sentences end, and begin again up to ``overlap`` characters before, where one begins: a name or fact
    that a window cuts is whole in the next. A sentence longer than a window is cut at white space, or anywhere.

    >>> windows("One two. Three four. Five six.", size=22, overlap=12, language="english")
    [(0, 20), (8, 30)]
    """
    if not 0 <= overlap < size:
        raise ValueError(f"window={size}, overlap={overlap}: the overlap must be shorter than the window")
    if len(text) <= size:
        return [(0, len(text))]
    ends = sentence_ends(text, language)
    found = [(0, _last_end(text, ends, 0, size))]
    while found[-1][1] < len(text):
        last_start, last_stop = found[-1]
        earliest = max(last_start + 1, last_stop - overlap)
        begins = ends[bisect_left(ends, earliest) : bisect_left(ends, last_stop)]
        begins = begins or [_next_word(text, earliest, last_stop)]
        stops = ((begin, _last_end(text, ends, begin, size)) for begin in [*begins, last_stop])
        found.append(next(window for window in stops if window[1] > last_stop))  # where what follows has room
    return found


def _last_end(text: str, ends: list[int], start: int, size: int) -> int:
    """Where a window that begins at ``start`` stops."""
    if start + size >= len(text):
        return len(text)
    end = ends[bisect_right(ends, start + size) - 1] if ends[0] <= start + size else 0
    if end > start:
        return end
    spaces = [text.rfind(space, start + size // 2, start + size) for space in " \n\t　，,"]
    return max(spaces) + 1 if max(spaces) > 0 else start + size


def _next_word(text: str, start: int, stop: int) -> int:
    """Where the first word behind ``start`` begins, or ``start`` if none does before ``stop``."""
    return next((i + 1 for i in range(start, stop) if text[i].isspace()), start)


def split(questions: Sequence[dict], window: int, overlap: int, labels_at_once: int | None = None) -> list[Ask]:
    """All prompts' worths of questions ``{"task", "schema", "text", "language"}``.

    language: ``english`` or ``chinese``, guessed where it is missing. labels_at_once: of a schema in a prompt, as
    ``LABELS_AT_ONCE`` unless given. Raises ValueError on a question that is none.
    """
    asks = []
    for number, question in enumerate(questions):
        task, text = question["task"], question["text"]
        check_question(task, question["schema"], text)
        schema = canonical_schema(task, question["schema"])
        language = question.get("language") or language_of(text)
        step = labels_at_once or LABELS_AT_ONCE[task]
        for start, stop in windows(text, window, overlap, language):
            for first in range(0, len(schema), step):
                batch = schema[first : first + step]
                instruction = render(task, batch, "tuple", language)
                asks.append(Ask(number, task, batch, text[start:stop], start, instruction))
    return asks


def join(task: str, text: str, parts: Iterable[tuple[Ask, Extraction]]) -> Extraction:
    """The extraction of a whole text from those of its windows and batches.

    An item of two windows counts once, with its higher score. The mentions of an entity are looked for in the whole
    text, also where the model passed them over: a name seldom changes its sense within a document (Gale et al. 1992).
    Those of triples and events are looked for in their window, and count once where windows overlap.
    """
    items: dict[str, dict] = {}
    records: dict[str, dict] = {}
    answers, is_whole, not_found = [], True, []
    for ask, part in parts:
        for item in part.items:
            _keep_better(items, item)
        for record in part.records if task != "NER" else []:
            _keep_better(records, _moved(record, ask.start))
        answers.append(part.answer)
        is_whole &= part.is_whole
        not_found += part.not_found
    for record in locate(task, list(items.values()), text) if task == "NER" else []:
        _keep_better(records, record)
    ordered = sorted(records.values(), key=_place)
    return Extraction(list(items.values()), ordered, "\n".join(answers), is_whole, not_found)


def _keep_better(kept: dict[str, dict], found: dict) -> None:
    key = json.dumps([value for name, value in sorted(found.items()) if name != "score"], sort_keys=True)
    if key not in kept or (found.get("score") or 0) > (kept[key].get("score") or 0):
        kept[key] = found


def _moved(record: dict, by: int) -> dict:
    """A record with its offsets counted from further ahead."""
    moved: dict = {}
    for name, value in record.items():
        if name in ("start", "end"):
            moved[name] = value + by
        elif isinstance(value, dict):
            moved[name] = _moved(value, by)
        else:
            moved[name] = [_moved(part, by) for part in value] if isinstance(value, list) else value
    return moved


def _place(record: dict) -> tuple:
    first = record.get("head") or record.get("trigger") or record
    last = record.get("tail") or first
    return first["start"], first["end"], last["start"], last["end"], record.get("relation") or record["type"]
