"""Cut documents into training samples: whole sentences, few samples, each as long as it can be."""

import re
import string
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

# A Chinese or mixed sentence ends at these marks or at a line break; further marks and closing quotes belong to it.
CHINESE_END = re.compile(r"[;!?；。！？\n][;!?；。！？\n”’」』）)\"']*")
CHINESE_LETTER = re.compile(r"[\u3400-\u9fff\u3040-\u30ff]")
CODE_LINE = re.compile(r"(?m)^(?:\t+|(?: {2}){1,})\S|[{};]\s*$|^\s*(?:def|class|import|from|#include|return|func)\b")
PLAIN_END = re.compile(r"(?:([^\W\d_]{2,})\.|[^\W\d_]+[?!])\s")
MEMO = 1 << 16  # Punkt's decisions kept in memory, some 20 MB


def guess_language(text: str) -> str:
    """``chinese`` if a tenth of the first characters are Chinese, ``code`` if half the lines look so, else ``english``.

    >>> [guess_language(text) for text in ("床前明月光", "def f(x):\\n    return x", "It rains.")]
    ['chinese', 'code', 'english']
    """
    head = text[:4000]
    if len(CHINESE_LETTER.findall(head)) > len(head) / 10:
        return "chinese"
    lines = [line for line in head.split("\n") if line.strip()]
    return "code" if 2 * sum(bool(CODE_LINE.search(line)) for line in lines) > len(lines) > 1 else "english"


def sentence_ends(text: str, language: str) -> list[int]:
    """Character offsets at which the sentences of ``text`` end, the last being ``len(text)``.

    White space between two English sentences belongs to the second, as word pieces begin with it.
    language: ``chinese`` (also for mixed text), ``english`` or ``code``.

    >>> sentence_ends("你好。再见！", "chinese")
    [3, 6]
    >>> sentence_ends("Dr. Li left. She is back.", "english")
    [12, 25]
    """
    if not text:
        return []
    if language == "chinese":
        ends = [match.end() for match in CHINESE_END.finditer(text)]
    else:
        ends = punkt_ends(text)
        if language == "code":  # a line is a natural unit too
            ends = sorted({*ends, *(match.start() for match in re.finditer(r"\n", text))})
    ends = [end for end in ends if 0 < end < len(text)]
    return [*ends, len(text)]


def punkt_ends(text: str) -> list[int]:
    """Where nltk's Punkt (Kiss & Strunk 2006) ends the sentences of an English text, but for the last one.

    The same ends as ``PunktSentenceTokenizer.span_tokenize``, several times as fast: one scan for marks that may end a
    sentence, and Punkt asked only where it may say no.
    """
    candidate, closing, is_end = _punkt()
    spans, begin = [], 0  # of sentences, without the white space between them
    for stop, after, context_start in _marks(candidate, text):
        if is_end(text, context_start, stop, after):
            spans.append((begin, stop))
            begin = after.start("next_tok") if after["next_tok"] else stop
    last = len(text.rstrip())
    spans.append((begin, last))
    ends, skipped = [], 0
    for (begin, stop), (next_begin, next_stop) in pairwise(spans):
        closed = closing.match(text, next_begin, next_stop) if next_begin < next_stop else None
        if closed:  # quotes and brackets behind the mark belong to its sentence
            ends.append(next_begin + len(closed[0].rstrip()))
        elif begin + skipped < stop:
            ends.append(stop)
        skipped = closed.end() - next_begin if closed else 0
    return [end for end in ends if end < last]


def _marks(candidate, text: str) -> Iterator[tuple[int, Any, int]]:
    """(end, match, where the word before it begins) of each mark; of several behind one word the last."""
    start = stop = 0
    last = None
    for match in candidate.finditer(text):
        position = match.start()
        space = max(text.rfind(character, stop, position) for character in string.whitespace)
        word = space + 1 if space > stop else start
        if last and stop <= word:
            yield last.end(), last, start
        last, start, stop = match, word, position
    if last:
        yield last.end(), last, start


