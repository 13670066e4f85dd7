"""Mentions of a graph's entities in a document, and which entity each one is."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from knowlm.supervision.documents import Document
from knowlm.supervision.graph import Edges, KnowledgeGraph
from knowlm.supervision.names import NameFinder, fold, sentence_capitals, with_small
from knowlm.supervision.values import MONTHS, ValueMention, matching_span

ARTICLE = "the "  # a title has a capital: "The Scream"
NEXT_NAME = re.compile(rf" (?!(?:{'|'.join(MONTHS)})\b)[A-Z][a-z]")
ERAS = ("BC", "BCE", "AD", "CE")


@dataclass(frozen=True)
class Mention:
    """``text[start:stop]`` names one of ``candidates``; the source itself says which if ``is_link``."""

    start: int
    stop: int
    candidates: tuple[int, ...]
    is_link: bool = False


@dataclass(frozen=True)
class Choice:
    """The entity of a mention; what decided, and by how much it was better than the next candidate there.

    decided_by: ``only`` one candidate, ``link`` of the source, ``seen`` before in the text, ``neighbours read``
    (accepted before), ``neighbours in text``, or ``order``: nothing decided, margin 0.
    """

    mention: Mention
    entity: int
    decided_by: str = "only"
    margin: int | None = None

    def evidence(self) -> dict:
        return {"decided_by": self.decided_by, "margin": self.margin, "candidates": len(self.mention.candidates)}


def find_mentions(
    document: Document,
    graph: KnowledgeGraph,
    finder: NameFinder,
    values: Sequence[ValueMention] = (),
    starts: Iterable[int] = (0,),
) -> list[Mention]:
    """Mentions in reading order, none within another: the source's links, then names, the longest first.

    A name within one of ``values`` is none, nor is BC in "44 BC".
    starts: of sentences, where a name that the graph writes small has a capital in English.
    """
    folded = fold(document.text)
    capitals = sentence_capitals(folded, starts) if document.language == "english" else []
    small = with_small(folded, capitals)
    links = [
        Mention(link.start, link.stop, candidates, is_link=True)
        for link in document.links
        if (candidates := graph.lookup(link.target, document.language)[:1])
    ]
    value_at = {place: value for value in values for place in range(value.start, value.stop)}
    spans = [
        (start, stop)
        for start, stop in finder.find(folded, [(link.start, link.stop) for link in links], capitals)
        if not is_within(start, stop, value_at.get(start))
        and not (folded[start:stop] in ERAS and start - 2 in value_at)
    ]
    named = {start for start, _ in spans} | {link.start for link in links}
    names = []
    for start, stop in spans:
        goes_on = document.language == "english" and folded[start].isupper() and NEXT_NAME.match(folded, stop)
        if goes_on and stop + 1 not in named:
            continue  # Robert in "Robert Smirke", whom the graph doesn't know
        own, common = (graph.candidates(text[start:stop], document.language) for text in (folded, small))
        if common and small.startswith(ARTICLE, start):
            start += len(ARTICLE)  # "the Louvre" is a name of the graph, what it names stands in "Louvre"
        names.append(Mention(start, stop, tuple(dict.fromkeys(own + common))))
    return sorted(links + [name for name in names if name.candidates], key=lambda m: m.start)


def is_within(start: int, stop: int, value: ValueMention | None) -> bool:
    return value is not None and stop <= value.stop and stop - start < value.stop - value.start


def title_mentions(document: Document, graph: KnowledgeGraph, finder: NameFinder) -> list[Mention]:
    """What the title names: all of it if that is a name, else the first name in it."""
    small = with_small(document.title, sentence_capitals(document.title, (0,)))
    found = (graph.lookup(name, document.language) for name in (document.title, small) if name)
    whole = next(filter(None, found), ())
    if whole:
        return [Mention(0, len(document.title), whole)]
    titled = find_mentions(Document(document.title, document.language), graph, finder)
    return titled[:1]


def disambiguate(
    mentions: Iterable[Mention],
    graph: KnowledgeGraph,
    edges: Edges,
    values: Sequence[ValueMention] = (),
    context: Collection[int] = (),
) -> list[Choice]:
    """One entity for each mention, in reading order.

    A candidate that is accepted already is preferred, then the neighbour in the graph of most accepted ones, then the
    one with most neighbours (and dates or quantities) among all that the text may name; else the candidates' order.
    edges: between all candidates; values: those the text says; context: entities accepted beforehand.
    """
    mentions = list(mentions)
    possible = {candidate for mention in mentions for candidate in mention.candidates}
    neighbours: dict[int, set[int]] = {candidate: set() for candidate in possible | set(context)}
    for head, tails in edges.items():
        for tail in tails:
            neighbours.setdefault(head, set()).add(tail)
            neighbours.setdefault(tail, set()).add(head)
    said: dict[int, int] = {}

    def in_text(candidate: int) -> int:
        if candidate not in said:
            known = {value for _, value in graph.values(candidate)}
            hits = sum(any(matching_span(value, mention) for mention in values) for value in known)
            said[candidate] = hits + len(neighbours[candidate] & possible)
        return said[candidate]

    accepted, choices = set(context), []
    for mention in mentions:
        choice = choose(mention, accepted, neighbours, in_text)
        accepted.add(choice.entity)
        choices.append(choice)
    return choices


def choose(mention: Mention, accepted: set[int], neighbours: dict[int, set[int]], in_text) -> Choice:
    if len(mention.candidates) == 1:
        return Choice(mention, mention.candidates[0], "link" if mention.is_link else "only")
    scores = {
        candidate: (int(candidate in accepted), len(neighbours[candidate] & accepted), in_text(candidate))
        for candidate in mention.candidates
    }
    best, second = sorted(mention.candidates, key=lambda candidate: scores[candidate], reverse=True)[:2]
    for level, better, worse in zip(
        ("seen", "neighbours read", "neighbours in text"), scores[best], scores[second], strict=True
    ):
        if better != worse:
            return Choice(mention, best, level, better - worse)
    return Choice(mention, best, "order", 0)


def uncovered(values: Iterable[ValueMention], mentions: Iterable[Mention]) -> list[ValueMention]:
    """Dates and quantities that no mention covers."""
    covered = {place for mention in mentions for place in range(mention.start, mention.stop)}
    return [value for value in values if value.start not in covered and value.stop - 1 not in covered]
