"""Distant supervision: the facts of a knowledge graph that a text may state (after InstructIE, arXiv 2305.11527)."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from knowlm.supervision.documents import Document, Link, sentence_parts, sentences, split_spans
from knowlm.supervision.graph import Edges, KnowledgeGraph
from knowlm.supervision.graph_schema import ALIAS, VALUE_TYPES, EventType, Role, Topic
from knowlm.supervision.mentions import Choice, Mention, disambiguate, find_mentions, title_mentions, uncovered
from knowlm.supervision.names import NameFinder, fold
from knowlm.supervision.values import NOWHERE, ValueMention, find_values, kind_of, matching_span

SECTION = 20_000  # characters of a long document that are disambiguated together
TIMES = {kind for kind, value in VALUE_TYPES.items() if value == "time"}
Span = tuple[int, int]


@dataclass
class Match:
    """A fact of the graph whose ends a piece names: ids, spans in the piece, how they were found."""

    head: str
    relation: str
    tail: str  # an entity's id, or a date or number as the graph has it
    head_span: Span
    tail_span: Span
    evidence: dict

    def as_row(self, text: str) -> dict:
        """What is kept of it as evidence."""
        return {
            "head": self.head,
            "relation": self.relation,
            "tail": self.tail,
            "head_span": list(self.head_span),
            "tail_span": list(self.tail_span),
            "head_alias": text[slice(*self.head_span)],
            "tail_alias": text[slice(*self.tail_span)],
            **self.evidence,
        }


@dataclass
class Event:
    """An event of a piece: its type's id, where trigger, key entity and arguments stand, the facts it is made of."""

    type: str
    trigger: Span
    key: Span
    arguments: list[tuple[Role, Span]] = field(default_factory=list)
    facts: list[Match] = field(default_factory=list)

    def add(self, match: Match, *arguments: tuple[Role, Span]) -> None:
        self.facts.append(match)
        self.arguments += [argument for argument in arguments if argument not in self.arguments]

    def as_item(self, text: str, kind: EventType, language: str) -> dict:
        """The event as an EE item, arguments in the order of the type's roles."""
        places = {role.id: place for place, role in enumerate(kind.roles)}
        ordered = sorted(self.arguments, key=lambda argument: (places.get(argument[0].id, len(places)), argument[1]))
        arguments = dict.fromkeys((text[slice(*span)], role.name(language)) for role, span in ordered)
        return {
            "type": kind.name(language),
            "trigger": text[slice(*self.trigger)],
            "arguments": [{"text": name, "role": role} for name, role in arguments],
        }

    def as_row(self, text: str) -> dict:
        """What is kept of it as evidence."""
        return {
            "type": self.type,
            "trigger": text[slice(*self.trigger)],
            "trigger_span": list(self.trigger),
            "arguments": [
                {"role": role.id, "text": text[slice(*span)], "span": list(span)} for role, span in self.arguments
            ],
            "facts": [[match.head, match.relation, match.tail] for match in self.facts],
        }


@dataclass
class Piece:
    """Some sentences of a document with the entities and facts found in them."""

    id: str
    document: str  # its own entity's id, or its title, or a hash of its text
    language: str
    text: str
    entities: list[Choice]
    triples: list[Match]
    topic: Topic | None = None
    matched: Counter[str] = field(default_factory=Counter)  # relations as matched, before any was cleaned away
    by_chance: dict[str, float] = field(default_factory=dict)  # what a graph with shuffled tails would match
    events: list[Event] = field(default_factory=list)
    silent_triggers: Counter[str] = field(default_factory=Counter)  # event types with triggers that no fact explains


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def find_pieces(
    document: Document, graph: KnowledgeGraph, finder: NameFinder, length: int, min_margin: int = 0
) -> Iterator[Piece]:
    """Pieces of a document of at most ``length`` characters (Chinese) or words (English).

    min_margin: a mention of several candidates whose choice was closer than that is left out.
    """
    titled = title_mentions(document, graph, finder)
    told = list(sentences(document.text, document.language))
    spans = split_spans(document.text, document.language, length, told)
    for section in sections(spans):
        begin, end = section[0][0], section[-1][1]
        part = within(document, begin, end)
        written = find_values(part.text)
        starts = [max(start - begin, 0) for start, stop in told if begin < stop and start < end]
        mentions = find_mentions(part, graph, finder, written, starts)
        values = uncovered(written, mentions)
        ends = {candidate for mention in titled + mentions for candidate in mention.candidates}
        edges = graph.edges(ends)
        named = {candidate for mention in mentions for candidate in mention.candidates}
        context = [choice.entity for choice in disambiguate(titled, graph, edges, values, named)]
        choices = disambiguate(mentions, graph, edges, values, context)
        choices = [choice for choice in choices if choice.margin is None or choice.margin >= min_margin]
        degrees = degrees_of(choices, graph)
        own = graph.key(context[0]) if context else document.title or hash_of(document.text)
        for start, stop in section:
            begin, end = start - section[0][0], stop - section[0][0]
            inside = [moved(choice, begin) for choice in choices if begin <= choice.mention.start < end]
            inside = [choice for choice in inside if choice.mention.stop <= stop - start]
            text = part.text[begin:end]
            said = [shifted(value, begin) for value in values if begin <= value.start and value.stop <= end]
            yield make_piece(text, document.language, own, inside, said, context, graph, edges, degrees)


