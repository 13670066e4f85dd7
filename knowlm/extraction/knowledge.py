"""A bilingual knowledge graph in TSV, and the mentions of its entities in text."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ahocorasick

from knowlm.files import require_file

YEAR = re.compile(r"(?<![\d.,])(?:公元)?(前)?(\d{3,4})(?![\d,%])(?:年| BC| BCE)?")


@dataclass(frozen=True)
class Mention:
    """``text[start:stop]`` names one of ``candidates``: entity ids, or the number of a year."""

    start: int
    stop: int
    candidates: tuple[str, ...]


class KnowledgeGraph:
    """``entities.tsv``, ``triples.tsv``, ``relations.tsv`` and ``types.tsv`` of a folder.

    The columns are those of ``finetune/data/encyclopedia``, whose README tells them.

    Raises ValueError naming file and line at an unknown id or a type that the relation doesn't take.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.types = {row["id"]: row for row in self._rows("types.tsv")}
        self.entities = {row["id"]: row for row in self._rows("entities.tsv")}
        self.relations = {row["id"]: row for row in self._rows("relations.tsv")}
        for number, row in enumerate(self.entities.values(), 2):
            if row["type"] not in self.types:
                raise ValueError(
                    f"{self.folder / 'entities.tsv'}, line {number}: type {row['type']} is not in types.tsv"
                )
        self.relations_between: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.neighbours: dict[str, set[str]] = defaultdict(set)
        for number, row in enumerate(self._rows("triples.tsv"), 2):
            head, relation, tail = row["head"], row["relation"], row["tail"]
            where = f"{self.folder / 'triples.tsv'}, line {number}"
            if relation not in self.relations:
                raise ValueError(f"{where}: relation {relation} is not in relations.tsv")
            for end, column in ((head, "head_types"), (tail, "tail_types")):
                kind = "year" if re.fullmatch(r"-?\d+", end) else self.entities.get(end, {}).get("type")
                if kind is None:
                    raise ValueError(f"{where}: {end} is not in entities.tsv")
                if kind not in self.relations[relation][column].split("|"):
                    raise ValueError(f"{where}: {end} is a {kind}, which {relation} does not take there")
            self.relations_between[head, tail].append(relation)
            self.neighbours[head].add(tail)
            self.neighbours[tail].add(head)

    def _rows(self, name: str) -> list[dict[str, str]]:
        with require_file(self.folder / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))

    def ask_only(self, relations: Iterable[str] = (), types: Iterable[str] = ()) -> None:
        """Keep only these relations and entity types to ask for; none given keeps all. Disambiguation still sees all.

        Raises ValueError on one that the graph doesn't have.
        """
        for kind, wanted in (("relations", set(relations)), ("types", set(types))):
            known = getattr(self, kind)
            if wanted - known.keys():
                raise ValueError(
                    f"{self.folder / kind}.tsv: has no {sorted(wanted - known.keys())[0]}; it has {', '.join(known)}"
                )
            if wanted:
                setattr(self, kind, {name: row for name, row in known.items() if name in wanted})
        for pair, between in self.relations_between.items():
            self.relations_between[pair] = [relation for relation in between if relation in self.relations]

    @cached_property
    def num_triples(self) -> int:
        return sum(map(len, self.relations_between.values()))

    def names(self, entity: str, language: str) -> list[str]:
        """The entity's name and aliases in a language (``english`` or ``chinese``)."""
        suffix = "en" if language == "english" else "zh"
        row = self.entities[entity]
        return [name for name in [row[f"name_{suffix}"], *row[f"aliases_{suffix}"].split("|")] if name]

    def label(self, kind: str, identifier: str, language: str) -> str:
        """How a relation or type (``kind``: ``relations`` or ``types``) is called in a language."""
        return getattr(self, kind)[identifier]["name_en" if language == "english" else "name_zh"]


class MentionFinder:
    """Finds every name of the graph's entities (Aho–Corasick, longest match, whole words in English) and every year."""

    def __init__(self, graph: KnowledgeGraph, language: str):
        self.language = language
        self._automaton = ahocorasick.Automaton()
        by_name: dict[str, set[str]] = defaultdict(set)
        for entity in graph.entities:
            for name in graph.names(entity, language):
                by_name[name].add(entity)
        for name, candidates in by_name.items():
            if len(name) > 1 or language == "english":  # a single Chinese character is a word of its own too often
                self._automaton.add_word(name, (name, tuple(sorted(candidates))))
        self._automaton.make_automaton()

    def find(self, text: str) -> list[Mention]:
        """Mentions in reading order, none within another."""
        found = [
            Mention(end + 1 - len(name), end + 1, candidates) for end, (name, candidates) in self._automaton.iter(text)
        ]
        if self.language == "english":
            found = [m for m in found if _is_whole_word(text, m.start, m.stop)]
        for match in YEAR.finditer(text):
            before = match[1] or match[0].endswith(("BC", "BCE"))
            found.append(Mention(match.start(2), match.end(2), (("-" if before else "") + match[2],)))
        return _longest(found)


def _is_whole_word(text: str, start: int, stop: int) -> bool:
    return not ((start and text[start - 1].isalnum()) or (stop < len(text) and text[stop].isalnum()))


def _longest(mentions: Iterable[Mention]) -> list[Mention]:
    kept: list[Mention] = []
    for mention in sorted(mentions, key=lambda m: (m.start - m.stop, m.start)):
        if not any(mention.start < other.stop and other.start < mention.stop for other in kept):
            kept.append(mention)
    return sorted(kept, key=lambda m: m.start)


def disambiguate(
    mentions: Iterable[Mention], graph: KnowledgeGraph, context: Iterable[str] = ()
) -> list[tuple[Mention, str]]:
    """One entity for each mention, in reading order.

    A candidate that is accepted already, or is a neighbour in the graph of the most accepted ones, is preferred;
    else the one with the most neighbours among all candidates of the text; ties go to the id that sorts first.
    context: entities accepted beforehand, such as the article's own.
    """
    mentions = list(mentions)
    possible = {candidate for mention in mentions for candidate in mention.candidates}
    accepted = set(context)
    chosen = []
    for mention in mentions:

        def preference(candidate: str) -> tuple:
            near = graph.neighbours.get(candidate, set())
            return (candidate not in accepted, -len(near & accepted), -len(near & possible), candidate)

        best = min(mention.candidates, key=preference)
        accepted.add(best)
        chosen.append((mention, best))
    return chosen
