"""Find facts in many documents with several processes: the same results in the same order for any number of them."""

import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from knowlm.cli import end_with_parent
from knowlm.supervision.case_store import CaseRow, case_row
from knowlm.supervision.documents import Unread
from knowlm.supervision.entailment import EntailmentFilter
from knowlm.supervision.events import add_events
from knowlm.supervision.gold import add_predictions, case_of
from knowlm.supervision.graph import KnowledgeGraph
from knowlm.supervision.graph_schema import Schema
from knowlm.supervision.names import NameFinder
from knowlm.supervision.pieces import Piece, find_pieces

BATCH_CHARACTERS = 100_000  # of text handed to a process at once
AHEAD = 4  # batches for each process that may wait


@dataclass
class Found:
    """What is kept of a piece: rows for the files, figures for the report."""

    id: str
    document: str
    cases: list[CaseRow]
    evidence: dict | None
    topic: str
    mentions: int
    ambiguous: int
    undecided: int
    predicted: int
    matched: dict[str, int]
    by_chance: dict[str, float]
    silent_triggers: dict[str, int]
    not_entailed: dict[str, int]


@dataclass
class Supervisor:
    """Everything that turns a document into ``Found``; ``finders`` by language."""

    database: Path
    schema: Schema
    finders: dict[str, NameFinder]
    tasks: Sequence[str]
    length: int
    seed: int
    min_margin: int = 0
    predictions: dict[str, list[str]] = field(default_factory=dict)
    entailment: EntailmentFilter | None = None
    graph: KnowledgeGraph | None = None

    def open(self) -> KnowledgeGraph:
        """The graph, through a connection of this process's own."""
        self.graph = self.graph or KnowledgeGraph(self.database, self.schema)
        return self.graph

    def find(self, documents: Sequence[Unread]) -> list[Found]:
        graph = self.open()
        pieces = [
            piece
            for document in (unread.read() for unread in documents)
            for piece in find_pieces(document, graph, self.finders[document.language], self.length, self.min_margin)
        ]
        predicted = [add_predictions(piece, self.predictions.get(piece.id, ()), graph.schema) for piece in pieces]
        dropped = self.entailment.drop(pieces, graph.schema) if self.entailment else [Counter[str]()] * len(pieces)
        return [self.keep(graph, *row) for row in zip(pieces, predicted, dropped, strict=True)]

    def keep(self, graph: KnowledgeGraph, piece: Piece, predicted: int, not_entailed: Counter[str]) -> Found:
        rows = [match.as_row(piece.text) for match in piece.triples]
        if "EE" in self.tasks:
            add_events(piece, graph.schema, graph.type)
        cases = [case_of(task, piece, graph.schema, graph.type, self.seed) for task in self.tasks]
        evidence = {
            "piece": piece.id,
            "article": piece.document,
            "language": piece.language,
            "topic": piece.topic.id if piece.topic else None,
            "text": piece.text,
            "triples": rows,
        }
        if "EE" in self.tasks:
            evidence["events"] = [event.as_row(piece.text) for event in piece.events]
        return Found(
            piece.id,
            piece.document,
            [case_row(case, self.seed) for case in cases if case["gold"] or case["schema"]],  # else it asks nothing
            evidence if rows else None,
            piece.topic.id if piece.topic else "none",
            len(piece.entities),
            sum(len(choice.mention.candidates) > 1 for choice in piece.entities),
            sum(choice.decided_by == "order" for choice in piece.entities),
            predicted,
            dict(piece.matched),
            piece.by_chance,
            dict(piece.silent_triggers),
            dict(not_entailed),
        )


supervisor: Supervisor  # of this process; a forked one has its parent's, whose automata it shares


def find_in(documents: Sequence[Unread]) -> list[Found]:
    return supervisor.find(documents)


def find_all(documents: Iterable[Unread], with_supervisor: Supervisor, num_workers: int) -> Iterator[list[Found]]:
    """What is found in batches of documents, in their order; few are in memory at a time.

    Raises OSError if a process dies.
    """
    global supervisor
    supervisor = with_supervisor
    if num_workers == 1:
        yield from map(find_in, in_batches(documents))
        return
    pool = ProcessPoolExecutor(num_workers, get_context("fork"), partial(end_with_parent, os.getpid()))
    with closing(in_order(pool.submit, in_batches(documents), num_workers * AHEAD)) as results:
        try:
            yield from results
        except BrokenProcessPool:
            raise OSError(
                "a process was killed, most likely for memory; repeat the command with fewer --num_workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def in_order(submit: Callable, batches: Iterable[list[Unread]], ahead: int) -> Generator[list[Found], None, None]:
    """Results in order, with at most ``ahead`` batches waiting."""
    waiting: deque = deque()
    for batch in batches:
        waiting.append(submit(find_in, batch))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def in_batches(documents: Iterable[Unread]) -> Iterator[list[Unread]]:
    batch: list[Unread] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.content) + 100
        if size > BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