def sections(spans: Sequence[Span]) -> Iterator[list[Span]]:
    section: list[Span] = []
    for span in spans:
        if section and span[1] - section[0][0] > SECTION:
            yield section
            section = []
        section.append(span)
    if section:
        yield section


def within(document: Document, start: int, stop: int) -> Document:
    links = [
        Link(link.start - start, link.stop - start, link.target)
        for link in document.links
        if start <= link.start and link.stop <= stop
    ]
    return Document(document.text[start:stop], document.language, document.title, links)


def moved(choice: Choice, by: int) -> Choice:
    mention = choice.mention
    shifted = Mention(mention.start - by, mention.stop - by, mention.candidates, mention.is_link)
    return Choice(shifted, choice.entity, choice.decided_by, choice.margin)


def shifted(value: ValueMention, by: int) -> ValueMention:
    year = (value.year[0] - by, value.year[1] - by) if value.year != NOWHERE else NOWHERE
    return replace(value, start=value.start - by, stop=value.stop - by, year=year)


def degrees_of(choices: Sequence[Choice], graph: KnowledgeGraph) -> dict[int, list[tuple[int, int, int]]]:
    """(relation, how often head, how often tail) of each entity."""
    found: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for entity, relation, heads, tails in graph.degrees({choice.entity for choice in choices}):
        found[entity].append((relation, heads, tails))
    return found


def make_piece(
    text: str,
    language: str,
    document: str,
    choices: list[Choice],
    values: list[ValueMention],
    context: Sequence[int],
    graph: KnowledgeGraph,
    edges: Edges,
    degrees: Mapping[int, list[tuple[int, int, int]]],
) -> Piece:
    first: dict[int, Choice] = {}
    for choice in choices:
        first.setdefault(choice.entity, choice)
    found = [*entity_matches(first, edges, graph), *value_matches(first, values, graph)]
    matches = [match for match in found if match.relation in graph.schema.asked_relations]
    matched = Counter(match.relation for match in matches)
    if ALIAS in graph.schema.asked_relations:
        matches += alias_matches(text, choices, graph)
    kinds = [graph.type(entity) for entity in context[:1]] or [graph.type(choice.entity) for choice in choices]
    return Piece(
        id=hash_of(text),
        document=document,
        language=language,
        text=text,
        entities=choices,
        triples=without_nested(without_implied(stated(matches, text, language, choices, graph), graph), text),
        topic=graph.schema.topic_of(kinds),
        matched=matched,
        by_chance=expected_by_chance(first, values, graph, degrees),
    )


def entity_matches(first: Mapping[int, Choice], edges: Edges, graph: KnowledgeGraph) -> Iterator[Match]:
    """Every triple between two entities of a piece, in both directions, once; with where they are first named."""
    for head, from_head in first.items():
        linked = edges.get(head, {})
        for tail in (entity for entity in first if entity in linked):
            for number in linked[tail]:
                evidence = {
                    "path": [graph.key(head), graph.relations[number].id, graph.key(tail)],
                    "head_choice": from_head.evidence(),
                    "tail_choice": first[tail].evidence(),
                }
                yield match_of(graph, head, number, graph.key(tail), from_head, first[tail].mention, evidence)


def value_matches(
    first: Mapping[int, Choice], values: Sequence[ValueMention], graph: KnowledgeGraph
) -> Iterator[Match]:
    """Every date or quantity of an entity that the piece says, by its fullest mention."""
    for head, choice in first.items() if values else ():
        for number, value in graph.values(head):
            is_time = set(graph.relations[number].tail_types) and set(graph.relations[number].tail_types) <= TIMES
            told = [mention for mention in values if not is_time or kind_of(mention.value) == "time"]
            said = [(span, mention) for mention in told if (span := matching_span(value, mention))]
            if said:
                span = max(said, key=lambda pair: (pair[0][1] - pair[0][0], -pair[0][0]))[0]
                evidence = {
                    "path": [graph.key(head), graph.relations[number].id, value],
                    "head_choice": choice.evidence(),
                    "tail_choice": None,
                }
                yield match_of(graph, head, number, str(value), choice, Mention(*span, ()), evidence)


def match_of(
    graph: KnowledgeGraph, head: int, number: int, tail: str, choice: Choice, named: Mention, evidence: dict
) -> Match:
    spans = (choice.mention.start, choice.mention.stop), (named.start, named.stop)
    return Match(graph.key(head), graph.relations[number].id, tail, *spans, evidence)


