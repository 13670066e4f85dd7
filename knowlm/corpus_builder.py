"""From documents to samples: encode as a whole, cut at ends of sentences, pack."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from knowlm.corpus import LEDGER
from knowlm.packing import guess_language, pack_sentences, sentence_ends, token_lengths
from knowlm.sources import Chunk, parse_document
from knowlm.tokenization import CorpusTokenizer, byte_offsets

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass
class Recipe:
    """How documents become samples; a corpus depends on this, its tokenizer and its sources alone."""

    language: str = "english"  # or chinese, code, auto
    do_split_sentences: bool = False
    do_keep_newlines: bool = False
    seq_length: int = 1024
    overlap: bool = True
    min_sample_tokens: int = 20
    num_per_doc: int = -1
    text_fields: list[str] = field(default_factory=list)
    text_template: str = ""


@dataclass
class EncodedChunk:
    chunk: Chunk  # without its data
    ids: np.ndarray  # (tokens,) of all samples
    lengths: list[int]  # of each sample
    ledger: np.ndarray  # (samples,)
    rejected: list[dict]
    counts: Counter


def encode_chunk(chunk: Chunk, tokenizer: CorpusTokenizer, recipe: Recipe) -> EncodedChunk:
    """The samples of a chunk's documents, in order."""
    rejected: list[dict] = []
    documents = [(number, text) for number, text in read_documents(chunk, recipe, rejected) if text.strip()]
    samples, lengths, origins = [], [], []
    counts = Counter({"documents": len(documents), "rejected lines": len(rejected)})
    begin, end = np.array([tokenizer.bos], np.uint32), np.array([tokenizer.eos], np.uint32)
    encoded = tokenizer.encode_batch([text for _, text in documents])
    for (number, text), inner in zip(documents, encoded, strict=True):
        ids, size = np.concatenate([begin, inner, end]), len(text.encode())
        starts, spans = np.array([0]), [(0, len(ids))]
        if len(ids) > recipe.seq_length:
            starts = np.pad(tokenizer.token_starts(text, inner), 1)
            starts[-1] = size
            spans = cut_document(text, starts, recipe)
        counts["tokens of documents"] += len(ids)
        counts["tokens with repetition"] += sum(stop - start for start, stop in spans)
        for start, stop in spans if recipe.num_per_doc < 0 else spans[: recipe.num_per_doc]:
            if stop - start <= recipe.min_sample_tokens:
                counts["short samples"] += 1
                continue
            samples.append(ids[start:stop])
            lengths.append(stop - start)
            origins.append((chunk.source, number, starts[start], starts[stop] if stop < len(ids) else size))
    counts["samples"], counts["tokens"] = len(samples), sum(lengths)
    ids = np.concatenate(samples) if samples else np.empty(0, np.uint32)
    chunk.data = b""  # it needn't travel back
    return EncodedChunk(chunk, ids, lengths, np.array(origins, LEDGER), rejected, counts)


def read_documents(chunk: Chunk, recipe: Recipe, rejected: list[dict]) -> Iterator[tuple[int, str]]:
    """(line number, text) of every line that isn't blank; what can't be read goes to ``rejected``."""
    data = chunk.data.removeprefix(BYTE_ORDER_MARK) if chunk.first_line == 1 else chunk.data
    for number, line in enumerate(data.split(b"\n"), chunk.first_line):
        line = line.rstrip(b"\r")
        if not line.strip():
            continue
        try:
            text = parse_document(line.decode(), chunk.is_json, recipe.text_fields, recipe.text_template)
            text.encode()  # half a surrogate pair can't be
        except ValueError as error:  # json and unicode errors are ValueErrors
            rejected.append({"line": number, "reason": str(error), "text": line[:200].decode(errors="replace")})
            continue
        if not recipe.do_keep_newlines:
            text = re.sub(r"\s*\n\s*", "" if language_of(text, recipe) == "chinese" else " ", text)
        yield number, text


def language_of(text: str, recipe: Recipe) -> str:
    return guess_language(text) if recipe.language == "auto" else recipe.language


def cut_document(text: str, starts: np.ndarray, recipe: Recipe) -> list[tuple[int, int]]:
    """(first, last + 1) token of each sample. starts: byte offset of each token, BOS and EOS among them."""
    ends = sentence_ends(text, language_of(text, recipe)) if recipe.do_split_sentences else [len(text)]
    lengths = token_lengths(byte_offsets(text, np.array(ends)), starts, recipe.seq_length)
    edges = [0, *np.cumsum(lengths).tolist()]
    return [(edges[first], edges[stop]) for first, stop in pack_sentences(lengths, recipe.seq_length, recipe.overlap)]
