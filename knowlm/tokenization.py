"""Text to ids and back for corpora: SentencePiece and Hugging Face tokenizers behind one face, without torch."""

import hashlib
import json
from pathlib import Path
from typing import Any

from knowlm.files import read_json, require_file


class CorpusTokenizer:
    """Encodes plain text; a special token written in the text stays text.

    path: a SentencePiece ``tokenizer.model``, a ``tokenizer.json``, or a folder with one of them
    (the ``tokenizer.json`` is taken first).
    Attributes: ``bos``, ``eos`` (ids), ``vocab_size`` (pieces), ``sha256`` of the file.
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
        self._backend: Any = None
        self.sha256 = hashlib.sha256(require_file(path).read_bytes()).hexdigest()
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
        self.bos, self.eos = (backend.token_to_id(name) for name in names)
        if self.bos is None or self.eos is None:
            raise ValueError(f"{path}: no beginning- or end-of-text token; name them in {settings}")
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

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of ``text`` without BOS and EOS, and the character offset at which each token begins."""
        if self._is_sentencepiece:
            pieces = self._backend.encode(text, out_type="immutable_proto").pieces
            return [piece.id for piece in pieces], [piece.begin for piece in pieces]
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids`` without BOS and EOS."""
        inner = [i for i in ids if i not in (self.bos, self.eos)]
        return self._backend.decode(inner)


def parse_document(line: str, fields: list[str] | None = None) -> str:
    """The text of one corpus line: plain text, or a JSON object's known fields joined by line breaks.

    The field sets of the published sources are tried in turn; ``fields`` names others.

    >>> parse_document('{"title": "静夜思", "content": "床前明月光"}')
    '静夜思\\n床前明月光'
    """
    if not line.lstrip().startswith("{"):
        return line.rstrip("\r\n")
    record = json.loads(line)
    for wanted in (
        [fields]
        if fields
        else [
            ["title", "content"],
            ["title", "text"],
            ["text"],
            ["content"],
            ["instruction", "input", "output"],
            ["instruction", "output"],
            ["input", "output"],
        ]
    ):
        if all(isinstance(record.get(name), str) for name in wanted):
            return "\n".join(record[name] for name in wanted if record[name])
    raise ValueError(f"none of the known text fields in {sorted(record)}; name them with --text_fields")
