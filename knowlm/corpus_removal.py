"""Write a corpus without some of its samples, and prove that nothing of them is left."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np

from knowlm import __version__
from knowlm.copies import contents, find_copies, in_groups, places_between
from knowlm.corpus import BLOCK, Corpus, publish, unfinished, write_counts, write_index
from knowlm.files import replacing, require_file, require_space, write_json


def parse_ranges(texts: Iterable[str], flag: str) -> Iterator[tuple[int, int]]:
    """Numbers and ranges as (first, last).

    >>> list(parse_ranges(["7", "10-12"], "--remove_samples"))
    [(7, 7), (10, 12)]
    """
    for text in texts:
        first, dash, last = text.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise ValueError(f"{flag} {text}: a number or a range such as 10-20 is needed")
        yield int(first), int(last or first)


def samples_of_numbers(corpus: Corpus, texts: Sequence[str], flag: str) -> np.ndarray:
    """Numbers of samples given as ``7``, ``10-12`` or ``@FILE`` with such lines."""
    wanted = np.zeros(len(corpus), bool)
    for text in texts:
        with open(require_file(text[1:])) if text.startswith("@") else nullcontext([text]) as lines:
            for first, last in parse_ranges((line.strip() for line in lines if not line.isspace()), flag):
                if last >= len(corpus):
                    raise ValueError(f"{flag} {text}: {corpus.prefix} has samples 0 to {len(corpus) - 1}, not {last}")
                wanted[first : last + 1] = True
    return np.flatnonzero(wanted)


def samples_of_documents(corpus: Corpus, documents: Sequence[str], flag: str) -> np.ndarray:
    """Numbers of all samples of documents given as ``FILE:LINE`` or ``FILE:FIRST-LAST``, lines counted from 1.

    Raises ValueError when the corpus has no ledger, knows no such file, or holds nothing of a document.
    """
    wanted = np.zeros(len(corpus), bool)
    for document in documents:
        found = is_of_document(corpus, document, flag)
        if not found.any():
            raise ValueError(f"{flag} {document}: no sample of {corpus.prefix} comes from there")
        wanted |= found
    return np.flatnonzero(wanted)


def is_of_document(corpus: Corpus, document: str, flag: str) -> np.ndarray:
    """(samples,) of bool."""
    if corpus.ledger is None:
        raise ValueError(f"{corpus.prefix}: has no ledger, so nothing tells its documents; name samples instead")
    paths = [source["path"] for source in corpus.settings["sources"]]
    path, _, lines = document.rpartition(":")
    if path not in paths:
        raise ValueError(f"{flag} {document}: the corpus was made of {', '.join(paths)}")
    ((first, last),) = parse_ranges([lines], flag)
    found = np.isin(corpus.ledger["source"], [i for i, source in enumerate(paths) if source == path])
    return found & (corpus.ledger["document"] >= first) & (corpus.ledger["document"] <= last)


def remove_samples(
    corpus: Corpus, numbers: np.ndarray, documents: Sequence[str], new_prefix: str, width: int, copies_too: bool
) -> tuple[Corpus, np.ndarray]:
    """Write a corpus without the samples of these numbers and documents; the others stay in order and in their types.

    Before its files take their names it is searched: no sample may hold ``width`` neighbouring tokens of a removed one.
    copies_too: remove the samples that do, too. Returns the corpus and the numbers of these.
    """
    numbers = np.union1d(numbers, samples_of_documents(corpus, documents, "--remove_documents"))
    require_space(Path(new_prefix).parent, corpus.tokens.nbytes + 40 * len(corpus))
    kept = np.ones(len(corpus), bool)
    kept[numbers] = False
    copies = np.empty(0, int)
    while True:
        if not kept.any():
            raise ValueError(f"{new_prefix}: no sample would be left")
        with unfinished(new_prefix) as prefix:
            new = write_without(corpus, kept, prefix)
            check_kept(corpus, kept, new, documents)
            found, sizes = find_copies(corpus, numbers, new, width)
            if not len(found):
                publish(prefix, new_prefix)
                return Corpus(new_prefix), copies
        found = np.flatnonzero(kept)[found]
        if not copies_too:
            raise ValueError(
                f"{new_prefix}: not written, as {len(found)} other samples hold {sizes.sum()} tokens of removed ones: "
                f"{', '.join(described(corpus, found[:10].tolist()))}{' …' if len(found) > 10 else ''}; "
                "remove them too, all with --remove_copies"
            )
        kept[found] = False
        copies = np.union1d(copies, found)


def described(corpus: Corpus, numbers: Sequence[int]) -> Iterator[str]:
    for number in numbers:
        origin = corpus.origin(number)
        yield f"{number} ({origin[0]}:{origin[1]})" if origin else str(number)


def write_without(corpus: Corpus, kept: np.ndarray, new_prefix: str) -> Corpus:
    """kept: (samples,) of bool."""
    for suffix, blocks in contents_of(corpus, kept).items():
        with replacing(new_prefix + suffix) as partial, partial.open("wb") as file:
            file.writelines(blocks)
    lengths = corpus.lengths[kept]
    write_index(new_prefix, [lengths])
    edges = np.cumsum([0, *corpus.type_counts])
    write_counts(f"{new_prefix}.dis", [int(kept[a:b].sum()) for a, b in pairwise(edges)])
    if {"bos", "eos"} <= corpus.settings.keys():
        write_counts(f"{new_prefix}.tmp", count_edges(corpus, kept))
    made = {"num_samples": len(lengths), "num_tokens": int(lengths.sum(dtype=np.int64)), "knowlm": __version__}
    settings = {key: value for key, value in corpus.settings.items() if key not in ("counts", "parts")}
    removed = {"from": corpus.prefix, "samples": len(kept) - len(lengths)}
    write_json(f"{new_prefix}.json", {"dtype": corpus.tokens.dtype.str, **settings, **made, "removed": removed})
    return Corpus(new_prefix)


def contents_of(corpus: Corpus, kept: np.ndarray) -> dict[str, Iterator[bytes]]:
    """What the kept samples give to the large files, block by block."""
    files = {".bin": tokens_of(corpus, kept)}
    ledger = corpus.ledger
    if ledger is not None:
        files[".ledger"] = (ledger[numbers].tobytes() for numbers in blocks_of(kept))
    return files


def blocks_of(kept: np.ndarray) -> Iterator[np.ndarray]:
    """Numbers of the samples that are kept, not many at once."""
    for first in range(0, len(kept), BLOCK):
        yield first + np.flatnonzero(kept[first : first + BLOCK])


def tokens_of(corpus: Corpus, kept: np.ndarray) -> Iterator[bytes]:
    for numbers in blocks_of(kept):
        starts = corpus.starts[numbers].astype(np.int64)
        for begins, ends in in_groups(starts, starts + corpus.lengths[numbers], BLOCK):
            yield corpus.tokens[places_between(begins, ends)].tobytes()


def count_edges(corpus: Corpus, kept: np.ndarray) -> list[int]:
    """Samples with BOS only, EOS only, neither, both."""
    counts = np.zeros(4, int)
    for numbers in blocks_of(kept):
        begins, ends = contents(corpus, numbers)
        starts = corpus.starts[numbers].astype(np.int64)
        bos, eos = begins > starts, ends < starts + corpus.lengths[numbers]
        counts += [kind.sum() for kind in (bos & ~eos, ~bos & eos, ~bos & ~eos, bos & eos)]
    return counts.tolist()


def check_kept(corpus: Corpus, kept: np.ndarray, new: Corpus, documents: Sequence[str]) -> None:
    """Read the written files again: they hold the kept samples as they were, and none of the documents."""
    is_same = np.array_equal(new.lengths, corpus.lengths[kept])
    for suffix, blocks in contents_of(corpus, kept).items():
        expected = hashlib.sha256()
        for block in blocks:
            expected.update(block)
        with open(new.prefix + suffix, "rb") as file:
            is_same &= hashlib.file_digest(file, "sha256").digest() == expected.digest()
    if not is_same:
        raise OSError(f"{new.prefix}: what was written isn't what the disk gives back; look at the disk and run again")
    for document in documents:
        assert not is_of_document(new, document, "--remove_documents").any()


def ranges_of(mask: np.ndarray) -> Iterator[list[int]]:
    """Half-open spans of neighbours that are true.

    >>> list(ranges_of(np.array([True, True, False, True])))
    [[0, 2], [3, 4]]
    """
    changes = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    for first in range(0, len(changes), 2 * BLOCK):
        yield from changes[first : first + 2 * BLOCK].reshape(-1, 2).tolist()
