"""Of several equal or nearly equal documents the first in input order stays: datatrove's stages, with that order."""

from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig

from knowlm.cleaning import REMOVED, CountingWriter, Source, TaskReader
from knowlm.executors import Stage
from knowlm.quality import Words

MOST_TASKS = 65535  # exact duplicates of later tasks get lower priorities, of 16 bits
PLACE = np.dtype([("source", "<u4"), ("line", "<u8")])  # of a document
ORIGINALS = "originals.bin"
LINES = 1 << 12  # signatures read at once; datatrove's 5 are slow


def content(document: Document) -> bytes:
    """What equal documents share: all but white space."""
    return " ".join(document.text.split()).encode()


def earlier_first(document: Document) -> int:
    """datatrove breaks ties by the number inside a task alone, so the task has to tell who is first."""
    return MOST_TASKS - document.metadata["task"]


EXACT = ExactDedupConfig(content_getter=content, document_priority=earlier_first)
# datatrove's published settings: 14 buckets of 8 hashes of 5-grams of words, for documents that share 3/4 of these
NEAR = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))  # datatrove's use of xxhash fails from xxhash 4 on


def deduplication_stages(folder: Path, sources: list[Source], tasks: int, exact: bool, near: bool) -> list[Stage]:
    """From OUTPUT_DIR/work/judged to OUTPUT_DIR/work/documents."""
    work, stages = folder / "work", []
    hashes, equal, signatures, similar, clusters = (
        str(work / name) for name in ("hashes", "equal", "signatures", "similar", "clusters")
    )
    sort_out: list[PipelineStep] = [TaskReader(str(work / "judged"))]
    if exact:
        finders = min(tasks, 16)
        sign = [TaskReader(str(work / "judged")), ExactDedupSignature(hashes, EXACT, finders)]
        find = [ExactFindDedups(hashes, equal, EXACT, lines_to_buffer=LINES)]
        stages += [Stage("2_hash", sign, tasks), Stage("3_find_equal", find, finders)]
        sort_out.append(ExactDedupFilter(equal, EXACT))
    if near:
        sign = [*sort_out, DocumentPlaces(work / "places", sources), MinhashDedupSignature(signatures, NEAR, Words())]
        find = [MinhashDedupBuckets(signatures, similar, config=NEAR, lines_to_buffer=LINES)]
        stages += [Stage("4_sign", sign, tasks), Stage("5_find_similar", find, NEAR.num_buckets)]
        stages += [Stage("6_cluster", [FirstOfCluster(Path(similar), Path(clusters), work / "places")])]
    if exact:
        sort_out[-1] = ExactDedupFilter(equal, EXACT, CountingWriter(folder, REMOVED, "equal", "exact_duplicate"))
    if near:
        writer = NearDuplicateWriter(folder, REMOVED, "similar", "near_duplicate")
        writer.sources, writer.originals_path = sources, Path(clusters) / ORIGINALS
        sort_out.append(MinhashDedupFilter(clusters, writer, load_cluster_ids=True, lines_to_buffer=LINES))
    return [*stages, Stage("7_sort_out", [*sort_out, CountingWriter(folder, "work/documents", "kept")], tasks)]


class DocumentPlaces(PipelineStep):
    """Notes where the documents of a task come from: PLACES/00000.bin, (documents,) of PLACE."""

    type, name = "🫂 - DEDUP", "places"

    def __init__(self, folder: Path, sources: list[Source]):
        super().__init__()
        self.folder, self.numbers = folder, {source.name: number for number, source in enumerate(sources)}

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self.folder.mkdir(exist_ok=True)
        with (self.folder / f"{rank:05d}.bin").open("wb") as places:
            for document in data:
                place = (self.numbers[document.metadata["file"]], document.metadata["line"])
                places.write(np.array(place, PLACE).tobytes())
                yield document


class FirstOfCluster(PipelineStep):
    """Groups of similar documents, the first of each to stay; writes what datatrove's MinhashDedupFilter reads.

    Instead of datatrove's MinhashDedupCluster, which keeps the one that its union by size leaves on top. The number of
    a cluster is that of its first document in CLUSTERS/originals.bin, (clusters,) of PLACE.
    """

    type, name = "🫂 - DEDUP", "first of cluster"

    def __init__(self, similar: Path, clusters: Path, places: Path):
        super().__init__()
        self.similar, self.clusters, self.places = similar, clusters, places

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        first = first_members(self.similar)
        numbers = {node: number for number, node in enumerate(sorted(set(first.values())))}
        self.clusters.mkdir(exist_ok=True)
        originals = np.empty(len(numbers), PLACE)
        for task, nodes in groupby(numbers, key=lambda node: node[0]):
            places = np.memmap(self.places / f"{task:05d}.bin", PLACE, "r")
            for node in nodes:
                originals[numbers[node]] = places[node[1]]
        originals.tofile(self.clusters / ORIGINALS)
        for task, nodes in groupby(sorted(first), key=lambda node: node[0]):
            removed = [(document, numbers[first[task, document]]) for _, document in nodes]
            np.array(removed, "<u4").tofile(self.clusters / f"{task:06d}.clusters")
            np.array(removed, "<u4")[:, 0].tofile(self.clusters / f"{task:06d}.remove")


def first_members(similar: Path) -> dict[tuple[int, int], tuple[int, int]]:
    """The first (task, document) of its cluster for each that isn't the first itself, from datatrove's pairs."""
    parent: dict[tuple[int, int], tuple[int, int]] = {}

    def find(node: tuple[int, int]) -> tuple[int, int]:
        path = []
        while (above := parent.get(node)) is not None:
            path.append(node)
            node = above
        for passed in path:
            parent[passed] = node
        return node

    for file in sorted(similar.glob("*.dups")):
        for task, document, other_task, other in np.fromfile(file, "<u4").reshape(-1, 4).tolist():
            first, second = sorted((find((task, document)), find((other_task, other))))
            if first != second:
                parent[second] = first
    return {node: find(node) for node in parent}


class NearDuplicateWriter(CountingWriter):
    """Also says of which document one is nearly a duplicate."""

    sources: list[Source]
    originals_path: Path

    @cached_property
    def originals(self) -> np.ndarray:
        return np.memmap(self.originals_path, PLACE, "r")

    def write(self, document: Document, rank: int = 0, **kwargs) -> None:
        source, line = self.originals[document.metadata["minhash_cluster_id"]].tolist()
        document.metadata["duplicate_of"] = f"{self.sources[source].name}:{line}"
        super().write(document, rank, **kwargs)
