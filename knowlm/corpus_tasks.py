"""Build a corpus from files: in this process and its workers, or as tasks that an executor spreads over machines."""

import hashlib
import json
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from knowlm.cli import end_with_parent
from knowlm.corpus import BLOCK, REJECTED, Corpus, CorpusWriter, NoSamplesError
from knowlm.corpus_builder import EncodedChunk, Recipe, encode_chunk
from knowlm.files import locked, read_json, write_json
from knowlm.sentences import sentence_ends
from knowlm.sources import Chunk, looks_like_json, read_chunks
from knowlm.tokenization import CorpusTokenizer


@dataclass
class Work:
    """What a corpus is made of, and how."""

    sources: list[Path]
    input_format: str | None  # text, json, or what each file looks like
    tokenizer_path: str
    recipe: Recipe
    is_strict: bool  # stop at a line that can't be read
    has_ledger: bool

    def settings(self, tokenizer: CorpusTokenizer) -> dict:
        return {
            **asdict(self.recipe),
            "sources": [{"path": str(source), "bytes": source.stat().st_size} for source in self.sources],
            "input_format": self.input_format,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_sha256": tokenizer.sha256,
            "bos": tokenizer.bos,
            "eos": tokenizer.eos,
        }

    def digest(self, tasks: int | None) -> str:
        """Tells this work from any other, its files and the number of tasks included."""
        files = [
            (str(path), path.stat().st_size, path.stat().st_mtime_ns)
            for path in [*self.sources, Path(self.tokenizer_path)]
        ]
        return hashlib.sha256(repr((asdict(self), files, tasks)).encode()).hexdigest()[:8]


def build_corpus(work: Work, prefix: str, tokenizer: CorpusTokenizer, num_workers: int) -> dict[str, Counter]:
    """Write the corpus ``prefix``, going on where a killed run with the same settings stopped; counts by source."""
    sources = work.sources
    changed = [source.stat().st_mtime_ns for source in sources]
    with (
        locked(f"{prefix}.journal"),
        CorpusWriter(prefix, work.settings(tokenizer), work.has_ledger, changed) as corpus,
    ):
        if corpus.progress:
            print(f"{prefix}: going on behind {corpus.num_samples} samples", file=sys.stderr)
        counts = {str(sources[past["source"]]): Counter(past["counts"]) for past in corpus.progress}
        done = corpus.progress[-1] if corpus.progress else {"source": 0, "stop": 0, "line": 1}
        chunks = read_sources(sources, work.input_format, done)
        total = sum(source.stat().st_size for source in sources)
        with tqdm(total=total, unit="B", unit_scale=True, desc=Path(prefix).name, disable=None) as bar:
            for encoded in encode_all(chunks, tokenizer, work.recipe, num_workers):
                chunk, path = encoded.chunk, str(sources[encoded.chunk.source])
                if encoded.rejected and work.is_strict:
                    first = encoded.rejected[0]
                    raise ValueError(f"{path}, line {first['line']}: {first['reason']}; mend it, or leave out --strict")
                corpus.add(encoded.ids, encoded.lengths, encoded.ledger)
                corpus.reject([{"file": path, **row} for row in encoded.rejected])
                counts.setdefault(path, Counter()).update(encoded.counts)
                place = {"source": chunk.source, "stop": chunk.stop, "line": chunk.next_line}
                corpus.commit({**place, "counts": counts[path]})
                bar.update(chunk.size)
        corpus.counts = counts
    return counts


def read_sources(sources: list[Path], input_format: str | None, done: dict) -> Iterator[Chunk]:
    """The chunks behind those that are done."""
    for number, source in enumerate(sources):
        if number >= done["source"]:
            start, line = (done["stop"], done["line"]) if number == done["source"] else (0, 1)
            is_json = input_format == "json" if input_format else looks_like_json(source)
            yield from read_chunks(source, number, is_json, start, line)


