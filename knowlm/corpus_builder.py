"""From documents to samples: encode as a whole, cut at ends of sentences, pack; or sentence by sentence as in 2023."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from knowlm.corpus import LEDGER, token_dtype
from knowlm.packing import Sample, pack_document
from knowlm.packing_2023 import pack_as_in_2023
from knowlm.sentences import HEAD, guess_language, sentences_of_2023
from knowlm.sources import Chunk, parse_document
from knowlm.tokenization import CorpusTokenizer

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LONG = 4 << 20  # bytes; longer documents are encoded in parts


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
    tokenize: str = "document"  # or sentence

    def language_of(self, text: str) -> str:
        return guess_language(text) if self.language == "auto" else self.language


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
    # as bytes: a text with one emoji takes four bytes a character as a str
    documents = [(line, text.encode()) for line, text in read_documents(chunk, recipe, rejected) if text.strip()]
    counts = Counter({"documents": len(documents), "rejected lines": len(rejected)})
    pack = pack_sentence_by_sentence if recipe.tokenize == "sentence" else pack_wholes
    dtype, kept, lengths, origins = token_dtype(tokenizer.vocab_size), bytearray(), [], []
    packed = pack([content for _, content in documents], tokenizer, recipe)
    for (line, _), samples in zip(documents, packed, strict=True):
        for number, sample in enumerate(samples):
            counts["tokens of documents"] += len(sample.ids) - sample.repeated
            counts["repeated tokens"] += sample.repeated
            if 0 <= recipe.num_per_doc <= number:
                continue
            if len(sample.ids) <= recipe.min_sample_tokens:
                counts["short samples"] += 1
                continue
            kept += sample.ids.astype(dtype).data
            lengths.append(len(sample.ids))
            origins.append((chunk.source, line, sample.start, sample.stop))
    counts["samples"], counts["tokens"] = len(lengths), sum(lengths)
    return EncodedChunk(chunk, np.frombuffer(kept, dtype), lengths, np.array(origins, LEDGER), rejected, counts)


def read_documents(chunk: Chunk, recipe: Recipe, rejected: list[dict]) -> Iterator[tuple[int, str]]:
    """(line number, text) of every line that isn't blank; what can't be read goes to ``rejected``. Takes the chunk's
    data, so that they aren't in memory twice.
    """
    lines = (chunk.data.removeprefix(BYTE_ORDER_MARK) if chunk.first_line == 1 else chunk.data).split(b"\n")
    chunk.data = b""
    for number, line in enumerate(lines, chunk.first_line):
        line = line.rstrip(b"\r")
        if not line.strip():
            continue
        try:
            text = parse_document(line, chunk.is_json, recipe.text_fields, recipe.text_template)
            text.encode()  # half a surrogate pair can't be
        except ValueError as error:  # json and unicode errors are ValueErrors
            rejected.append({"line": number, "reason": str(error), "text": line[:200].decode(errors="replace")})
            continue
        if recipe.tokenize == "sentence":
            if not chunk.is_json and number < chunk.first_line + len(lines) - 1:
                text += "\n"  # belonged to the document in 2023
        elif not recipe.do_keep_newlines:
            text = re.sub(r"\s*\n\s*", "" if recipe.language_of(text) == "chinese" else " ", text)
        yield number, text


def pack_wholes(contents: Sequence[bytes], tokenizer: CorpusTokenizer, recipe: Recipe) -> Iterator[Iterable[Sample]]:
    """The samples of each document, encoded as a whole. contents: texts in UTF-8."""
    encoded = iter(tokenizer.encode_batch([content for content in contents if len(content) <= LONG], edges=True))
    for content in contents:
        if len(content) > LONG:
            parts = tokenizer.encode_parts(content)
        else:
            ids = next(encoded)
            if len(ids) <= recipe.seq_length:
                yield [Sample(ids, 0, len(content))]
                continue
            starts = np.pad(tokenizer.token_starts(content, ids[1:-1]), 1)
            starts[-1] = len(content)
            parts = iter([(ids, starts)])
        head = content[: 4 * HEAD].decode(errors="ignore")  # characters have up to four bytes
        language = recipe.language_of(head) if recipe.do_split_sentences else ""
        yield pack_document(parts, content, language, recipe.seq_length, recipe.overlap)


def pack_sentence_by_sentence(
    contents: Sequence[bytes], tokenizer: CorpusTokenizer, recipe: Recipe
) -> Iterator[Iterable[Sample]]:
    """The samples of each document as in 2023. contents: texts in UTF-8."""
    texts = [content.decode() for content in contents]
    languages = [recipe.language_of(text) for text in texts]
    split = [
        sentences_of_2023(text, language, recipe.do_keep_newlines) if recipe.do_split_sentences else [(0, len(text))]
        for text, language in zip(texts, languages, strict=True)
    ]
    sentences = [text[start:stop] for text, spans in zip(texts, split, strict=True) for start, stop in spans]
    encoded = iter(tokenizer.encode_batch(sentences))
    for text, language, spans in zip(texts, languages, split, strict=True):
        ids = [next(encoded) for _ in spans]
        yield pack_as_in_2023(text, spans, ids, tokenizer, language == "chinese", recipe.seq_length)
