"""Text to ids and back for corpora: SentencePiece and Hugging Face tokenizers behind one face, without torch."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from knowlm.files import read_json, require_file

SPACE = "▁"  # how SentencePiece writes a space
PART = 1 << 20  # bytes of a long text that are encoded at once
SHARED = 1 << 14  # bytes that two neighbouring parts have in common
ALIKE = 16  # tokens on both sides of a joint that both parts must agree on

Tokens = tuple[np.ndarray, np.ndarray]  # ids, and the byte of the text at which each begins, both (tokens,)
# What a fast engine must encode as the slow one does before it is trusted.
TRIAL = (
    "床前明月光，\n 疑是<s>地上霜</s>。  “两个  空格”\t😀é\u00a0ﬁ ﷺ \x00\r\n",
    "  Dr. Li's café cost $3.50 (i.e. 2%)!!! <unk> https://example.org/a_b?c=1&d=e\n\n\n\tEND.",
    "def f(x: int) -> dict[str, int]:\n    return {'a': x ** 2, \"b\": 0xFF}  # über\n\n\nclass A:\n\t\tpass\n",
    "12345678901234567890 aaaaaaaaaaaaaaaaaaaaaaaa ……——《》 한국어 العربية עברית ไทย ' ▁",
)


class CorpusTokenizer:
    """Encodes plain text; a special token written in the text stays text.

    path: a SentencePiece ``tokenizer.model``, a ``tokenizer.json``, or a folder with one of them
    (the ``tokenizer.json`` is taken first).
    Attributes: ``bos``, ``eos`` (ids), ``vocab_size`` (pieces), ``sha256`` of the file; ``engine``, the library that
    encodes: gigatoken if it gives the same ids as the tokenizer's own library on a trial, else that one.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        if not path.exists():
            raise ValueError(f"{path}: no such tokenizer; name a tokenizer.model, a tokenizer.json or a model's folder")
        if path.is_dir():
            found = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
            if not found:
                raise ValueError(f"{path}: holds neither tokenizer.json nor tokenizer.model; name the tokenizer's file")
            path = found[0]
        self._path = require_file(path)
        self._backend: Any = None
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.suffix == ".json":
            self._load_json(path)
        else:
            self._load_sentencepiece(path)

    def _load_json(self, path: Path) -> None:
        import tokenizers

        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path}: not a tokenizer.json ({error})") from None
        backend.encode_special_tokens = True
        settings = path.with_name("tokenizer_config.json")
        special = read_json(settings) if settings.is_file() else {}
        names = []
        for key, usual in (("bos_token", "<s>"), ("eos_token", "</s>")):
            token = special.get(key) or usual
            names.append(token["content"] if isinstance(token, dict) else token)
        bos, eos = (backend.token_to_id(name) for name in names)
        if bos is None or eos is None:
            raise ValueError(f"{path}: no beginning- or end-of-text token; name them in {settings}")
        self.bos, self.eos = bos, eos
        self.vocab_size = backend.get_vocab_size()
        self._backend, self._is_sentencepiece = backend, False

    def _load_sentencepiece(self, path: Path) -> None:
        import sentencepiece

        backend = sentencepiece.SentencePieceProcessor()
        try:
            backend.Load(str(path))
        except RuntimeError:
            raise ValueError(f"{path}: not a SentencePiece model") from None
        self.bos, self.eos, self.vocab_size = backend.bos_id(), backend.eos_id(), backend.vocab_size()
        if min(self.bos, self.eos) < 0:
            raise ValueError(f"{path}: defines no beginning- or end-of-text token")
        self._backend, self._is_sentencepiece = backend, True

    @cached_property
    def _fast(self) -> "FastEncoder | None":
        try:
            fast = FastEncoder(self._path)
            right = [ids.tolist() for ids in fast.encode_batch(TRIAL)] == [self.encode(text)[0] for text in TRIAL]
        except (ImportError, RuntimeError, ValueError):  # not installed, or it doesn't know such a tokenizer
            return None
        return fast if right else None

    @property
    def engine(self) -> str:
        return "gigatoken" if self._fast else "sentencepiece" if self._is_sentencepiece else "tokenizers"

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of ``text`` without BOS and EOS, and the character offset at which each token begins."""
        if self._is_sentencepiece:
            encoded = self._backend.encode(text, return_type="offset_mapping")
            return encoded["ids"], [start for start, _ in encoded["offsets"]]
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def encode_batch(self, texts: Sequence[str] | Sequence[bytes], edges: bool = False) -> list[np.ndarray]:
        """Ids (tokens,) of each text, a str or its UTF-8; with ``edges`` between BOS and EOS."""
        before, behind = ([self.bos], [self.eos]) if edges else ([], [])
        if not self._fast or not texts:
            decoded = (text if isinstance(text, str) else text.decode() for text in texts)
            return [np.array([*before, *self.encode(text)[0], *behind], np.uint32) for text in decoded]
        return self._fast.encode_batch(texts, before, behind)

    def encode_parts(self, content: bytes, part: int = PART, shared: int = SHARED) -> Iterator[Tokens]:
        """The tokens of a UTF-8 text of any length, part by part, between BOS and EOS.

        Parts that share some text are joined within it, amid tokens that both have. A sequence of BPE tokens is the
        encoding of its text if each two neighbours are that of theirs (https://github.com/github/rust-gems, crate bpe),
        so the joined ids are those of the whole.
        """
        yield np.array([self.bos], np.uint32), np.array([0])
        begin, stop = 0, character_start(content, min(part, len(content)))
        ids, starts = self._encode_span(content, begin, stop)
        while stop < len(content):
            begin_next = character_start(content, stop - shared)
            stop_next = character_start(content, min(stop + part, len(content)))
            next_ids, next_starts = self._encode_span(content, begin_next, stop_next)
            joint = find_joint((ids, starts), (next_ids, next_starts), stop - 3 * shared // 4, stop - shared // 4)
            if joint:
                yield ids[: joint[0]], starts[: joint[0]]
                begin, ids, starts = begin_next, next_ids[joint[1] :], next_starts[joint[1] :]
            else:  # nothing like a text; take it together
                done = int(starts[0]) if begin else -1
                ids, starts = self._encode_span(content, begin, stop_next)
                ids, starts = ids[starts >= done], starts[starts >= done]
            stop = stop_next
        yield ids, starts
        yield np.array([self.eos], np.uint32), np.array([len(content)])

    def _encode_span(self, content: bytes, begin: int, stop: int) -> Tokens:
        span = content[begin:stop]
        ids = self.encode_batch([span])[0]
        return ids, self.token_starts(span, ids).astype(np.int64) + begin

    @cached_property
    def word_boundary(self) -> int | None:
        """Id of the piece that stands for a space alone."""
        return (self._backend.piece_to_id if self._is_sentencepiece else self._backend.token_to_id)(SPACE)

    def token_starts(self, content: bytes, ids: np.ndarray) -> np.ndarray:
        """The byte of a UTF-8 text at which each of its tokens, (tokens,), begins; where a character takes several
        tokens, its first byte for all of them.
        """
        if self._fast and len(ids):
            starts = np.zeros(len(ids) + 1, np.int64 if len(content) >> 30 else np.int32)
            np.cumsum(self._fast.token_bytes[ids], out=starts[1:])
            np.subtract(starts, self._fast.prefix, out=starts)
            if starts[-1] == len(content):
                starts = np.maximum(starts[:-1], 0, out=starts[:-1])
                return starts if content.isascii() else at_characters(starts, content)
        text = content.decode()
        return byte_offsets(text, np.array(self.encode(text)[1], np.int64))  # they don't add up: it holds a ▁

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` without BOS and EOS; the space that begins an inner piece of a document stays."""
        inner = [i for i in ids if i not in (self.bos, self.eos)]
        text = self._backend.decode(inner)
        if not inner or ids[0] == self.bos:
            return text
        piece = (self._backend.id_to_piece if self._is_sentencepiece else self._backend.id_to_token)(inner[0])
        return f" {text}" if piece.startswith(SPACE) else text


class FastEncoder:
    """gigatoken, loaded without special tokens. ``prefix``: bytes that it puts before a text, 0 or 1."""

    def __init__(self, path: Path):
        import gigatoken
        from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

        if path.suffix == ".json":
            settings = orjson.loads(path.read_bytes())
        else:
            settings = orjson.loads(sentencepiece_to_tokenizer_json(path.read_bytes()))
        settings["added_tokens"] = [token for token in settings.get("added_tokens", ()) if not token["special"]]
        self._tokenizer = gigatoken.Tokenizer.from_json(orjson.dumps(settings).decode())
        vocabulary = self._tokenizer.vocab
        space = SPACE.encode() if settings["model"].get("byte_fallback") else b" "
        self.token_bytes = np.zeros(max(vocabulary) + 1, np.uint16)
        for token, content in vocabulary.items():
            self.token_bytes[token] = len(content.replace(space, b" "))
        self.prefix = int(self.token_bytes[self.encode_batch(["a"])[0]].sum()) - 1

    def encode_batch(
        self, texts: Sequence[str] | Sequence[bytes], before: Sequence[int] = (), behind: Sequence[int] = ()
    ):
        """Ids (tokens,) of each text, with those ``before`` and ``behind``."""
        layout = self._tokenizer.encode_batch(list(texts), parallel=False).layout
        ids, offsets = np.asarray(layout.content.data), np.asarray(layout.offsets.data)
        if before or behind:
            ids = np.insert(ids, np.repeat(offsets, 2)[1:-1], np.tile([*before, *behind], len(texts)))
            offsets = offsets + 2 * np.arange(len(offsets))
        edges = offsets.tolist()
        return [ids[start:stop] for start, stop in pairwise(edges)]


def find_joint(one: Tokens, other: Tokens, first: int, last: int) -> tuple[int, int] | None:
    """Where two encodings of a text can be joined between the bytes ``first`` and ``last``: a token of each, that begin
    together amid tokens that are the same in both.
    """
    (ids, starts), (other_ids, other_starts) = one, other
    here, there = (e[e.searchsorted(first) : e.searchsorted(last, "right")] for e in (starts, other_starts))
    common = np.intersect1d(here, there)
    for edge in common[len(common) // 2 :][:SHARED]:
        i, j = int(starts.searchsorted(edge)), int(other_starts.searchsorted(edge))
        near, other_near = ids[max(0, i - ALIKE) : i + ALIKE], other_ids[max(0, j - ALIKE) : j + ALIKE]
        if len(near) == 2 * ALIKE and np.array_equal(near, other_near):
            return i, j
    return None


def character_start(content: bytes, position: int) -> int:
    """The byte at which the character of the byte at ``position`` begins in the UTF-8 ``content``."""
    while position < len(content) and content[position] & 0xC0 == 0x80:
        position -= 1
    return position


def at_characters(starts: np.ndarray, content: bytes) -> np.ndarray:
    """Byte offsets in the UTF-8 ``content``, those inside a character moved to where it begins."""
    encoded = np.frombuffer(content, np.uint8)
    inside = np.flatnonzero(encoded[starts] & 0xC0 == 0x80)
    while len(inside):
        starts[inside] -= 1
        inside = inside[encoded[starts[inside]] & 0xC0 == 0x80]
    return starts


def byte_offsets(text: str, characters: np.ndarray) -> np.ndarray:
    """Where characters begin in the UTF-8 of ``text``; ``len(text)`` is its end.

    >>> byte_offsets("a你好", np.array([1, 2, 3])).tolist()
    [1, 4, 7]
    """
    if text.isascii():
        return characters
    encoded = np.frombuffer(text.encode(), np.uint8)
    return np.append(np.flatnonzero(encoded & 0xC0 != 0x80), len(encoded))[characters]
