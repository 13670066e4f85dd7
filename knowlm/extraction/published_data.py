"""The files that others publish extraction data in, read into cases and written from them.

A case is what finetune/evaluate.py takes: ``{"id", "task", "language", "schema", "input", "gold"}``.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from knowlm.extraction.forms import render, write_answer
from knowlm.extraction.parsing import read_answer
from knowlm.sentences import language_of

# What IEPile's instructions say, in words of our own.
REQUESTS = {
    "NER": (
        "Extract the entities of the types in the schema from the input; an empty list for a type without any. "
        "Answer with a JSON object.",
        "请从输入中抽取schema所列类型的实体，没有的类型给出空列表，用JSON对象回答。",
    ),
    "RE": (
        "Extract the triples of the relations in the schema from the input; an empty list for a relation without any. "
        "Answer with a JSON object.",
        "请从输入中抽取schema所列关系的三元组，没有的关系给出空列表，用JSON对象回答。",
    ),
    "EE": (
        "Extract the events of the types in the schema from the input; an empty list for a type without any, NAN for "
        "an argument that isn't there. Answer with a JSON object.",
        "请从输入中抽取schema所列类型的事件，没有的类型给出空列表，没有的论元给出NAN，用JSON对象回答。",
    ),
}
LISTED = re.compile(r"关系[^{\[]{0,20}[{\[]([^}\]]*)[}\]]")  # 关系类型为{'国家','属于'}
OWN = re.compile(r"-(NER|RE|EE)(-\d+)?$")  # what a case's id has more than its record's
QUOTED = re.compile(r"['\"‘“]([^'\"’”]+)['\"’”]")


def read_iepile(record: dict, number: int) -> Iterator[dict]:
    """``{"task", "source", "instruction", "output"}``; instruction and output are JSON texts."""
    asked, answer = record["instruction"], record["output"]
    asked = json.loads(asked) if isinstance(asked, str) else asked
    answer = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    schema = list(asked["schema"]) if isinstance(asked["schema"], dict) else asked["schema"]  # labels with descriptions
    task = record.get("task") or _iepile_task(schema, answer)
    if task not in REQUESTS:
        raise ValueError(f"task {task} is none of {', '.join(REQUESTS)}")
    if task == "EE":
        schema = [{"type": event["event_type"], "roles": list(event.get("arguments", ()))} for event in schema]
    case = {
        "id": record.get("id", f"iepile-{number}"),
        "task": task,
        "language": language_of(asked["input"]),
        **({"source": record["source"]} if record.get("source") else {}),
        "schema": schema,
        "input": asked["input"],
    }
    yield case | {"gold": read_answer(task, answer, case["schema"])}


def _iepile_task(schema: list, answer: str) -> str:
    """The task of a record that doesn't tell: schemas of events are objects, and NER's answers lists of names."""
    if any(isinstance(label, dict) for label in schema):
        return "EE"
    found = [item for items in json.loads(answer).values() for item in items]
    if not found:
        raise ValueError("has no task, and its answer doesn't tell")
    return "NER" if isinstance(found[0], str) else "RE"


def write_iepile(case: dict) -> dict:
    task, schema, gold = case["task"], case["schema"], case["gold"]
    if task == "EE":
        schema = [{"event_type": e["type"], "trigger": True, "arguments": e["roles"]} for e in schema]
    question = {"instruction": REQUESTS[task][case["language"] == "chinese"], "schema": schema, "input": case["input"]}
    return {
        "id": case["id"],
        "task": task,
        "source": case.get("source", ""),
        "instruction": json.dumps(question, ensure_ascii=False),
        "output": write_answer(task, gold, "iepile", schema=case["schema"]),
    }


def read_annotated(record: dict, number: int) -> Iterator[dict]:
    """InstructIE's ``{"id", "cate", "text", "relation": [...]}``; likewise IEPile's sources with "entity" or "event".

    The schema of each case holds the labels of its own gold: ``label_batches.batched`` adds others.
    """
    text = record["text"]
    case = {"id": str(record.get("id", number)), "language": language_of(text), "input": text}
    if record.get("cate"):
        case["domain"] = record["cate"]
    entities = {
        (entity["entity"], entity.get("entity_type") or entity["type"]): None for entity in record.get("entity", ())
    }
    relations = []
    for triple in record.get("relation", ()):
        relations.append({name: triple[name] for name in ("head", "relation", "tail")})
        ends = ((triple[end], triple.get(f"{end}_type")) for end in ("head", "tail"))
        entities |= {(name, kind): None for name, kind in ends if kind}
    events = [
        {
            "type": event["event_type"],
            "trigger": event["event_trigger"],
            "arguments": [{"text": a["argument"], "role": a["role"]} for a in event["arguments"]],
        }
        for event in record.get("event", ())
    ]
    if entities or "entity" in record:
        gold = [{"text": name, "type": kind} for name, kind in entities]
        yield _annotated(case, "NER", sorted({item["type"] for item in gold}), gold)
    if relations or "relation" in record:
        yield _annotated(case, "RE", sorted({item["relation"] for item in relations}), relations)
    if events or "event" in record:
        roles: dict[str, dict] = {}
        for event in events:
            roles.setdefault(event["type"], {}).update((a["role"], None) for a in event["arguments"])
        yield _annotated(
            case, "EE", [{"type": kind, "roles": list(names)} for kind, names in sorted(roles.items())], events
        )


def _annotated(case: dict, task: str, schema: list, gold: list[dict]) -> dict:
    return case | {"id": f"{case['id']}-{task}", "task": task, "schema": schema, "gold": gold}


def write_annotated(cases: Iterable[dict]) -> Iterator[dict]:
    """Records of all cases, those of one text together."""
    by_text: dict[tuple[str, str], list[dict]] = {}  # by its record's id, too, if the case's tells it
    for case in cases:
        name = OWN.sub("", str(case["id"]))
        by_text.setdefault((case["input"], name if name != str(case["id"]) else ""), []).append(case)
    for (text, _), group in by_text.items():
        gold = {task: [item for case in group if case["task"] == task for item in case["gold"]] for task in REQUESTS}
        kinds = {item["text"]: item["type"] for item in gold["NER"]}
        tasks = {case["task"] for case in group}
        record = {"id": OWN.sub("", str(group[0]["id"])), "cate": group[0].get("domain", "")}
        record["text"] = text
        if "NER" in tasks:
            record["entity"] = [{"entity": item["text"], "entity_type": item["type"]} for item in gold["NER"]]
        if "RE" in tasks:
            record["relation"] = [
                {
                    "head": item["head"],
                    "head_type": kinds.get(item["head"], ""),
                    "relation": item["relation"],
                    "tail": item["tail"],
                    "tail_type": kinds.get(item["tail"], ""),
                }
                for item in gold["RE"]
            ]
        if "EE" in tasks:
            record["event"] = [
                {
                    "event_trigger": item["trigger"],
                    "event_type": item["type"],
                    "arguments": [{"argument": a["text"], "role": a["role"]} for a in item["arguments"]],
                }
                for item in gold["EE"]
            ]
        yield record


def read_ccks(record: dict, number: int) -> Iterator[dict]:
    """CCKS2023's ``{"id", "cate", "input", "instruction", "output", "kg"}``; kg has [head, relation, tail]s."""
    text = record["input"]
    listed = LISTED.search(record.get("instruction", ""))
    schema = QUOTED.findall(listed[1]) if listed else []
    if record.get("kg"):
        parts = ("head", "relation", "tail")
        gold = [
            {part: triple[part] for part in parts}
            if isinstance(triple, dict)
            else dict(zip(parts, triple, strict=True))
            for triple in record["kg"]
        ]
    else:
        gold = read_answer("RE", record["output"] if "kg" not in record else record.get("output", ""), schema)
    yield {
        "id": str(record.get("id", number)),
        "task": "RE",
        "language": language_of(text),
        **({"domain": record["cate"]} if record.get("cate") else {}),
        "schema": list(dict.fromkeys([*schema, *(item["relation"] for item in gold)])),
        "input": text,
        "gold": gold,
    }


