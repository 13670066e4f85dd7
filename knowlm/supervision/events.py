"""Events that a piece of text may tell of: facts of the graph that stand in one sentence with a trigger word.

After Chen et al., Automatically Labeled Data Generation for Large Scale Event Extraction (ACL 2017): the relations of
an event type give its roles, a lexicon its triggers; facts that share the key entity and the trigger are one event.

Which trigger a fact belongs to is fixed: of those of its type in the sentence the one nearest to both mentions,
distances added (a date's twice), the first of equals; but none beyond another type's trigger, seen from the argument,
which could claim it as well: in "born in Ulm and died in Princeton" Princeton is no birthplace. Of several key entities
the trigger belongs to the one nearest to it, and to those in a list with that. An event with a name has the name as its
trigger.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from knowlm.supervision.documents import sentence_parts, sentences
from knowlm.supervision.graph_schema import EVENT, VALUE_TYPES, EventType, Role, Schema
from knowlm.supervision.mentions import uncovered
from knowlm.supervision.names import fold, sentence_capitals, with_small
from knowlm.supervision.pieces import Event, Match, Piece, Span
from knowlm.supervision.values import ValueMention, find_values, kind_of, matching_span, read_value

TypeOf = Callable[[int], str]
CLAUSE = 20  # characters that the end of a clause counts for in a distance
CLAUSE_END = re.compile(r"[,，;；:：—–()（）]")
OPENING = re.compile(r"\W*")  # no word before the trigger
ATTRIBUTE = re.compile(r"[^,，;；:：]*的[^,，;；:：]*")
LISTED = re.compile(r"(?:[\s,，、&《》〈〉“”\"‘’'「」『』·/]|\b(?:and|or|the)\b|以及|和|与|及|跟|同)+")
BEFORE_DATE = re.compile(r"(?:(?:公元)?前|公元|\bAD )$")
AFTER_DATE = re.compile(r"年| ?(?:BCE?|CE|AD)\b")


@dataclass(frozen=True)
class Trigger:
    """``text[start:stop]`` tells of an event of one of ``types``."""

    start: int
    stop: int
    types: tuple[str, ...]


@dataclass
class Sentence:
    """``text[start:stop]`` with its triggers."""

    text: str
    start: int
    stop: int
    triggers: list[Trigger]

    def inside(self, spans: Sequence[Span]) -> list[Span]:
        return [span for span in spans if self.start <= span[0] and span[1] <= self.stop]

    def has_first(self, key: Span, trigger: Span) -> bool:
        """Whether a key entity stands before its trigger, or behind one as in "Born in Ulm, he" and 生于乌尔姆的他."""
        if key[0] < trigger[0] or OPENING.fullmatch(self.text, self.start, trigger[0]):
            return True
        return bool(ATTRIBUTE.fullmatch(self.text, trigger[1], key[0]))


def add_events(piece: Piece, schema: Schema, type_of: TypeOf) -> None:
    """Find the events of a piece, and count by type the triggers that no fact explains: they may be events as well."""
    triggers = find_triggers(piece, schema)
    piece.events = find_events(piece, schema, type_of, triggers)
    explained = {(event.type, event.trigger) for event in piece.events}
    piece.silent_triggers = Counter(
        kind for trigger in triggers for kind in trigger.types if (kind, (trigger.start, trigger.stop)) not in explained
    )


def find_triggers(piece: Piece, schema: Schema) -> list[Trigger]:
    """Trigger words in reading order, the longest at each place, none within a name of the piece.

    English: whole words in small letters, or with a capital at the start of their sentence; Chinese: in either script.
    """
    types: dict[str, list[str]] = defaultdict(list)
    for event in schema.asked_events.values():
        for word in event.triggers.get(piece.language, ()):
            types[word].append(event.id)
        for word in event.exceptions.get(piece.language, ()):
            types.setdefault(word, [])
    if not types:
        return []
    names = [(choice.mention.start, choice.mention.stop) for choice in piece.entities]
    is_named = {place for start, stop in names for place in range(start, stop)}
    text = fold(piece.text)
    if piece.language == "english":
        starts = (start for start, _ in sentences(piece.text, piece.language))
        text = with_small(text, sentence_capitals(text, starts))
    found = []
    for match in trigger_pattern(tuple(types), piece.language).finditer(text):
        kinds = types[" ".join(match[0].split())]
        if kinds and not is_named & set(range(*match.span())):
            found.append(Trigger(*match.span(), tuple(kinds)))
    return found


@lru_cache(8)
def trigger_pattern(words: tuple[str, ...], language: str) -> re.Pattern[str]:
    """Any of these words, the longest first; in English whole words, with any white space between them."""
    choices = [r"\s+".join(map(re.escape, word.split())) for word in sorted(words, key=len, reverse=True)]
    bound = r"(?<![\w-]){}(?![\w-])" if language == "english" else "{}"
    return re.compile(bound.format(f"(?:{'|'.join(choices)})"))


def find_events(piece: Piece, schema: Schema, type_of: TypeOf, triggers: Sequence[Trigger]) -> list[Event]:
    """Events in the order of their triggers. triggers: those of ``find_triggers``."""
    parts = [
        Sentence(piece.text, start, stop, [trigger for trigger in triggers if start <= trigger.start < stop])
        for start, stop in sentence_parts(piece.text, piece.language)
    ]
    named = {
        (choice.mention.start, choice.mention.stop) for choice in piece.entities if type_of(choice.entity) == EVENT
    }
    found: dict[tuple, Event] = {}
    for match, heads, tails in stated_facts(piece):
        for sentence in parts:
            ends = {"head": sentence.inside(heads), "tail": sentence.inside(tails)}
            if ends["head"] and ends["tail"]:
                add_told(found, match, ends, sentence, schema)
                if EVENT in schema.asked_events and match.head_span in named:
                    add_named(found, match, ends, piece.text, schema)
    events = one_key_each(list(found.values()), piece.text)
    order = list(schema.asked_events)
    return sorted(events, key=lambda event: (event.trigger, order.index(event.type)))


def stated_facts(piece: Piece) -> Iterator[tuple[Match, list[Span], list[Span]]]:
    """Each fact with all places that name its head and its tail; a date whole, if the graph has the year alone."""
    spans = {choice: (choice.mention.start, choice.mention.stop) for choice in piece.entities}
    entity_at = {span: choice.entity for choice, span in spans.items()}
    places: dict[int, list[Span]] = defaultdict(list)
    for choice, span in spans.items():
        places[choice.entity].append(span)
    values = None
    for match in piece.triples:
        heads = places.get(entity_at.get(match.head_span, -1), [match.head_span])
        tails = places.get(entity_at.get(match.tail_span, -1), [match.tail_span])
        if match.tail_span not in entity_at and (value := read_value(match.tail)) is not None:
            if values is None:
                values = uncovered(find_values(piece.text), [choice.mention for choice in piece.entities])
            tails = [whole_date(piece.text, said) for said in values if matching_span(value, said)]
        yield match, heads, tails


def whole_date(text: str, said: ValueMention) -> Span:
    """Where a value stands; of a date with what belongs to it: 公元前551年, "551 BC"."""
    if kind_of(said.value) != "time":
        return said.start, said.stop
    before, after = BEFORE_DATE.search(text[: said.start]), AFTER_DATE.match(text, said.stop)
    return before.start() if before else said.start, after.end() if after else said.stop


def add_told(
    found: dict[tuple, Event], match: Match, ends: dict[str, list[Span]], sentence: Sentence, schema: Schema
) -> None:
    """Put a fact into the events of a sentence whose trigger it belongs to."""
    for kind in schema.asked_events.values() if sentence.triggers else ():
        for side, other in (("head", "tail"), ("tail", "head")):
            key, role = kind.role(match.relation, side), kind.role(match.relation, other)
            if not kind.triggers or key is not kind.roles[0] or role is None:
                continue
            rivals = [trigger for trigger in sentence.triggers if claims(trigger, kind, match.relation, schema)]
            is_value = bool(VALUE_TYPES.keys() & set(schema.relations[match.relation].tail_types))
            nearest = choose(sentence, kind, rivals, ends[side], ends[other], 2 if is_value else 1)
            if nearest:
                trigger, at, argument = nearest
                entity = match.head if side == "head" else match.tail
                place = (trigger.start, trigger.stop)
                event = found.setdefault((kind.id, place, entity), Event(kind.id, place, at))
                event.add(match, (key, at), (role, argument))


def claims(trigger: Trigger, kind: EventType, relation: str, schema: Schema) -> bool:
    """Whether a trigger, none of this type, is of one with a relation that links the same types."""
    return kind.id not in trigger.types and any(
        schema.relations[relation].is_like(schema.relations[its])
        for other in trigger.types
        for its in schema.asked_events[other].relations
    )


def choose(
    sentence: Sentence,
    kind: EventType,
    rivals: Sequence[Trigger],
    keys: Sequence[Span],
    arguments: Sequence[Span],
    weight: int,
) -> tuple[Trigger, Span, Span] | None:
    """The trigger of a fact with its mentions nearest to that; None if there is none, or rivals bar all.

    weight: of the argument's distance.
    """
    text, best, least = sentence.text, None, 0
    for trigger in sentence.triggers:
        at = (trigger.start, trigger.stop)
        open_keys = [span for span in keys if not kind.is_key_first or sentence.has_first(span, at)]
        open_arguments = [span for span in arguments if not any(is_between(rival, at, span) for rival in rivals)]
        if kind.id in trigger.types and open_keys and open_arguments:
            key = min(open_keys, key=lambda span: gap(text, span, at))
            argument = min(open_arguments, key=lambda span: gap(text, span, at))
            distance = gap(text, key, at) + weight * gap(text, argument, at)
            if best is None or distance < least:
                best, least = (trigger, key, argument), distance
    return best


def gap(text: str, span: Span, other: Span) -> int:
    """Characters between two spans, more of them where a clause ends."""
    start, stop = min(span[1], other[1]), max(span[0], other[0])
    return max(stop - start, 0) + CLAUSE * len(CLAUSE_END.findall(text, start, stop))


def is_between(trigger: Trigger, span: Span, other: Span) -> bool:
    return min(span[1], other[1]) <= trigger.start and trigger.stop <= max(span[0], other[0])


def add_named(found: dict[tuple, Event], match: Match, ends: dict[str, list[Span]], text: str, schema: Schema) -> None:
    """Put a fact whose head is an event with a name into that event."""
    relation = schema.relations[match.relation]
    role = Role(relation.id, relation.name_en, relation.name_zh)
    trigger, argument = min(
        ((head, tail) for head in ends["head"] for tail in ends["tail"]), key=lambda pair: gap(text, *pair)
    )
    found.setdefault((EVENT, match.head), Event(EVENT, trigger, trigger)).add(match, (role, argument))


def one_key_each(events: Sequence[Event], text: str) -> list[Event]:
    """Of the events that share a type and a trigger the one whose key is nearest, with those whose keys it lists.

    One whose arguments another has, and more, doesn't count: each of a couple is the key of the other's marriage.
    """
    by_trigger: dict[tuple[str, Span], list[Event]] = defaultdict(list)
    for event in events:
        by_trigger[event.type, event.trigger].append(event)
    kept = []
    for (_, trigger), alike in by_trigger.items():
        alike = [event for event in alike if not any(is_part(event, other) for other in alike)]
        nearest = min(alike, key=lambda event: gap(text, event.key, trigger))
        listed = [nearest.key]
        for event in sorted(alike, key=lambda event: gap(text, event.key, nearest.key)):
            if event is not nearest and any(is_list(text, event.key, key) for key in listed):
                listed.append(event.key)
                nearest.facts += [match for match in event.facts if match not in nearest.facts]
                nearest.arguments += [argument for argument in event.arguments if argument not in nearest.arguments]
        kept.append(nearest)
    return kept


def is_part(event: Event, other: Event) -> bool:
    return len(event.arguments) < len(other.arguments) and all(named in other.arguments for named in event.arguments)


def is_list(text: str, span: Span, other: Span) -> bool:
    """Whether nothing stands between two names but commas, quotation marks and "and"."""
    return bool(LISTED.fullmatch(text, min(span[1], other[1]), max(span[0], other[0])))
