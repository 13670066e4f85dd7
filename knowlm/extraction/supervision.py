"""Distant supervision: extraction examples from texts and a knowledge graph (after InstructIE, arXiv 2305.11527)."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from knowlm.extraction.knowledge import KnowledgeGraph, Mention, MentionFinder, disambiguate
from knowlm.packing import pack_sentences
from knowlm.sentences import sentence_ends

SCHEMA_SIZE = {"NER": 6, "RE": 4}  # labels in one question, as IEPile batches them
TRANSITIVE = ("located_in", "part_of", "parent_taxon")
UNTYPED = ("concept",)  # too wide to be asked for as an entity type


@dataclass
class Piece:
    """Some sentences of an article with the entities and triples found in them."""

    id: str
    article: str  # the article's own entity, or its title
    language: str
    text: str
    entities: list[tuple[Mention, str]]
    triples: list[dict]  # head, relation, tail ids, with the mentions as evidence


def find_pieces(
    article: dict, language: str, graph: KnowledgeGraph, finder: MentionFinder, length: int
) -> Iterator[Piece]:
    """Pieces of an article ``{"title", "text"}`` of at most ``length`` characters (Chinese) or words (English)."""
    titled = finder.find(article["title"])
    own = [m for m in titled if m.stop - m.start == len(article["title"])] or titled[:1]
    topic = disambiguate(own, graph, [c for m in finder.find(article["text"]) for c in m.candidates])[:1]
    context = [entity for _, entity in topic]
    for text in split_text(article["text"], language, length):
        entities = disambiguate(finder.find(text), graph, context)
        yield Piece(
            id=hashlib.sha256(text.encode()).hexdigest()[:16],
            article=context[0] if context else article["title"],
            language=language,
            text=text,
            entities=entities,
            triples=match_triples(entities, graph),
        )


def split_text(text: str, language: str, length: int) -> list[str]:
    """Whole sentences, together at most ``length`` characters or words; a longer sentence stays alone.

    >>> split_text("你好。再见！", "chinese", 3)
    ['你好。', '再见！']
    """
    ends = sentence_ends(text, language)
    sentences = [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    sizes = [min(len(s) if language == "chinese" else len(s.split()), length) for s in sentences]
    pieces, covered = [], 0
    for _, stop in pack_sentences(sizes, length):
        pieces.append("".join(sentences[covered:stop]).strip())  # without the packing's look back
        covered = stop
    return [piece for piece in pieces if piece]


def match_triples(entities: Sequence[tuple[Mention, str]], graph: KnowledgeGraph) -> list[dict]:
    """Every graph relation between two entities of a piece, in both directions, once; with where it was found."""
    first: dict[str, Mention] = {}
    for mention, entity in entities:
        first.setdefault(entity, mention)
    triples = []
    for head, head_mention in first.items():
        for tail, tail_mention in first.items():
            for relation in graph.relations_between.get((head, tail), ()):
                triples.append(
                    {
                        "head": head,
                        "relation": relation,
                        "tail": tail,
                        "head_span": [head_mention.start, head_mention.stop],
                        "tail_span": [tail_mention.start, tail_mention.stop],
                    }
                )
    return without_implied(triples)


def without_implied(triples: list[dict]) -> list[dict]:
    """Drop a in c where a in b and b in c are there too, for the transitive relations."""
    direct = {(t["head"], t["relation"], t["tail"]) for t in triples}

    def implied(t: dict) -> bool:
        return t["relation"] in TRANSITIVE and any(
            (t["head"], t["relation"], middle) in direct and (middle, t["relation"], t["tail"]) in direct
            for middle in {other["tail"] for other in triples} - {t["head"], t["tail"]}
        )

    return [t for t in triples if not implied(t)]


def gold_entities(piece: Piece, graph: KnowledgeGraph) -> list[dict]:
    """NER items: each name once."""
    items: dict[tuple[str, str], dict] = {}
    for mention, entity in piece.entities:
        kind = graph.entities[entity]["type"] if entity in graph.entities else None
        if kind in graph.types and kind not in UNTYPED:
            item = {
                "text": piece.text[mention.start : mention.stop],
                "type": graph.label("types", kind, piece.language),
            }
            items.setdefault((item["text"], item["type"]), item)
    return list(items.values())


def gold_relations(piece: Piece, graph: KnowledgeGraph) -> list[dict]:
    """RE items, with the names as the piece has them."""
    return [
        {
            "head": piece.text[slice(*t["head_span"])],
            "relation": graph.label("relations", t["relation"], piece.language),
            "tail": piece.text[slice(*t["tail_span"])],
        }
        for t in piece.triples
    ]


def schema_for(task: str, piece: Piece, gold: Sequence[dict], graph: KnowledgeGraph, seed: int) -> list[str]:
    """Labels to ask for: those of the answer and, up to the usual number, others that fit the piece's topic.

    The others are negatives: relations whose head type is that of an entity of the piece, so confusable ones.
    """
    generator = random.Random(f"{seed} {task} {piece.id}")
    kinds = {graph.entities[entity]["type"] for _, entity in piece.entities if entity in graph.entities}
    if task == "NER":
        wanted = {item["type"] for item in gold}
        others = [graph.label("types", kind, piece.language) for kind in graph.types if kind not in UNTYPED]
    else:
        wanted = {item["relation"] for item in gold}
        others = [
            graph.label("relations", relation, piece.language)
            for relation, row in graph.relations.items()
            if kinds & set(row["head_types"].split("|"))
        ]
    others = [label for label in others if label not in wanted]
    generator.shuffle(others)
    labels = [*sorted(wanted), *others[: max(SCHEMA_SIZE[task] - len(wanted), 0)]]
    generator.shuffle(labels)
    return labels
