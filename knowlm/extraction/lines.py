"""Items that stand in no brackets: "relation: head, tail", a table's rows, "name (type)", "Head: …, Relation: …".

One pass over the lines: linear.
"""

import re
from functools import cache
from itertools import pairwise

from knowlm.extraction.forms import DATA, NOTHING
from knowlm.extraction.groups import BULLET, Group, GroupReader, clean
from knowlm.extraction.items import Found, Schema, named
from knowlm.extraction.records import KEYS

LINE_MARK = re.compile(rf"[\s,]*+(?:{BULLET}\s*+)?")
LINE_END = re.compile(r"[\n;。]|\Z")
BRACKETED = re.compile(r"\(([^()\n]*+)\)")
LONGEST_LABEL = 40  # letters before a colon; more is a sentence
OTHER_FORM = "other form"


def read_lines(task: str, structure: str, text: str, schema: Schema) -> tuple[Found, list[str]]:
    """Items of lines (or of parts between semicolons) of an answer in NER or RE, and the lines that held none.

    structure: ``text`` with ASCII marks and masked quotes, of equal length. "relation: head, tail" with a relation
    that isn't in the schema is read only where every line is so; and, where there is a schema, beside one of its own or
    behind the sentence's lead.
    """
    found = Found()
    unasked: list[dict] = []
    outside: list[str] = []
    if task == "EE":
        return found, outside
    structure = structure.replace("|", ",")  # a table's
    lead = start = next((len(lead) for lead in DATA["sentence"].values() if text.startswith(lead)), 0)
    reader = GroupReader(task, structure, text, schema)
    for end in LINE_END.finditer(structure, start):
        stop = end.start()
        mark = LINE_MARK.match(structure, start, stop)
        begin = mark.end() if mark else start
        items = _labelled(task, structure, text, begin, stop, schema)
        if not items and schema.labels:
            items = _in_other_form(reader, begin, stop)
            if items:
                found.repairs.add(OTHER_FORM)
        if items and mark and mark[0].strip(" \t\n,"):
            found.repairs.add("list marks")
        found.items += items
        others = [] if items else _labelled(task, structure, text, begin, stop, Schema())
        unasked += others
        if not items and not others and structure[start:stop].strip():
            outside.append(structure[start:stop])
        start = stop + 1
    if (found.items or lead) and not outside:
        found.items += unasked
    return (found if schema.labels or not outside else Found()), outside  # without labels: prose, some with a colon


def _labelled(task: str, structure: str, text: str, start: int, stop: int, schema: Schema) -> list[dict]:
    """Items of "relation: head, tail" or "type: name, name"; text before the label may end in a colon, too."""
    colons = [match.start() for match in re.compile(":").finditer(structure, start, stop)]
    edges = [start, *(colon + 1 for colon in colons)]
    names = [_plain(text[a:b]) for a, b in zip(edges, colons, strict=False)]
    at = next((place for place, name in enumerate(names) if name in schema.labels), -1)
    if not names or (at < 0 and (schema.labels or task == "NER" or len(names[-1]) > LONGEST_LABEL)):
        return []
    if at < 0 and "," in structure[start : colons[-1]]:
        return []
    comma = re.compile("[,、]" if task == "NER" else ",")
    commas = [match.start() for match in comma.finditer(structure, colons[at] + 1, stop)]
    parts = [_plain(text[a + 1 : b]) for a, b in pairwise([colons[at], *commas, stop])]
    if not names[at] or not all(parts):
        return []
    if task == "NER":
        return [named("NER", part, names[at]) for part in parts if part != NOTHING]
    return [named("RE", parts[0], names[at], parts[1])] if len(parts) == 2 else []


def _in_other_form(reader: GroupReader, start: int, stop: int) -> list[dict]:
    """Items of "name: type", "head, relation, tail" or "name (type), name (type)", where the schema has the label."""
    structure, text, labels = reader.structure, reader.text, reader.schema.labels
    line = structure[start:stop]
    if re.search(r"[\[{<]", line) or line.count("(") != line.count(")"):
        return []  # a group that was cut off
    while stop > start and structure[stop - 1] in " \t,":
        stop -= 1
    colon = structure.rfind(":", start, stop)
    if reader.task == "NER" and colon >= 0 and _plain(text[colon + 1 : stop]) in labels:
        name = _plain(text[start:colon])
        return [named("NER", name, _plain(text[colon + 1 : stop]))] if name else []
    commas = [match.start() for match in re.compile(",").finditer(structure, start, stop)]
    item = reader.item(Group(start - 1, stop, commas), listed=False)
    if item or reader.task == "RE":
        return [item] if item else []
    items, last = [], start
    for match in BRACKETED.finditer(structure, start, stop):
        label = text[match.start(1) : match.end(1)].strip()
        if label not in labels:  # the name is only taken where one is: so that it isn't taken again and again
            continue
        name = _plain(text[last : match.start()].lstrip(" ,、，;；"))
        last = match.end()
        if name:
            items.append(named("NER", name, label))
    return items


def _plain(name: str) -> str:
    """A name without Markdown's bold letters."""
    return clean(name.strip().removeprefix("**").removesuffix("**"))


def read_keyed(task: str, structure: str, text: str) -> Found:
    """Records of NER or RE as "Head: Paris, Relation: country, Tail: France", in one line or several."""
    found = Found()
    if task == "EE":
        return found
    keys = list(_key(task).finditer(structure))
    record: dict[str, str] = {}
    for key, following in pairwise([*keys, None]):
        assert key and key.lastgroup
        value = structure[key.end() : following.start() if following else len(text)]
        line = value.lstrip(" \t*").split("\n", 1)[0].rstrip(" \t,;|)]}>([{<")
        start = key.end() + len(value) - len(value.lstrip(" \t*"))
        if key.lastgroup in record:
            record = {}
        record[key.lastgroup] = _plain(text[start : start + len(line)])
        if len(record) == len(KEYS[task]):
            if all(record.values()):
                found.items.append({part: record[part] for part in KEYS[task]})
            record = {}
    if found.items:
        found.repairs.add(OTHER_FORM)
    return found


@cache
def _key(task: str) -> re.Pattern:
    """A key before its colon, at the start of a line or behind a mark; the part that it names is the group's name."""
    parts = "|".join(
        rf"(?P<{part}>{'|'.join(map(re.escape, sorted(spellings, key=len, reverse=True)))})".replace("_", "[_ ]")
        for part, spellings in KEYS[task].items()
    )
    return re.compile(rf"(?:(?<=[\n,;|(\[{{<])|\A)[\s*•-]*+(?:{parts})[\s*]*+:", re.IGNORECASE)
