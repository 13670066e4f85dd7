"""Items of JSON-like values: records under many spellings of their keys, IEPile's objects, wrappers around either."""

from collections.abc import Iterator
from typing import Any

from knowlm.extraction.forms import NOTHING
from knowlm.extraction.items import Found, Schema, ner_item, relation_item, turn_pairs

# Keys that mean the same, those that our forms and IEPile write first.
KEYS: dict[str, dict[str, tuple[str, ...]]] = {
    task: {part: tuple(spellings.split()) for part, spellings in parts.items()}
    for task, parts in {
        "NER": {
            "text": "text entity name mention span word entity_text entities 实体 实体名 实体名称 名称 文本",
            "type": "type entity_type label category class tag entity_group 类型 实体类型 类别 标签",
        },
        "RE": {
            "head": "head subject head_entity subj source h 头实体 主体 头 主语",
            "relation": "relation predicate relationship relation_type rel property type r 关系 关系类型 谓词 谓语",
            "tail": "tail object tail_entity obj target t 尾实体 客体 尾 宾语",
        },
        "EE": {
            "trigger": "trigger event_trigger trigger_word 触发词 事件触发词",
            "type": "type event_type event label 事件类型 类型",
            "arguments": "arguments args argument event_arguments 论元 事件论元 论元列表",
        },
    }.items()
}
ARGUMENT = {
    "text": ("text", "argument", "name", "entity", "value", "mention", "论元", "文本", "实体", "名称"),
    "role": ("role", "argument_role", "type", "角色", "论元角色"),
}
WRITTEN = {"text", "type", "head", "subject", "relation", "tail", "object", "trigger", "arguments", "role"}


NO_NAME = {"nan", "none", "null", "n/a", "无", ""}  # as all that stands beside a label


class Pairs(list):
    """A JSON object as its (key, value) pairs, so that a repeated key loses nothing."""


class Half(str):
    """A string that never ended: half a name, or a label that only lacks its quote."""


def items_of_values(task: str, values: list, schema: Schema) -> Found:
    """Items anywhere in JSON values, in reading order; no recursion, so that depth does no harm.

    A bare "NAN" beside a label is no name, as IEPile writes it; a name "NAN" stands in a record with its type.
    """
    found = Found()
    work: list[tuple[Any, str]] = [(value, "") for value in reversed(values)]
    while work:
        value, label = work.pop()
        if isinstance(value, str):
            name = _scalar(value)
            if value in ("", NOTHING):
                found.nothing = True
            elif label and task == "NER" and name:
                found.items.append(ner_item(name, label, Schema())[0])
        elif isinstance(value, Pairs):
            record = _canonical(value, KEYS[task], schema, found)
            kind = record.get("relation" if task == "RE" else "type", NOTHING)
            if kind == NOTHING and NOTHING in (record[part] for part in record if part != "arguments"):
                found.nothing = True
                continue
            before = len(found.items)
            found.items += _items(task, value, record, label, schema, found)
            if len(found.items) == before:
                _open_object(task, value, schema, work, found)
        elif isinstance(value, list):
            item = _listed_item(task, value, label, schema)
            if item:
                found.items.append(item)
            else:
                work.extend((entry, label) for entry in reversed(value))
        found.nothing |= not value
    return found


def _canonical(pairs: Pairs, keys: dict[str, tuple[str, ...]], schema: Schema, found: Found) -> dict[str, Any]:
    """The parts of a record by our names; the first spelling of a part that is there counts."""
    by_key = {key.strip().lower().replace(" ", "_"): value for key, value in pairs}
    record = {}
    for part, spellings in keys.items():
        spelling = next((spelling for spelling in spellings if spelling in by_key), None)
        if spelling is not None:
            value = by_key[spelling]
            if isinstance(value, Pairs) and part != "arguments":  # {"head": {"text": ..., "start": ...}}
                value = next((inner for key, inner in value if key in ("text", "name")), None)
            if isinstance(value, Half) and value in schema.labels:
                value = str(value)
            record[part] = value
            if spelling not in WRITTEN and not isinstance(value, list):
                found.repairs.add("other keys")
    return record


def _items(task: str, pairs: Pairs, record: dict, label: str, schema: Schema, found: Found) -> Iterator[dict]:
    """The item of a record; several, where one of its parts is a list of names; none if a part is missing."""
    names = {part: _names(record.get(part)) for part in KEYS[task] if part != "arguments"}
    kind = "relation" if task == "RE" else "type"
    names[kind] = names[kind] or ([label] if label else [])
    most = max(names, key=lambda part: len(names[part]))
    if not all(names.values()) or any(len(names[part]) > 1 for part in names if part != most):
        return
    for name in names[most]:
        item: dict[str, Any] = {part: name if part == most else names[part][0] for part in names}
        if task == "EE":
            beside = Pairs((key, value) for key, value in pairs if key.strip() in schema.roles)
            item["arguments"] = _arguments(record.get("arguments", beside), schema, found)
        yield item


def _listed_item(task: str, value: list, label: str, schema: Schema) -> dict | None:
    """The item of a list of names, as [head, relation, tail] or {relation: [head, tail]}; the schema tells."""
    names = [_scalar(entry) for entry in value[:4]]
    if not all(names) or NOTHING in names:
        return None
    if task == "RE" and label in schema.labels and len(names) == 2:
        return relation_item((names[0], label, names[1]), schema)[0]
    if label in schema.labels or not schema.labels.intersection(names):
        return None
    if task == "RE" and len(names) == 3:
        return relation_item(names, schema)[0]
    return ner_item(names[0], names[1], schema)[0] if task == "NER" and len(names) == 2 else None


def _scalar(value: Any) -> str:
    return value.strip() if isinstance(value, str) and not isinstance(value, Half) else ""


def _names(value: Any) -> list[str]:
    """The names of a part, which is one or a list of them."""
    return [name for name in map(_scalar, value if type(value) is list else [value]) if name]


def _arguments(value: Any, schema: Schema, found: Found) -> list[dict]:
    """An event's arguments: a list of records or pairs, or an object from role to one name or several."""
    pairs = []
    if isinstance(value, Pairs):
        pairs = [(name, role) for role, names in value for name in (names if type(names) is list else [names])]
    elif isinstance(value, list):
        for entry in value:
            if isinstance(entry, Pairs):
                record = _canonical(entry, ARGUMENT, schema, found)
                texts, role = record.get("text"), record.get("role")
                if texts is None and role is None:
                    pairs += [(name, role) for role, name in entry]
                pairs += [(text, role) for text in (texts if type(texts) is list else [texts])]
            elif isinstance(entry, list) and len(entry) == 2:
                pairs += turn_pairs([(_scalar(entry[0]), _scalar(entry[1]))], schema)[0]
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
        elif value == NOTHING or (label in schema.labels and isinstance(value, str) and value.lower() in NO_NAME):
            found.nothing = True
        elif task == "NER" and label in schema.labels:
            work.append((value, label))
        elif task == "NER" and isinstance(value, str) and value in schema.labels and label not in spellings:
            work.append(([label, str(value)], ""))
