"""Read what a model answered, in any released form, whole or damaged.

Never raises on any text, in time that grows with its length: an answer without a fault is read by ``exact`` or as JSON;
else the tolerant readers take over, each of one pass with a stack of its own, and name what they had to do.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from knowlm.extraction.exact import read_exact
from knowlm.extraction.forms import DATA, INVISIBLE, NOTHING, TASKS
from knowlm.extraction.groups import BULLET, GroupReader, clean, mask_quotes
from knowlm.extraction.items import Found, Schema, has_repeats, named
from knowlm.extraction.literals import EVIDENCE, Literals, read_json
from knowlm.extraction.records import items_of_values

REPAIRS = {  # what can be wrong with an answer that is read all the same
    "line ends": "Windows line ends",
    "invisible characters": "characters of no width",
    "prompt echoed": "the prompt, or more prompts after the answer",
    "special tokens": "tokens such as </s>",
    "code fence": "Markdown's ```",
    "text around": "words before, between or after the items",
    "list marks": "numbers or dots before the items",
    "full-width marks": "ASCII and full-width punctuation mixed",
    "single quotes": "strings in single quotes",
    "missing comma": "no comma between values",
    "trailing comma": "a comma before a closing bracket",
    "several values": "several JSON values instead of one",
    "other keys": "keys in another spelling or language",
    "mixed brackets": "opened with one bracket, closed with another",
    "unbalanced brackets": "a bracket not closed, or not opened",
    "label in another place": "fields in another order, which the schema told",
    "comma in a name": "a bare name with a comma",
    "incomplete item": "a record without one of its parts, left out",
    "cut off": "the end is missing; half an item is left out",
    "repeated": "items given again, and kept: a model that repeats itself is less precise",
}
WIDE = str.maketrans("（）【】［］｛｝＜＞，：；＃“”‘’＂", '()[][]{}<>,:;#""\'\'"')
WIDER = str.maketrans("《》〈〉、", "<><>,")  # mostly part of a name: marks only if nothing is found without
SAYS_NOTHING = {"", "nan", "n/a", "none", "null", "nothing", "[]", "{}", "()", "无", "没有", "空", "不存在"}
NO_ITEMS = re.compile(
    r"(?:there (?:is|are) |i (?:found|see) )?no (?:\w+ ){0,4}(?:entit|relation|triple|event|fact)\w*[^(\[{]{0,60}$"
    r"|[^，。(\[{]{0,12}(?:没有|不存在|未发现|无)[^，。(\[{]{0,12}(?:实体|关系|三元组|事件)[^(\[{]{0,20}$",
    re.IGNORECASE,
)
ECHO = re.compile(
    r"### Response:|### 回答：|<\|im_start\|>assistant|assistant<\|end_header_id\|>|<\|assistant\|>|\[/INST\]"
)
NEXT_PROMPT = re.compile(r"### (?:Instruction|Input|Response):|Below is an instruction|<\|im_start\|>|\[INST\]")
ANSWER = re.compile(rf"[(\[{{（［【｛]|<(?!\||/?s>)|{NOTHING}")
STOP = re.compile(r"</s>|<\|(?:im_end|endoftext|end_of_text|eot_id|end)\|>|<eos>|<end_of_turn>")
SPECIAL = re.compile(
    r"</?s>|<\|[\w/ -]{1,40}\|>|<(?:unk|pad|bos|eos|(?:start|end)_of_turn)>|\[(?:/?INST|PAD|CLS|SEP)\]"
)
LEADING = re.compile(rf"(?:\s|{SPECIAL.pattern})*+")
FENCE = re.compile(r"```[\w-]*+")
LIST_MARK = re.compile(rf"(?:^|(?<=\n))[ \t]*+{BULLET}[ \t]*+")
LINE_MARK = re.compile(rf"\s*+{BULLET}\s*+")
LONGEST_LABEL = 40  # letters before a colon; more is a sentence
FILLING = re.compile(r"[\s,;:.。、|*`\[\](){}<>&]|and|和|与|及|以及")


@dataclass
class Parsed:
    """What was found; whether the answer could be read (one that says "nothing" could); and which of ``REPAIRS`` it
    took, in their order: none for an answer as ``write_answer`` gives it."""

    items: list[dict]
    readable: bool
    repairs: list[str] = field(default_factory=list)


def parse(task: str, answer: str, labels: Iterable = ()) -> Parsed:
    """Items of an answer in any known form, an item that is given twice also twice.

    labels: those of the schema (for EE event types, or its entries ``{"type", "roles"}``); they tell which field is the
    label, which comma separates where a name holds one, and a group in a sentence from an aside.

    >>> parse("RE", "(Washington, D.C.,country,U.S.)", ["country"])
    ... # doctest: +NORMALIZE_WHITESPACE
    Parsed(items=[{'head': 'Washington, D.C.', 'relation': 'country', 'tail': 'U.S.'}], readable=True,
           repairs=['comma in a name'])

    Raises ValueError on an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task}; tasks are {', '.join(TASKS)}")
    schema = Schema.of(labels)
    text = answer.strip()
    found = _read_clean(task, text, schema)
    if found is None:
        text, repairs = _tidy(answer)
        found = (_read_clean(task, text, schema) if repairs else None) or _read_damaged(task, text, schema)
        found.repairs |= repairs
    if has_repeats(task, found.items):
        found.repairs.add("repeated")
    readable = bool(found.items) or found.nothing
    return Parsed(found.items, readable, [name for name in REPAIRS if name in found.repairs] if readable else [])


