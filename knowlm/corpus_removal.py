"""Take samples out of a packed corpus, and look whether anything of them is left."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from knowlm import __version__
from knowlm.corpus import BLOCK, LEDGER, Corpus, write_counts, write_index
from knowlm.files import replacing, require_space, write_json


def parse_ranges(texts: Sequence[str], flag: str) -> list[tuple[int, int]]:
    """Numbers and ranges as (first, last).

    >>> parse_ranges(["7", "10-12"], "--remove_samples")
    [(7, 7), (10, 12)]
    """
    ranges = []
    for text in texts:
        first, dash, last = text.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise ValueError(f"{flag} {text}: a number or a range such as 10-20 is needed")
        ranges.append((int(first), int(last or first)))
    return ranges


def samples_of_documents(corpus: Corpus, documents: Sequence[str]) -> np.ndarray:
    """Numbers of all samples of documents given as ``FILE:LINE`` or ``FILE:FIRST-LAST``, lines counted from 1.

    Raises ValueError when the corpus has no ledger, knows no such file, or holds nothing of a document.
    """
    if not documents:
        return np.empty(0, int)
    if corpus.ledger is None:
        raise ValueError(f"{corpus.prefix}: has no ledger, so nothing tells its documents; name samples instead")
    paths = [source["path"] for source in corpus.settings["sources"]]
    wanted = np.zeros(len(corpus), bool)
    for document in documents:
        path, _, lines = document.rpartition(":")
        if path not in paths:
            raise ValueError(f"--remove_documents {document}: the corpus was made of {', '.join(paths)}")
        ((first, last),) = parse_ranges([lines], "--remove_documents")
        found = np.isin(corpus.ledger["source"], [i for i, source in enumerate(paths) if source == path])
        found &= (corpus.ledger["document"] >= first) & (corpus.ledger["document"] <= last)
        if not found.any():
            raise ValueError(f"--remove_documents {document}: no sample of {corpus.prefix} comes from there")
        wanted |= found
    return np.flatnonzero(wanted)


def remove_samples(corpus: Corpus, numbers: np.ndarray, new_prefix: str) -> Corpus:
    """Write a corpus without the samples of these numbers; the others stay in order, and in their types."""
    kept = np.ones(len(corpus), bool)
    kept[numbers] = False
    if not kept.any():
        raise ValueError(f"{new_prefix}: no sample would be left")
    require_space(Path(new_prefix).parent, corpus.tokens.nbytes + 40 * len(corpus))
    edges = np.cumsum([0, *corpus.type_counts])
    with replacing(f"{new_prefix}.bin") as partial, partial.open("wb") as tokens:
        for first, stop in runs(kept):
            corpus.tokens[int(corpus.starts[first]) : int(corpus.starts[stop - 1] + corpus.lengths[stop - 1])].tofile(
                tokens
            )
    lengths = corpus.lengths[kept]
    write_index(new_prefix, [lengths])
    write_counts(f"{new_prefix}.dis", [int(kept[a:b].sum()) for a, b in pairwise(edges)])
    Path(f"{new_prefix}.ledger").unlink(missing_ok=True)
    if corpus.ledger is not None:
        with replacing(f"{new_prefix}.ledger") as partial:
            corpus.ledger[kept].astype(LEDGER).tofile(partial)
    made = {"num_samples": len(lengths), "num_tokens": int(lengths.sum(dtype=np.int64)), "knowlm": __version__}
    settings = {key: value for key, value in corpus.settings.items() if key != "counts"}
    removed = {"from": corpus.prefix, "samples": len(numbers)}
    write_json(f"{new_prefix}.json", {"dtype": corpus.tokens.dtype.str, **settings, **made, "removed": removed})
    return Corpus(new_prefix)


def runs(kept: np.ndarray) -> Iterator[tuple[int, int]]:
    """Half-open spans of neighbours that are kept, at most BLOCK long.

    >>> list(runs(np.array([True, True, False, True])))
    [(0, 2), (3, 4)]
    """
    changes = np.flatnonzero(np.diff(kept, prepend=False, append=False)).tolist()
    for first, stop in zip(changes[::2], changes[1::2], strict=True):
        yield from ((start, min(start + BLOCK, stop)) for start in range(first, stop, BLOCK))


def remains(old: Corpus, numbers: np.ndarray, new: Corpus) -> list[int]:
    """Samples of ``new`` that have the tokens of a removed sample of ``old``, BOS and EOS aside."""
    aside = np.array([old.settings.get("bos", -1), old.settings.get("eos", -1)])

    def content(ids: np.ndarray) -> bytes:
        return ids[~np.isin(ids, aside)].tobytes()

    gone = {content(old[number]) for number in numbers.tolist()}
    sizes = np.unique([len(text) // old.tokens.itemsize for text in gone])
    alike = np.flatnonzero(np.isin(new.lengths, np.concatenate([sizes, sizes + 1, sizes + 2])))
    return [number for number in alike.tolist() if content(new[number]) in gone]
