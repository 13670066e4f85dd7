"""Items of JSON-like values: records under many spellings of their keys, IEPile's objects, wrappers around either."""

from typing import Any

from knowlm.extraction.forms import NOTHING
from knowlm.extraction.items import Found, Schema, named

# Keys that mean the same, those that our forms and IEPile write first.
KEYS: dict[str, dict[str, tuple[str, ...]]] = {
    "NER": {
        "text": ("text", "entity", "name", "mention", "span", "word", "实体", "实体名", "实体名称", "名称", "文本"),
        "type": ("type", "entity_type", "label", "category", "class", "tag", "类型", "实体类型", "类别", "标签"),
    },
    "RE": {
        "head": ("head", "subject", "head_entity", "subj", "source", "头实体", "主体", "头", "主语"),
        "relation": (
            "relation",
            "predicate",
            "relationship",
            "relation_type",
            "rel",
            "property",
            "type",
            "关系",
            "谓词",
        ),
        "tail": ("tail", "object", "tail_entity", "obj", "target", "尾实体", "客体", "尾", "宾语"),
    },
    "EE": {
        "trigger": ("trigger", "event_trigger", "trigger_word", "触发词", "事件触发词"),
        "type": ("type", "event_type", "event", "label", "事件类型", "类型"),
        "arguments": ("arguments", "args", "argument", "event_arguments", "论元", "事件论元", "论元列表"),
    },
}
ARGUMENT = {
    "text": ("text", "argument", "name", "entity", "value", "mention", "论元", "文本", "实体", "名称"),
    "role": ("role", "argument_role", "type", "角色", "论元角色"),
}
WRITTEN = {"text", "type", "head", "subject", "relation", "tail", "object", "trigger", "arguments", "role"}


class Pairs(list):
    """A JSON object as its (key, value) pairs, so that a repeated key loses nothing."""


def items_of_values(task: str, values: list, schema: Schema) -> Found:
    """Items anywhere in JSON values, in reading order; no recursion, so that depth does no harm."""
    found = Found()
    work: list[tuple[Any, str]] = [(value, "") for value in reversed(values)]
    while work:
        value, label = work.pop()
        if isinstance(value, str):
            if label and task == "NER" and value.strip():
                found.items.append(named("NER", value.strip(), label))
            found.nothing |= value in ("", NOTHING)
        elif isinstance(value, Pairs):
            record = _canonical(value, KEYS[task], found)
            item = _item(task, record, label, found)
            if item:
                found.items.append(item)
            else:
                _open_object(task, value, schema, work, found)
        elif isinstance(value, list):
            work.extend((entry, label) for entry in reversed(value))
        found.nothing |= not value
    return found


def _canonical(pairs: Pairs, keys: dict[str, tuple[str, ...]], found: Found) -> dict[str, Any]:
    """The parts of a record by our names; the first spelling of a part that is there counts."""
    by_key = {key.strip().lower().replace(" ", "_"): value for key, value in pairs}
    record = {}
    for part, spellings in keys.items():
        spelling = next((spelling for spelling in spellings if spelling in by_key), None)
        if spelling is not None:
            value = by_key[spelling]
            if isinstance(value, Pairs) and part != "arguments":  # {"head": {"text": ..., "start": ...}}
                value = next((inner for key, inner in value if key in ("text", "name")), None)
            record[part] = value
            if spelling not in WRITTEN and not isinstance(value, list):
                found.repairs.add("other keys")
    return record


def _item(task: str, record: dict, label: str, found: Found) -> dict | None:
    names = {part: _scalar(record.get(part)) for part in KEYS[task] if part != "arguments"}
    kind = "relation" if task == "RE" else "type"
    if not names[kind] and task != "NER":
        names[kind] = label
    if not all(names.values()):
        return None
    if task != "EE":
        return names
    return {**names, "arguments": _arguments(record.get("arguments"), found)}


def _scalar(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _arguments(value: Any, found: Found) -> list[dict]:
    """An event's arguments: a list of records, or an object from role to one name or several."""
    pairs = []
    if isinstance(value, Pairs):
        pairs = [(name, role) for role, names in value for name in (names if type(names) is list else [names])]
    elif isinstance(value, list):
        for entry in value:
            if isinstance(entry, Pairs):
                record = _canonical(entry, ARGUMENT, found)
                pairs.append((record.get("text"), record.get("role")))
    named_pairs = [(_scalar(text), _scalar(role)) for text, role in pairs]
    return [{"text": text, "role": role} for text, role in named_pairs if text and role and text != NOTHING]


def _open_object(task: str, pairs: Pairs, schema: Schema, work: list, found: Found) -> None:
    """Put the values of an object that is no record to work: labels with their items, or a wrapper around records."""
    spellings = {spelling for part in KEYS[task].values() for spelling in part}
    nested = any(isinstance(value, list) for _, value in pairs)  # an object is a list too
    if not nested and any(key in spellings for key, _ in pairs):
        found.repairs.add("incomplete item")
    for key, value in reversed(pairs):
        label = key.strip()
        if isinstance(value, list):
            work.append((value, label))
        elif value == NOTHING:
            found.nothing = True
        elif task == "NER" and label in schema.labels:
            work.append((value, label))
