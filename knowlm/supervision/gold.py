"""From pieces of text with their facts to extraction cases."""

import random
from collections.abc import Callable, Sequence

from knowlm.extraction.forms import LABELS_AT_ONCE
from knowlm.extraction.parsing import parse
from knowlm.supervision.graph_schema import EVENT, EventType, Label, Relation, Schema
from knowlm.supervision.pieces import Match, Piece

TypeOf = Callable[[int], str]


def gold_entities(piece: Piece, schema: Schema, type_of: TypeOf) -> list[dict]:
    """NER items: each name once."""
    items: dict[tuple[str, str], dict] = {}
    for choice in piece.entities:
        kind = type_of(choice.entity)
        if kind in schema.asked_types:
            text = piece.text[choice.mention.start : choice.mention.stop]
            item = {"text": text, "type": schema.types[kind].name(piece.language)}
            items.setdefault((item["text"], item["type"]), item)
    return list(items.values())


def gold_relations(piece: Piece, schema: Schema) -> list[dict]:
    """RE items, with the names as the piece has them, each once."""
    items = [
        (
            piece.text[slice(*match.head_span)],
            schema.relations[match.relation].name(piece.language),
            piece.text[slice(*match.tail_span)],
        )
        for match in piece.triples
    ]
    return [dict(zip(("head", "relation", "tail"), item, strict=True)) for item in dict.fromkeys(items)]


def gold_events(piece: Piece, schema: Schema) -> list[dict]:
    """EE items of the events found in a piece, each once."""
    items = []
    for event in piece.events:
        item = event.as_item(piece.text, schema.asked_events[event.type], piece.language)
        if item not in items:
            items.append(item)
    return items


def gold_of(task: str, piece: Piece, schema: Schema, type_of: TypeOf) -> list[dict]:
    if task == "NER":
        return gold_entities(piece, schema, type_of)
    return (gold_relations if task == "RE" else gold_events)(piece, schema)


def case_of(task: str, piece: Piece, schema: Schema, type_of: TypeOf, seed: int) -> dict:
    """A case for ``finetune/evaluate.py``; its schema is empty if there is nothing to ask."""
    gold = gold_of(task, piece, schema, type_of)
    generator = random.Random(f"{seed} {task} {piece.id}")
    case = {"id": f"{task}-{piece.id}", "task": task, "language": piece.language}
    if task == "NER" and not gold and any(not type_of(choice.entity) for choice in piece.entities):
        asked: list = []  # what the piece names may well be of the types asked for: the graph doesn't tell
    elif task == "EE":
        wanted = {item["type"] for item in gold}
        asked = labels(piece, wanted, event_negatives(piece, schema, type_of), LABELS_AT_ONCE[task], generator)
        asked = [event_asked(label, gold, schema, piece.language) for label in asked]
    elif task == "NER":
        kinds = [schema.types[kind] for kind in schema.types if kind in schema.asked_types]
        asked = labels(piece, {item["type"] for item in gold}, [kinds], LABELS_AT_ONCE[task], generator)
    else:
        groups = relation_negatives(piece, gold, schema, {type_of(choice.entity) for choice in piece.entities})
        asked = labels(piece, {item["relation"] for item in gold}, groups, LABELS_AT_ONCE[task], generator)
    topic = piece.topic.name(piece.language) if piece.topic else None
    return case | {"topic": topic, "schema": asked, "input": piece.text, "gold": gold}


def relation_negatives(piece: Piece, gold: Sequence[dict], schema: Schema, kinds: set[str]) -> list[list[Relation]]:
    """Relations to ask for in vain, the hardest group first.

    Those that link the same types as one of the answer, as birthplace and deathplace; then those of the text's topic;
    then those that an entity of the piece may be the head of.
    """
    asked = [relation for relation in schema.relations.values() if relation.id in schema.asked_relations]
    wanted = {item["relation"] for item in gold}
    answered = [relation for relation in asked if relation.name(piece.language) in wanted]
    topic = set(piece.topic.types) if piece.topic else set()
    return [
        [relation for relation in asked if relation.head_types and any(relation.is_like(other) for other in answered)],
        [relation for relation in asked if topic & set(relation.head_types)],
        [relation for relation in asked if not relation.head_types or kinds & set(relation.head_types)],
    ]


def labels(
    piece: Piece,
    wanted: set[str],
    negatives: Sequence[Sequence[Label]],
    size: int,
    generator: random.Random,
) -> list[str]:
    """Labels to ask for: those of the answer and, up to ``size``, negatives; of several groups the first gives half."""
    chosen = sorted(wanted)
    for place, group in enumerate(negatives):
        others = [label for label in dict.fromkeys(row.name(piece.language) for row in group) if label not in chosen]
        generator.shuffle(others)
        room = max(size - len(chosen), 0)
        chosen += others[: -(-room // 2) if place == 0 and len(negatives) > 1 else room]
    generator.shuffle(chosen)
    return chosen


def event_negatives(piece: Piece, schema: Schema, type_of: TypeOf) -> list[list[EventType]]:
    """Event types to ask for in vain: first those confusable with one of the answer, then the topic's, then all.

    None that the piece may tell of for all we know: with a trigger that no fact explains, or with a named event.
    """
    found = {event.type for event in piece.events}
    unsure = set(piece.silent_triggers)
    if any(type_of(choice.entity) in ("", EVENT) for choice in piece.entities):
        unsure.add(EVENT)
    absent = [kind for kind in schema.asked_events.values() if kind.id not in unsure]
    topic = set(piece.topic.types) if piece.topic else set()
    return [
        [kind for kind in absent if any(schema.are_confusable(kind.id, other) for other in found)],
        [kind for kind in absent if any(topic & set(schema.relations[name].head_types) for name in kind.relations)],
        absent,
    ]


def event_asked(label: str, gold: Sequence[dict], schema: Schema, language: str) -> dict:
    """An event type with its roles; an event with a name may have a relation's role that takes any head, too."""
    roles = [
        role.name(language)
        for kind in schema.asked_events.values()
        if kind.name(language) == label
        for role in kind.roles
    ]
    roles += [argument["role"] for item in gold if item["type"] == label for argument in item["arguments"]]
    return {"type": label, "roles": list(dict.fromkeys(roles))}


def add_predictions(piece: Piece, outputs: Sequence[str], schema: Schema) -> int:
    """Add the triples that a model found in a piece to its facts; how many were new.

    outputs: raw answers. Only relations of the schema count, and names that the text has, verbatim.
    """
    by_label = {relation.name(piece.language): relation.id for relation in schema.relations.values()}
    known = {(item["head"], item["relation"], item["tail"]) for item in gold_relations(piece, schema)}
    before = len(piece.triples)
    for item in [item for output in outputs for item in parse("RE", output, list(by_label)).items]:
        triple = (item["head"], item["relation"], item["tail"])
        starts = piece.text.find(item["head"]), piece.text.find(item["tail"])
        relation = by_label.get(item["relation"])
        if relation not in schema.asked_relations or not triple[0] or not triple[2] or min(starts) < 0:
            continue
        if triple not in known:
            known.add(triple)
            head, tail = ((start, start + len(name)) for start, name in zip(starts, triple[::2], strict=True))
            piece.triples.append(Match(triple[0], str(relation), triple[2], head, tail, {"from": "prediction"}))
    return len(piece.triples) - before