def encode_all(
    chunks: Iterator[Chunk], tokenizer: CorpusTokenizer, recipe: Recipe, num_workers: int
) -> Iterator[EncodedChunk]:
    """Encoded chunks in order; few are in memory at once."""
    if num_workers == 1:
        yield from (encode_chunk(chunk, tokenizer, recipe) for chunk in chunks)
        return
    # Forked workers have what is loaded here; to load it again would take each as long as 10 MB of text.
    _ = tokenizer.engine
    if recipe.do_split_sentences and recipe.language != "chinese":
        sentence_ends("It rains.", "english")
    with ProcessPoolExecutor(num_workers, get_context("fork"), start_worker, (os.getpid(), tokenizer, recipe)) as pool:
        waiting: deque[Future] = deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(work, chunk))
                if len(waiting) > 2 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise OSError(
                "a worker was killed, perhaps for want of memory; take fewer --num_workers and repeat the command: "
                "it goes on"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


worker_tokenizer: CorpusTokenizer  # of a worker process
worker_recipe: Recipe


def start_worker(parent: int, *shared) -> None:
    global worker_tokenizer, worker_recipe
    end_with_parent(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the pool ends its workers so
    worker_tokenizer, worker_recipe = shared


def work(chunk: Chunk) -> EncodedChunk:
    return encode_chunk(chunk, worker_tokenizer, worker_recipe)


@dataclass
class BuildPart:
    """A datatrove step: task ``rank`` builds the corpus of its share of the sources."""

    work: Work
    shares: list[list[Path]]
    folder: Path

    def __call__(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        part = part_prefix(self.folder, rank)
        try:
            build_corpus(
                replace(self.work, sources=self.shares[rank]), part, CorpusTokenizer(self.work.tokenizer_path), 1
            )
        except NoSamplesError as error:
            write_json(f"{part}.empty.json", error.counts)


@dataclass
class JoinParts:
    """A datatrove step: write the corpus that ``build_corpus`` would have written, out of its parts."""

    work: Work
    shares: list[list[Path]]
    folder: Path
    prefix: str

    def __call__(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        settings = self.work.settings(CorpusTokenizer(self.work.tokenizer_path))
        with (
            locked(f"{self.prefix}.journal"),
            CorpusWriter(self.prefix, settings, self.work.has_ledger, [self.folder.name]) as corpus,
        ):
            counts = {path: Counter(found) for past in corpus.progress for path, found in past["counts"].items()}
            for number in range(len(corpus.progress), len(self.shares)):
                part = part_prefix(self.folder, number)
                found = self.add(corpus, part, sum(map(len, self.shares[:number])))
                counts |= {path: Counter(found[path]) for path in found}
                corpus.commit({"counts": found})
            corpus.counts = counts

    def add(self, corpus: CorpusWriter, prefix: str, first_source: int) -> dict:
        """Add a part's samples and rejected lines; its counts by source."""
        rejected = Path(f"{prefix}{REJECTED}")
        if rejected.is_file():
            corpus.reject([json.loads(line) for line in rejected.read_text(encoding="utf-8").splitlines()])
        if Path(f"{prefix}.empty.json").is_file():
            return read_json(f"{prefix}.empty.json")
        part = Corpus(prefix)
        for first in range(0, len(part), BLOCK):
            lengths = part.lengths[first : first + BLOCK]
            start = int(part.starts[first])
            ids = part.tokens[start : start + int(lengths.sum(dtype=np.int64))]
            ledger = None if part.ledger is None else np.array(part.ledger[first : first + BLOCK])
            if ledger is not None:
                ledger["source"] += first_source
            corpus.add(ids, lengths, ledger)
        return part.settings["counts"]


def part_prefix(folder: Path, number: int) -> str:
    return str(folder / f"part-{number:05d}")


def share_out(sources: Sequence[Path], tasks: int | None) -> list[list[Path]]:
    """Sources in order in so many shares of about equal size, none empty; by default one for each file."""
    ends = np.cumsum([source.stat().st_size + 1 for source in sources])
    places = (ends - 1) * min(tasks or len(sources), len(sources)) // ends[-1]
    return [[sources[i] for i in np.flatnonzero(places == place)] for place in np.unique(places)]


def stages_of(work: Work, prefix: str, folder: Path, tasks: int | None) -> list:
    """What ``run_stages`` is to run. folder: for the parts."""
    from knowlm.executors import Stage

    shares = share_out(work.sources, tasks)
    return [
        Stage("build", [BuildPart(work, shares, folder)], len(shares)),
        Stage("join", [JoinParts(work, shares, folder, prefix)]),
    ]
