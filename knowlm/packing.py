"""Pack documents into training samples: whole sentences, few samples, each as long as it can be."""

import re
import string
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from knowlm.sentences import sentence_ends
from knowlm.tokenization import Tokens, byte_offsets, character_start

BLOCK = 384  # bytes in which ends of sentences are looked for at once: few, as most of a text is nowhere near a cut
MARGIN = 128  # bytes on both sides of a block that are read with it, and the words at their edges as wholes
LONGEST = 1024  # bytes that are read further for a word or a gap
REST = re.compile(rb"\S*\s*\S*")  # of a word, and the next one
SPACES = [space.encode() for space in string.whitespace]


class Sample(NamedTuple):
    ids: np.ndarray  # (tokens,)
    start: int  # its first byte in the text of its document
    stop: int  # its last byte + 1
    repeated: int = 0  # tokens at its beginning that the sample before has as well


def pack_document(
    parts: Iterable[Tokens], content: bytes, language: str, capacity: int, overlap: bool = True
) -> Iterator[Sample]:
    """Cut a document that was encoded as a whole into samples.

    parts: all tokens of the document, at once or part by part; content: its text in UTF-8; language: see
    ``sentence_ends``, or empty to cut anywhere.

    A sample ends with the last sentence that fits into ``capacity`` tokens, or is full where one sentence is longer.
    With ``overlap`` it reaches back over sentences of the sample before as far as they fit: context instead of padding.
    These are the blocks of ``pack_sentences``, a sentence over ``capacity`` counting as full pieces and a rest, found
    without looking for every sentence. An end inside a token is no place to cut.
    """
    ends = SentenceEnds(content, language)
    ids, starts = np.empty(0, np.uint32), np.empty(0, np.int64)
    start = before = 0  # where this sample begins, and the one before
    for more_ids, more_starts in parts:
        keep = max(0, start - capacity)
        ids, starts = np.concatenate([ids[keep:], more_ids]), np.concatenate([starts[keep:], more_starts])
        start, before = start - keep, before - keep
        while start + capacity < len(ids):
            stop = last_cut(ends, starts, start, start + capacity)
            first = first_cut(ends, starts, stop - capacity, start, before) if overlap else start
            yield Sample(ids[first:stop], int(starts[first]), int(starts[stop]), start - first)
            start, before = stop, start
    if start < len(ids):
        first = first_cut(ends, starts, len(ids) - capacity, start, before) if overlap else start
        yield Sample(ids[first:], int(starts[first]), len(content), start - first)


class SentenceEnds:
    """The ends of a text's sentences, in bytes, looked for where somebody asks; not the last, which ends the text.

    They are those of ``sentence_ends`` unless a word or a gap between two is longer than LONGEST.
    """

    def __init__(self, content: bytes, language: str):
        self._content, self._language = content, language
        self._block = lru_cache(16)(self._find)

    def between(self, first: int, last: int, backwards: bool = False) -> Iterator[int]:
        """Those e with first <= e <= last."""
        if self._language:
            blocks = range(first // BLOCK, last // BLOCK + 1)
            for block in reversed(blocks) if backwards else blocks:
                found = self._block(block)
                yield from (end for end in (reversed(found) if backwards else found) if first <= end <= last)

    def _find(self, block: int) -> list[int]:
        content, begin = self._content, max(0, block * BLOCK - MARGIN)
        lowest = max(0, begin - LONGEST)
        begin = max(lowest, *(content.rfind(space, lowest, begin) + 1 for space in SPACES))
        stop = min(len(content), (block + 1) * BLOCK + MARGIN)
        stop = next(REST.finditer(content, stop, stop + LONGEST)).end()
        begin, stop = character_start(content, begin), character_start(content, stop)
        window = content[begin:stop].decode()
        ends = begin + byte_offsets(window, np.array(sentence_ends(window, self._language)[:-1], np.int64))
        return ends[ends // BLOCK == block].tolist()


def last_cut(ends: SentenceEnds, starts: np.ndarray, start: int, limit: int) -> int:
    """The last token up to ``limit`` at which a sample from ``start`` may end."""
    for end in ends.between(int(starts[start]) + 1, int(starts[limit]), backwards=True):
        stop = int(starts.searchsorted(end))
        if starts[stop] == end:
            return stop
    stop = limit
    while stop > start + 1 and starts[stop] == starts[stop - 1]:
        stop -= 1  # tokens that begin together are parts of one character
    return stop if stop > start + 1 else limit


def first_cut(ends: SentenceEnds, starts: np.ndarray, lowest: int, start: int, before: int) -> int:
    """The first token from ``lowest`` on at which the sample of the sentence at ``start`` may begin: where a sentence
    does, or the sample ``before``, for that may be inside one.
    """
    if lowest <= 0:
        return 0
    latest = before if before >= lowest else start
    for end in ends.between(int(starts[lowest]), int(starts[latest])):
        first = int(starts.searchsorted(end))
        if starts[first] == end and first >= lowest:
            return first
    return latest


def pack_sentences(lengths: Sequence[int] | np.ndarray, capacity: int, overlap: bool = True) -> list[tuple[int, int]]:
    """Cover all sentences with few blocks of at most ``capacity`` tokens.

    lengths: tokens per sentence, in reading order.
    Returns half-open (start, stop) sentence spans. A block that ends early also
    reaches back over used sentences: context instead of padding. Without ``overlap`` it does not.
    A sentence over ``capacity`` is a block of its own.

    >>> pack_sentences([700, 300, 500], capacity=1024)
    [(0, 2), (1, 3)]
    """
    edges = [0, *np.cumsum(lengths).tolist()]
    spans, start = [], 0
    while start < len(lengths):
        stop = max(bisect_right(edges, edges[start] + capacity) - 1, start + 1)
        first = bisect_left(edges, edges[stop] - capacity) if overlap else start
        spans.append((min(first, start), stop))
        start = stop
    return spans