def write_ccks(case: dict) -> dict:
    if case["task"] != "RE":
        raise ValueError(
            f"case {case['id']} is {case['task']}; this format has relations only; --tasks RE leaves the rest out"
        )
    return {
        "id": case["id"],
        "cate": case.get("domain", ""),
        "input": case["input"],
        "instruction": render("RE", case["schema"], "tuple", case["language"]),
        "output": write_answer("RE", case["gold"], "tuple").replace("\n", ""),
        "kg": [[item["head"], item["relation"], item["tail"]] for item in case["gold"]],
    }


class ChatForm(NamedTuple):
    """The names that a form of chats has for things."""

    turns: str  # the list of turns
    speaker: str
    text: str
    user: str
    model: str


CHATS = {
    "sharegpt": ChatForm("conversations", "from", "value", "human", "gpt"),
    "messages": ChatForm("messages", "role", "content", "user", "assistant"),
}


def turns_of(record: dict) -> list[dict]:
    """The turns of a chat in either form, spelled as messages: role, content, and what else a turn has. A "system"
    beside a sharegpt chat's turns becomes the first of them.
    """
    form = CHATS["sharegpt" if "conversations" in record else "messages"]
    ours = CHATS["messages"]
    roles = {CHATS["sharegpt"].user: ours.user, CHATS["sharegpt"].model: ours.model}
    turns = []
    if form is not ours and isinstance(record.get("system"), str) and record["system"]:
        turns.append({ours.speaker: "system", ours.text: record["system"]})
    for turn in record[form.turns]:
        speaker, text = (turn.get(form.speaker, turn.get(ours.speaker)), turn.get(form.text, turn.get(ours.text)))
        if not isinstance(text, str) or not isinstance(speaker, str):
            raise ValueError("a turn has no text or no speaker")
        rest = {name: value for name, value in turn.items() if name not in {*form, *ours}}
        turns.append({ours.speaker: roles.get(speaker, speaker), ours.text: text} | rest)
    return turns