@cache
def _punkt():
    """(pattern of marks, pattern of closing quotes, whether a mark ends a sentence) of Punkt with English parameters.

    Behind a plain word a mark ends a sentence: Punkt sees no end only behind abbreviations, initials, numbers and
    collocations. What it says of the others depends on two words alone, so that is remembered.
    """
    import regex

    punkt = load_punkt()
    special = punkt._params.abbrev_types | {first for first, _ in punkt._params.collocations}
    decide = lru_cache(MEMO)(punkt.text_contains_sentbreak)

    def is_end(text: str, start: int, stop: int, after) -> bool:
        word = PLAIN_END.match(text, start)
        if word and word.end() == stop + 1 and (word[1] is None or word[1].lower() not in special):
            return bool(after["next_tok"].strip()) or decide(text[start:stop] + after["after_tok"])
        return decide(text[start:stop] + after["after_tok"])

    mark, closing = punkt._lang_vars.period_context_re(), punkt._lang_vars.re_boundary_realignment
    return *(regex.compile(pattern.pattern, pattern.flags) for pattern in (mark, closing)), is_end


def load_punkt():
    """nltk's Punkt with its English parameters, read from a package without pickles."""
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    from punkt.data import english

    parameters = PunktParameters()
    parameters.abbrev_types = set(english.ABBREV_TYPES)
    parameters.collocations = set(english.COLLOCATIONS)
    parameters.sent_starters = set(english.SENT_STARTERS)
    parameters.ortho_context.update(english.ORTHO_CONTEXT)
    return PunktSentenceTokenizer(parameters)


def token_lengths(ends: np.ndarray, starts: np.ndarray, capacity: int) -> np.ndarray:
    """Tokens per sentence of a document that was encoded as a whole, (sentences,).

    ends: offset of each sentence's end, (sentences,); starts: offset of each token, (tokens,).
    A sentence end inside a token is no place to cut: its sentence joins the next. A sentence of
    more than ``capacity`` tokens is cut into even pieces, between characters.

    >>> token_lengths(np.array([3, 6]), np.array([0, 2, 3, 5]), capacity=8).tolist()
    [2, 2]
    """
    cuts = np.searchsorted(starts, ends[:-1])
    cuts = cuts[cuts < len(starts)]
    cuts = np.unique(cuts[starts[cuts] == ends[: len(cuts)]])
    edges = np.concatenate([[0], cuts[cuts > 0], [len(starts)]])
    lengths = np.diff(edges)
    if not len(lengths) or lengths.max() <= capacity:
        return lengths
    pieces: list[int] = []
    for edge, length in zip(edges.tolist(), lengths.tolist(), strict=False):
        while length > capacity:
            piece = -(-length // -(-length // capacity))
            inside = piece
            while inside > 1 and starts[edge + inside] == starts[edge + inside - 1]:
                inside -= 1  # tokens that begin together are parts of one character
            piece = inside if inside > 1 else piece
            pieces.append(piece)
            edge, length = edge + piece, length - piece
        pieces.append(length)
    return np.array(pieces)


def pack_sentences(lengths: Sequence[int] | np.ndarray, capacity: int, overlap: bool = True) -> list[tuple[int, int]]:
    """Cover all sentences with few blocks of at most ``capacity`` tokens.

    lengths: tokens per sentence, in reading order.
    Returns half-open (start, stop) sentence spans. A block that ends early also
    reaches back over used sentences: context instead of padding. Without ``overlap`` it does not.

    >>> pack_sentences([700, 300, 500], capacity=1024)
    [(0, 2), (1, 3)]

    Raises ValueError on a sentence over ``capacity``: cut it before packing.
    """
    if len(lengths) and max(lengths) > capacity:
        raise ValueError(f"a sentence has {max(lengths)} tokens, a sample holds {capacity}; cut it before packing")
    edges = [0, *np.cumsum(lengths).tolist()]
    spans, start = [], 0
    while start < len(lengths):
        stop = bisect_right(edges, edges[start] + capacity) - 1
        spans.append((bisect_left(edges, edges[stop] - capacity) if overlap else start, stop))
        start = stop
    return spans
