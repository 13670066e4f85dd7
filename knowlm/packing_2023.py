"""Samples as the release of 2023 packed them, byte for byte: every sentence is encoded on its own.

A word-boundary piece then stands before every sentence, as in no natural text, and what lies between sentences may be
lost. It is here for adding to corpora of that time.
"""

from collections.abc import Iterator

import numpy as np

from knowlm.packing import Sample, pack_sentences
from knowlm.tokenization import CorpusTokenizer, byte_offsets


def pack_as_in_2023(
    text: str,
    spans: list[tuple[int, int]],
    encoded: list[np.ndarray],
    tokenizer: CorpusTokenizer,
    chinese: bool,
    capacity: int,
) -> Iterator[Sample]:
    """The samples of a document.

    spans: (start, stop) of its sentences, in characters; encoded: ids (tokens,) of each; chinese: how a sentence of
    more than ``capacity`` tokens is cut, by characters or else by tokens.
    """
    pieces: list[Sample] = []
    edges = byte_offsets(text, np.array(spans)).tolist()
    for number, ((start, stop), ids, (first, last)) in enumerate(zip(spans, encoded, edges, strict=True)):
        begin, end = [tokenizer.bos] * (number == 0), [tokenizer.eos] * (number == len(spans) - 1)
        whole = Sample(np.array([*begin, *ids, *end], np.uint32), first, last)
        if len(whole.ids) <= capacity:
            pieces.append(whole)
        elif chinese:
            pieces += cut_by_characters(text[start:stop], whole, begin, end, tokenizer, capacity)
        else:
            starts = [first] * len(begin) + (first + tokenizer.token_starts(text[start:stop].encode(), ids)).tolist()
            pieces += cut_by_tokens(whole, [*starts, last, last], capacity)
    done = 0
    for first, stop in pack_sentences([len(piece.ids) for piece in pieces], capacity):
        ids = np.concatenate([piece.ids for piece in pieces[first:stop]])
        repeated = sum(len(piece.ids) for piece in pieces[first:done])
        yield Sample(ids, pieces[first].start, pieces[stop - 1].stop, repeated)
        done = stop


def cut_by_tokens(whole: Sample, starts: list[int], capacity: int) -> Iterator[Sample]:
    """starts: the byte at which each token begins, and that at which the last ends."""
    for first in range(0, len(whole.ids), capacity):
        ids = whole.ids[first : first + capacity]
        yield Sample(ids, starts[first], starts[first + len(ids)])


def cut_by_characters(
    sentence: str, whole: Sample, begin: list, end: list, tokenizer: CorpusTokenizer, capacity: int
) -> Iterator[Sample]:
    """Even pieces, one more where the rest would fill 80 % of a sample. A piece may still have over ``capacity`` tokens
    if others have fewer. The word-boundary piece before all but the first is dropped.
    """
    count = -(-len(whole.ids) // capacity) + (len(whole.ids) % capacity >= 0.8 * capacity)
    size, start = -(-len(sentence) // count), whole.start
    for number in range(count):
        part = sentence[number * size : (number + 1) * size]
        ids = tokenizer.encode_batch([part])[0].tolist()
        before, behind = begin if number == 0 else [], end if number == count - 1 else []
        if not before and ids[:1] == [tokenizer.word_boundary]:
            ids = ids[1:]
        stop = start + len(part.encode())
        yield Sample(np.array([*before, *ids, *behind], np.uint32), start, stop)
        start = stop
