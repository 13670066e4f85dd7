"""Cut documents into training samples: whole sentences, few samples, each as long as it can be."""

import re
from collections.abc import Sequence
from functools import cache

# A Chinese or mixed sentence ends at these marks or at a line break; further marks and closing quotes belong to it.
CHINESE_END = re.compile(r"[;!?；。！？\n][;!?；。！？\n”’」』）)\"']*")


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
        ends = [end for _, end in _punkt().span_tokenize(text)]
        if language == "code":  # a line is a natural unit too
            ends = sorted({*ends, *(match.start() for match in re.finditer(r"\n", text))})
    ends = [end for end in ends if 0 < end < len(text)]
    return [*ends, len(text)]


@cache
def _punkt():
    """nltk's Punkt (Kiss & Strunk 2006) with its English parameters, read from a package without pickles."""
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    from punkt.data import english

    parameters = PunktParameters()
    parameters.abbrev_types = set(english.ABBREV_TYPES)
    parameters.collocations = set(english.COLLOCATIONS)
    parameters.sent_starters = set(english.SENT_STARTERS)
    parameters.ortho_context.update(english.ORTHO_CONTEXT)
    return PunktSentenceTokenizer(parameters)


def token_lengths(ends: Sequence[int], token_starts: Sequence[int], capacity: int) -> list[int]:
    """Tokens per sentence of a document that was encoded as a whole.

    ends: character offset of each sentence's end; token_starts: character offset of each token.
    A sentence end inside a token is no place to cut: its sentence joins the next. A sentence of
    more than ``capacity`` tokens is cut into even pieces.

    >>> token_lengths([3, 6], [0, 2, 3, 5], capacity=8)
    [2, 2]
    """
    cuts, token = [], 0
    edges = set(token_starts)
    for end in ends[:-1]:
        if end in edges:
            while token < len(token_starts) and token_starts[token] < end:
                token += 1
            cuts.append(token)
    lengths = []
    for start, stop in zip([0, *cuts], [*cuts, len(token_starts)], strict=True):
        pieces = -(-(stop - start) // capacity)
        lengths += [(stop - start + piece) // pieces for piece in range(pieces)]
    return lengths


def pack_sentences(lengths: Sequence[int], capacity: int) -> list[tuple[int, int]]:
    """Cover all sentences with few blocks of at most ``capacity`` tokens.

    lengths: tokens per sentence, in reading order.
    Returns half-open (start, stop) sentence spans. A block that ends early also
    reaches back over used sentences: context instead of padding.

    >>> pack_sentences([700, 300, 500], capacity=1024)
    [(0, 2), (1, 3)]

    Raises ValueError on a sentence over ``capacity``: cut it before packing.
    """
    if lengths and max(lengths) > capacity:
        raise ValueError(f"a sentence has {max(lengths)} tokens, a sample holds {capacity}; cut it before packing")
    spans, start = [], 0
    while start < len(lengths):
        stop, used = start, 0
        while stop < len(lengths) and used + lengths[stop] <= capacity:
            used += lengths[stop]
            stop += 1
        first = start
        while first > 0 and used + lengths[first - 1] <= capacity:
            first -= 1
            used += lengths[first]
        spans.append((first, stop))
        start = stop
    return spans