def convert_chat(record: dict, form: ChatForm) -> dict:
    """A chat in another form: every turn of every speaker in its place, and what else the record holds."""
    ours = CHATS["messages"]
    roles = {ours.user: form.user, ours.model: form.model}
    turns = []
    for turn in turns_of(record):
        speaker, text, *_ = turn.pop(ours.speaker), turn.pop(ours.text)
        turns.append({form.speaker: roles.get(speaker, speaker), form.text: text} | turn)
    known = {known.turns for known in CHATS.values()} | ({"system"} if "conversations" in record else set())
    return {name: value for name, value in record.items() if name not in known} | {form.turns: turns}


def read_chat(record: dict, number: int) -> Iterator[dict]:
    """Rows of a chat in either form: one for each question and its answer; what came before it is in the input."""
    before: list[str] = []
    question = ""
    for turn in turns_of(record):
        if turn["role"] == "assistant":
            if question:  # some chats begin with the model
                yield {"instruction": question, "input": "\n".join(before[:-1]), "output": turn["content"]}
            question = ""
        else:
            question = turn["content"]
        before.append(turn["content"])


def write_chat(row: dict, form: ChatForm) -> dict:
    """The chat of one question and its answer."""
    question = row["instruction"] + (f"\n{row['input']}" if row.get("input") else "")
    turns = ((form.user, question), (form.model, row["output"]))
    return {form.turns: [{form.speaker: speaker, form.text: text} for speaker, text in turns]}


READERS: dict[str, Callable[[dict, int], Iterator[dict]]] = {
    "iepile": read_iepile,
    "instructie": read_annotated,
    "ccks": read_ccks,
}
