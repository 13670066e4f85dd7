"""Read what a model answered, in any released form, whole or damaged.

Never raises on any text, in time that grows with its length: an answer without a fault is read by ``exact`` or as JSON;
else the tolerant readers take over, each of one pass with a stack of its own, and name what they had to do.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from knowlm.extraction.exact import read_exact
from knowlm.extraction.forms import DATA, INVISIBLE, NOTHING, OPENING, QUOTES, TASKS
from knowlm.extraction.groups import BULLET, GroupReader, mask_quotes
from knowlm.extraction.items import Found, Schema, has_repeats
from knowlm.extraction.lines import read_keyed, read_lines
from knowlm.extraction.literals import EVIDENCE, Literals, read_json
from knowlm.extraction.records import items_of_values

REPAIRS = {  # what can be wrong with an answer that is read all the same
    "line ends": "Windows line ends",
    "invisible characters": "characters of no width",
    "prompt echoed": "the prompt, or more prompts after the answer",
    "special tokens": "tokens such as </s>",
    "code fence": "Markdown's ```",
    "answer in a string": "the answer as a JSON string or within one, or with HTML's entities for its marks",
    "text around": "words before, between or after the items",
    "list marks": "numbers or dots before the items",
    "full-width marks": "ASCII and full-width punctuation mixed",
    "single quotes": "strings in single quotes",
    "missing comma": "no comma between values",
    "trailing comma": "a comma before a closing bracket",
    "several values": "several JSON values instead of one",
    "other keys": "keys in another spelling or language",
    "other form": 'in no form that is asked for: a table, "name (type)", "head: …, relation: …"',
    "mixed brackets": "opened with one bracket, closed with another",
    "unbalanced brackets": "a bracket not closed, or not opened",
    "label in another place": "fields in another order, which the schema told",
    "comma in a name": "a bare name with a comma",
    "incomplete item": "a record without one of its parts, left out",
    "cut off": "the end is missing; half an item is left out",
    "repeated": "items given again, and kept: a model that repeats itself is less precise",
}
WIDE = str.maketrans("（）【】［］｛｝＜＞，：；＃“”‘’＂", '()[][]{}<>,:;#""\'\'"')
WIDER = str.maketrans("《》〈〉、;|", "<><>,,,")  # mostly part of a name: marks only if nothing is found without
SAYS_NOTHING = {"", "nan", "n/a", "none", "null", "nothing", "[]", "{}", "()", "<>", "无", "没有", "空", "不存在"}
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
ENTITIES = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&amp;": "&"}  # HTML's
MARKLESS = (("&lt;", OPENING), ("&quot;", QUOTES))  # entities that stand for the answer's own marks if none is there
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
        inner = "" if found.items or found.nothing else _in_strings(text)
        if inner:
            found = _read_clean(task, inner, schema) or _read_damaged(task, inner, schema)
            repairs.add("answer in a string")
        found.repairs |= repairs
    if has_repeats(task, found.items):
        found.repairs.add("repeated")
    readable = bool(found.items) or found.nothing
    return Parsed(found.items, readable, [name for name in REPAIRS if name in found.repairs] if readable else [])


def read_answer(task: str, answer: str, labels: Iterable) -> list[dict]:
    """The items of an answer that is taken for gold: ValueError if it can't be read."""
    parsed = parse(task, answer, labels)
    if not parsed.readable:
        raise ValueError(f"its answer {answer[:60]!r} can't be read")
    return parsed.items


def _read_clean(task: str, text: str, schema: Schema) -> Found | None:
    said = text.translate(WIDE).strip("\"'")
    bare = said.strip(" .。\"'").lower()
    if len(text) < 20 and bare in SAYS_NOTHING and (bare or not said):  # "..." says something, if little
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

    def without(text: str, pattern: str | re.Pattern, by: str | Callable, repair: str) -> str:
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
    text = without(text, FENCE, "\n", "code fence").strip()
    if any(entity in text and not re.search(f"[{marks}]", text) for entity, marks in MARKLESS):
        text = without(text, "&(?:lt|gt|quot|#39|amp);", lambda match: ENTITIES[match[0]], "answer in a string")
    if text[:1] == text[-1:] == '"' and _in_strings(text):
        text = _in_strings(text).strip()
        repairs.add("answer in a string")
    return text, repairs


def _in_strings(text: str) -> str:
    """The answers that stand in the strings of JSON; "" if there are none."""
    try:
        work = [json.loads(text)]
    except (ValueError, RecursionError):
        return ""
    strings = []
    while work:
        value = work.pop()
        if isinstance(value, str) and ANSWER.search(value):
            strings.append(value)
        elif isinstance(value, dict | list):
            work.extend(reversed(list(value.values()) if isinstance(value, dict) else value))
    return "\n".join(strings)


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
    found = read_keyed(task, structure, text)
    if found.items:
        return found
    for marks in dict.fromkeys((structure, structure.translate(WIDER))):
        masked = mask_quotes(marks)
        reader = GroupReader(task, masked, text, schema)
        found = reader.read()
        if found.items or found.nothing:
            found.repairs |= _around(reader.outside)
            return found
    found, outside = read_lines(task, mask_quotes(structure), text, schema)
    if found.items:
        found.repairs |= _around(outside)
    if not found.items and NO_ITEMS.match(text):
        return Found(nothing=True)
    lead = "|".join(re.escape(lead) for lead in DATA["sentence"].values())
    if not found.items and re.match(rf"(?:{lead})?+\W*{NOTHING}\b", text):
        repeated = {"repeated"} if text.count(NOTHING) > 1 else set()
        return Found(nothing=True, repairs=_around([text.replace(NOTHING, "")]) or repeated)
    return found


def _around(outside: Iterable[str]) -> set[str]:
    """Which repairs the text outside of the items stands for."""
    joined = "\n".join(outside)
    for lead in DATA["sentence"].values():
        joined = joined.replace(lead.strip().translate(WIDE), "").replace(lead.strip(), "")
    bare = LIST_MARK.sub("", joined)
    repairs = {"list marks"} if bare != joined and len(LIST_MARK.findall(joined)) else set()
    return repairs | ({"text around"} if FILLING.sub("", bare) else set())