def _read_clean(task: str, text: str, schema: Schema) -> Found | None:
    if len(text) < 20 and text.strip(" .。\"'").lower() in SAYS_NOTHING:
        return Found(nothing=True)
    items = read_exact(task, text, schema)
    if items is not None:
        return Found(items)
    values = read_json(text)
    if values is not None:
        found = items_of_values(task, values, schema)
        if found.items or found.nothing:
            return found
    return None


def _tidy(answer: str) -> tuple[str, set[str]]:
    """The answer without what surrounds it, and what that was."""
    repairs = set()

    def without(text: str, pattern: str | re.Pattern, by: str, repair: str) -> str:
        changed = re.sub(pattern, by, text)
        if changed != text:
            repairs.add(repair)
        return changed

    text = without(answer, "\r\n?", "\n", "line ends")
    text = without(text, f"[{INVISIBLE}]", "", "invisible characters")
    echo, prompt = ECHO.search(text), NEXT_PROMPT.search(text)
    if echo and not ANSWER.search(text, 0, prompt.start() if prompt else echo.start()):
        text = text[echo.end() :]
        repairs.add("prompt echoed")
    following = NEXT_PROMPT.search(text)
    if following and text[: following.start()].strip():
        text = text[: following.start()]
        repairs.add("prompt echoed")
    begun = LEADING.match(text)
    assert begun
    stop = STOP.search(text, begun.end())
    if stop:
        if text[stop.end() :].strip():
            repairs.add("text around")
        text = text[: stop.start()]
        repairs.add("special tokens")
    text = without(text, SPECIAL, "", "special tokens")
    return without(text, FENCE, "\n", "code fence").strip(), repairs


def _read_damaged(task: str, text: str, schema: Schema) -> Found:
    structure = text.translate(WIDE)
    if EVIDENCE.search(structure):
        literals = Literals(structure, text)
        found = items_of_values(task, literals.values, schema)
        if found.items or (found.nothing and not found.repairs):
            found.repairs |= literals.repairs | _around(literals.outside)
            if "cut off" in found.repairs:
                found.repairs.discard("incomplete item")
            if len(literals.values) > 1:
                found.repairs.add("several values")
            return found
        is_json = any(literals.values) and not "".join(literals.outside).strip()
        if is_json or "incomplete item" in found.repairs:
            return Found()  # objects, but of something else: their quotes and colons are no names
    for marks in dict.fromkeys((structure, structure.translate(WIDER))):
        masked = mask_quotes(marks)
        reader = GroupReader(task, masked, text, schema)
        found = reader.read()
        if found.items or found.nothing:
            found.repairs |= _around(reader.outside)
            return found
    found = _read_lines(task, structure, text, schema)
    if not found.items and NO_ITEMS.match(text):
        return Found(nothing=True)
    if not found.items and re.match(rf"\W*{NOTHING}\b", text):
        return Found(nothing=True, repairs=_around([text.replace(NOTHING, "")]) or {"repeated"})
    return found


def _around(outside: Iterable[str]) -> set[str]:
    """Which repairs the text outside of the items stands for."""
    joined = "\n".join(outside)
    for lead in DATA["sentence"].values():
        joined = joined.replace(lead.strip().translate(WIDE), "").replace(lead.strip(), "")
    bare = LIST_MARK.sub("", joined)
    repairs = {"list marks"} if bare != joined and len(LIST_MARK.findall(joined)) else set()
    return repairs | ({"text around"} if FILLING.sub("", bare) else set())


def _read_lines(task: str, structure: str, text: str, schema: Schema) -> Found:
    """Lines (or parts between semicolons) "relation: head, tail"; for NER "type: name, name" if the type is known."""
    found = Found()
    if task == "EE" or ":" not in structure:
        return found
    start, strange, outside = 0, False, []
    masked = mask_quotes(structure)
    for end in re.finditer(r"[\n;]|\Z", masked):
        stop = end.start()
        mark = LINE_MARK.match(masked, start, stop)
        items = _items_of_line(task, masked, text, mark.end() if mark else start, stop, schema)
        if mark and items:
            found.repairs.add("list marks")
        found.items += items
        if not items and masked[start:stop].strip():
            strange = True
            outside.append(masked[start:stop])
        start = stop + 1
    if strange and not schema.labels:
        return Found()  # prose, some of it with a colon
    found.repairs |= _around(outside)
    return found


def _items_of_line(task: str, masked: str, text: str, start: int, stop: int, schema: Schema) -> list[dict]:
    colons = [match.start() for match in re.compile(":").finditer(masked, start, stop)]
    edges = [start, *(colon + 1 for colon in colons)]
    names = [clean(text[a:b]) for a, b in zip(edges, colons, strict=False)]
    at = next((place for place, name in enumerate(names) if name in schema.labels), -1)
    if not names or (at < 0 and (schema.labels or task == "NER" or len(names[-1]) > LONGEST_LABEL)):
        return []
    if at < 0 and "," in masked[start : colons[-1]]:
        return []
    commas = [match.start() for match in re.compile(",").finditer(masked, colons[at] + 1, stop)]
    edges = [colons[at], *commas, stop - text[start:stop].rstrip().endswith("。")]
    parts = [clean(text[a + 1 : b]) for a, b in pairwise(edges)]
    if not names[at] or not all(parts):
        return []
    if task == "NER":
        return [named("NER", part, names[at]) for part in parts if part != NOTHING]
    return [named("RE", parts[0], names[at], parts[1])] if len(parts) == 2 else []