def alias_matches(text: str, choices: Sequence[Choice], graph: KnowledgeGraph) -> Iterator[Match]:
    """Two names of one entity in a piece, neither part of the other: the first name, then each other one."""
    named: dict[int, dict[str, Choice]] = defaultdict(dict)
    for choice in choices:
        named[choice.entity].setdefault(text[choice.mention.start : choice.mention.stop], choice)
    for entity, names in named.items():
        (main, choice), *others = names.items()
        for other, named_so in others:
            if main.lower() not in other.lower() and other.lower() not in main.lower():
                key = graph.key(entity)
                yield Match(
                    key,
                    ALIAS,
                    key,
                    (choice.mention.start, choice.mention.stop),
                    (named_so.mention.start, named_so.mention.stop),
                    {"path": [key], "head_choice": choice.evidence(), "tail_choice": named_so.evidence()},
                )


def stated(
    matches: Sequence[Match], text: str, language: str, choices: Sequence[Choice], graph: KnowledgeGraph
) -> list[Match]:
    """Drop facts of relations that have words where no sentence has one of them beside the tail.

    Most pairs of a person and the place where it died stand in one piece for other reasons. A relation of a graph
    without types, or with others, isn't held to the words of the toolkit's.
    """
    relations = {match.relation: graph.schema.relations[match.relation] for match in matches}
    if not any(relation.words.get(language) for relation in relations.values()):
        return list(matches)
    places: dict[str, list[Span]] = defaultdict(list)
    kinds = {}
    for choice in choices:
        key = graph.key(choice.entity)
        places[key].append((choice.mention.start, choice.mention.stop))
        kinds[key] = graph.type(choice.entity)
    told = list(sentence_parts(text, language))
    folded = fold(text).lower()

    def is_stated(match: Match) -> bool:
        relation = relations[match.relation]
        words = relation.words.get(language)
        if (
            not words
            or kinds[match.head] not in relation.head_types
            or kinds.get(match.tail) not in relation.tail_types
        ):
            return True
        beside = [span for span in told if any(span[0] <= start < span[1] for start, _ in places[match.tail])]
        return any(words_pattern(words, language).search(folded, *span) for span in beside)

    return [match for match in matches if is_stated(match)]


@lru_cache(64)
def words_pattern(words: tuple[str, ...], language: str) -> re.Pattern[str]:
    """Any of these: in English at the beginning of a word."""
    return re.compile((r"\b" if language == "english" else "") + f"(?:{'|'.join(map(re.escape, words))})")


def without_implied(matches: Sequence[Match], graph: KnowledgeGraph) -> list[Match]:
    """Drop a in c where a in b and b in c are there too, for the transitive relations."""
    direct = {(match.head, match.relation, match.tail) for match in matches}
    middles: dict[str, set[str]] = defaultdict(set)
    for _, relation, tail in direct:
        middles[relation].add(tail)

    def implied(match: Match) -> bool:
        return graph.schema.relations[match.relation].transitive and any(
            (match.head, match.relation, middle) in direct and (middle, match.relation, match.tail) in direct
            for middle in middles[match.relation] - {match.head, match.tail}
        )

    return [match for match in matches if not implied(match)]


def without_nested(matches: Sequence[Match], text: str) -> list[Match]:
    """Of two facts that differ in an argument which holds the other's, as York and New York, the longer."""

    def names(match: Match) -> tuple[str, str]:
        return text[slice(*match.head_span)], text[slice(*match.tail_span)]

    by_relation: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for match in matches:
        by_relation[match.relation].append(names(match))

    def is_nested(match: Match) -> bool:
        head, tail = names(match)
        return any(
            (head == other_head and tail != other_tail and tail in other_tail)
            or (tail == other_tail and head != other_head and head in other_head)
            for other_head, other_tail in by_relation[match.relation]
        )

    return [match for match in matches if not is_nested(match)]


def expected_by_chance(
    entities: Mapping[int, Choice],
    values: Sequence[ValueMention],
    graph: KnowledgeGraph,
    degrees: Mapping[int, list[tuple[int, int, int]]],
) -> dict[str, float]:
    """How many triples of each relation a piece would match on average if the relation's tails were shuffled.

    Under a random permutation of the tails of a relation's N triples, a pair is linked heads(a) × tails(b) / N times:
    the mean over all shuffles, without drawing one. The entities stay those that the real graph helped to choose.
    """
    heads: Counter[int] = Counter()
    tails: Counter[int] = Counter()
    selves: Counter[int] = Counter()
    for entity in entities:
        for relation, as_head, as_tail in degrees.get(entity, ()):
            heads[relation] += as_head
            tails[relation] += as_tail
            selves[relation] += as_head * as_tail
    expected = {}
    for relation, count in heads.items():
        if graph.relations[relation].id not in graph.schema.asked_relations:
            continue
        said = sum(graph.count_values(relation, mention) for mention in dict.fromkeys(map(without_place, values)))
        if chance := count * (tails[relation] + said) - selves[relation]:
            expected[graph.relations[relation].id] = chance / graph.num_facts[relation]
    return expected


def without_place(mention: ValueMention) -> ValueMention:
    return ValueMention(0, 0, mention.value, tolerance=mention.tolerance)
