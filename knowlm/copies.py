"""Find runs of tokens of some samples that come again in other samples, in linear time and bounded memory."""

from collections.abc import Iterator

import numpy as np

from knowlm.corpus import START, Corpus

BASE = 0x9E3779B97F4A7C15  # odd, its bits look random
TABLE = 1 << 24  # windows looked for in one pass over the corpus: 256 MB, and a bitmap of 128 MB
BLOCK = 1 << 18  # tokens hashed at once: their hashes stay in the processor's cache


def find_copies(corpus: Corpus, numbers: np.ndarray, other: Corpus, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of ``other`` that hold ``width`` or more neighbouring tokens of one of these samples of ``corpus``.

    BOS and EOS don't count. A sample shorter than ``width`` is looked for as a whole sample.
    Returns (found,) numbers and (found,) how many of their tokens lie in such runs.
    """
    begins, ends = contents(corpus, numbers)
    is_long = ends - begins >= width
    hits = [np.empty(0, np.int64)]
    for group in in_groups(begins[is_long], ends[is_long], TABLE):
        hits += WindowTable(corpus.tokens, *group, width).search(other)
    starts = np.unique(np.concatenate(hits))
    samples = samples_at(other, starts)
    new = np.minimum(np.diff(starts, prepend=-width), width)  # tokens that a window adds to those before it
    new[1:][np.diff(samples) > 0] = width
    found, place = np.unique(samples, return_inverse=True)
    sizes = np.bincount(place, new).astype(int)
    for copies, size in whole_copies(corpus, begins[~is_long], ends[~is_long], other):
        found, sizes = np.append(found, copies), np.append(sizes, np.full(len(copies), size))
    order = np.argsort(found)
    return found[order], sizes[order]


def whole_copies(
    corpus: Corpus, begins: np.ndarray, ends: np.ndarray, other: Corpus
) -> Iterator[tuple[np.ndarray, int]]:
    """(numbers of samples of ``other`` with the content of one of these spans, their size) for each size."""
    sizes = ends - begins
    if not sizes.any():
        return
    numbers = np.flatnonzero(other.lengths <= sizes.max() + 2)
    other_begins, other_ends = contents(other, numbers)
    for size in np.unique(sizes[sizes > 0]).tolist():
        table = WindowTable(corpus.tokens, begins[sizes == size], ends[sizes == size], size)
        alike = other_ends - other_begins == size
        for first in range(0, int(alike.sum()), BLOCK):
            places = other_begins[alike][first : first + BLOCK]
            hashes = span_hashes(other.tokens, places, places + size, size)
            yield numbers[alike][first : first + BLOCK][table.holds(other.tokens, places, hashes)], size


class WindowTable:
    """All windows of ``width`` tokens within spans of ``tokens``."""

    def __init__(self, tokens: np.ndarray, begins: np.ndarray, ends: np.ndarray, width: int):
        self.tokens, self.width = tokens, width
        self.hashes = np.concatenate([span_hashes(tokens, *group, width) for group in in_groups(begins, ends, BLOCK)])
        order = np.argsort(self.hashes)
        self.hashes = self.hashes[order]
        self.places = places_between(begins, ends - width + 1)[order]
        self.shift = np.uint64(64 - min(max(len(order).bit_length() + 3, 16), 27))
        self.bitmap = np.zeros(1 << (64 - int(self.shift)), bool)
        self.bitmap[self.hashes >> self.shift] = True

    def search(self, other: Corpus) -> Iterator[np.ndarray]:
        """Places in ``other`` of windows that are in the table, those within one sample's content."""
        for first in range(0, len(other.tokens) - self.width + 1, BLOCK):
            hashes = window_hashes(other.tokens[first : first + BLOCK + self.width - 1], self.width)
            maybe = np.flatnonzero(self.bitmap[hashes >> self.shift])
            places = first + maybe[self.holds(other.tokens, first + maybe, hashes[maybe])]
            begins, ends = contents(other, samples_at(other, places))
            yield places[(begins <= places) & (places + self.width <= ends)]

    def holds(self, tokens: np.ndarray, places: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Whether the windows of ``tokens`` at these places are in the table: (places,) of bool; hash, then tokens."""
        found = np.zeros(len(places), bool)
        at = np.searchsorted(self.hashes, hashes)
        left = np.arange(len(places))
        while len(left):  # again only where windows differ that have one hash
            left = left[at[left] < len(self.hashes)]
            left = left[self.hashes[at[left]] == hashes[left]]
            for first in range(0, len(left), BLOCK // self.width + 1):
                some = left[first : first + BLOCK // self.width + 1]
                ours = self.tokens[self.places[at[some], None] + np.arange(self.width)]  # (windows, width)
                found[some] = (ours == tokens[places[some, None] + np.arange(self.width)]).all(1)
            left = left[~found[left]]
            at[left] += 1
        return found


def contents(corpus: Corpus, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places in ``.bin`` where samples begin and end, BOS and EOS aside: (samples,) each."""
    begins = corpus.starts[numbers].astype(np.int64)
    ends = begins + corpus.lengths[numbers]
    begins += corpus.tokens[begins] == corpus.settings.get("bos", -1)
    ends -= (ends > begins) & (corpus.tokens[ends - 1] == corpus.settings.get("eos", -1))
    return begins, ends


def samples_at(corpus: Corpus, places: np.ndarray) -> np.ndarray:
    """Numbers of the samples that hold these places of ``.bin``."""
    return np.searchsorted(corpus.starts, places.astype(START), "right") - 1  # numpy would turn all into floats


def in_groups(begins: np.ndarray, ends: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Spans, as many at a time as have ``size`` places, or one."""
    totals = np.cumsum(ends - begins)
    first = 0
    while first < len(begins):
        done = totals[first - 1] if first else 0
        stop = max(int(np.searchsorted(totals, done + size, "right")), first + 1)
        yield begins[first:stop], ends[first:stop]
        first = stop


def places_between(begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """All places of half-open spans, one span after another.

    >>> places_between(np.array([5, 9]), np.array([8, 11])).tolist()
    [5, 6, 7, 9, 10]
    """
    sizes = ends - begins
    return np.repeat(begins - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


def span_hashes(tokens: np.ndarray, begins: np.ndarray, ends: np.ndarray, width: int) -> np.ndarray:
    """Hashes of the windows within each span, one span after another."""
    hashes = window_hashes(tokens[places_between(begins, ends)], width)
    stops = np.cumsum(ends - begins)
    return hashes[places_between(stops - (ends - begins), stops - width + 1)]


def window_hashes(tokens: np.ndarray, width: int) -> np.ndarray:
    """(tokens - width + 1,) of uint64: a polynomial over each window, joined from those of 1, 2, 4 … tokens."""
    part, size = tokens.astype(np.uint64) + np.uint64(1), 1
    hashes, done = np.zeros(len(tokens) + 1, np.uint64), 0
    while True:
        power = np.uint64(pow(BASE, size, 1 << 64))
        if width & size:
            hashes = hashes[: len(tokens) - done - size + 1] * power + part[done:]
            done += size
        if done == width:
            return hashes
        part = part[:-size] * power + part[size:]
        size *= 2
