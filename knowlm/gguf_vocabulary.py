"""A model folder's tokenizer as llama.cpp reads it from a GGUF file.

llama.cpp has two kinds of BPE. "llama" joins the two neighbours whose joint piece has the best score, as SentencePiece
does; "gpt2" cuts a text by a rule that it knows by name, then joins bytes in the order of a list of merges.
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gguf import GGUFWriter, TokenType

NEVER = -1e9  # the score of what isn't made by joining: characters, bytes, special tokens
BYTES, WORDS_TO_BYTES, DIGITS = "bytes", "words by GPT-2's rule to bytes", "digits"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {  # steps of a tokenizer.json, and whether it takes whole words before merges: llama.cpp's name
    ((WORDS_TO_BYTES,), False): "gpt-2",
    ((DIGITS, WORDS_TO_BYTES), False): "smollm",
    ((LLAMA3, BYTES), True): "llama-bpe",
    ((LLAMA3, BYTES), False): "smaug-bpe",
    ((LLAMA3.replace("{1,3}", ""), BYTES), False): "qwen2",
}


@dataclass
class Vocabulary:
    """``tokens``, ``types`` and ``scores`` have an entry for each of the ``size`` rows of the embedding."""

    kind: str  # "llama" or "gpt2"
    size: int
    cut: str = "default"  # gpt2: the rule that cuts a text
    merges: list[str] = field(default_factory=list)  # gpt2
    space_first: bool = False  # llama: a text is encoded with a space before it
    special_ids: dict[str, int] = field(default_factory=dict)
    adds: dict[str, bool] = field(default_factory=dict)  # "bos", "eos": whether a text gets it
    chat_template: str | None = None

    def __post_init__(self):
        self.tokens = [f"[PAD{number}]" for number in range(self.size)]
        self.types = [TokenType.UNUSED] * self.size
        self.scores = [NEVER] * self.size

    def place(self, number: int, token: str, type: TokenType, score: float = NEVER) -> None:
        self.tokens[number], self.types[number], self.scores[number] = token, type, score

    @property
    def eos_token(self) -> str:
        return self.tokens[self.special_ids["eos"]]

    def add_to(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model(self.kind)
        writer.add_tokenizer_pre(self.cut)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.kind == "llama":
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space_first)
        else:
            writer.add_token_merges(self.merges)
        for name, number in self.special_ids.items():
            getattr(writer, f"add_{name}_token_id")(number)
        for name, whether in self.adds.items():
            getattr(writer, f"add_add_{name}_token")(whether)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: str | Path, size: int) -> Vocabulary:
    """The tokenizer of a model whose embedding has ``size`` rows; the ``tokenizer.json`` is taken first.

    Rows without a token become unused ones; added tokens without a row are left out, with a line on stderr.
    Raises ValueError naming the folder when there is no tokenizer, or none that llama.cpp can follow.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ValueError(
            f"{folder}: holds neither tokenizer.json nor tokenizer.model; copy the model's tokenizer there"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the library has many
        raise ValueError(
            f"{folder}: its tokenizer doesn't load ({type(error).__name__}); copy its files anew"
        ) from None
    if (folder / "tokenizer.json").is_file():
        vocabulary = from_tokenizer_json(folder, json.loads(tokenizer.backend_tokenizer.to_str()), size)
        ids = tokenizer("a").input_ids
        vocabulary.adds = {"bos": ids[0] == tokenizer.bos_token_id, "eos": ids[-1] == tokenizer.eos_token_id}
    else:
        vocabulary = from_sentencepiece(folder / "tokenizer.model", size)
        settings = tokenizer.init_kwargs  # LLaMA's own code adds BOS; transformers only where it is told to
        vocabulary.adds = {"bos": settings.get("add_bos_token", True), "eos": settings.get("add_eos_token", False)}
    place_added_tokens(vocabulary, tokenizer, folder)
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None and number < size:
            vocabulary.special_ids[name] = number
    if "eos" not in vocabulary.special_ids:
        raise ValueError(f"{folder}: its tokenizer has no end-of-text token; name eos_token in tokenizer_config.json")
    template = tokenizer.chat_template
    vocabulary.chat_template = template.get("default") if isinstance(template, Mapping) else template
    return vocabulary


def from_sentencepiece(file: Path, size: int) -> Vocabulary:
    from google.protobuf.message import DecodeError
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    model = ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError:
        raise ValueError(f"{file}: not a SentencePiece model; copy the model's own, or a tokenizer.json") from None
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise ValueError(f"{file}: not a BPE model as LLaMA's is; llama.cpp can't follow it, so nothing is exported")
    check_size(file, len(model.pieces), size)
    vocabulary = Vocabulary("llama", size, space_first=model.normalizer_spec.add_dummy_prefix)
    for number, piece in enumerate(model.pieces):
        vocabulary.place(number, piece.piece, TokenType(piece.type), piece.score)  # the two number types alike
    return vocabulary


def from_tokenizer_json(folder: Path, content: dict, size: int) -> Vocabulary:
    """content: what a ``tokenizer.json`` holds. Added tokens are left out."""
    model = content["model"]
    if model["type"] != "BPE":
        raise ValueError(f"{folder}: its tokenizer is a {model['type']} model; only BPE ones can be exported")
    added = {token["id"] for token in content["added_tokens"]}
    pieces = {piece: number for piece, number in model["vocab"].items() if number not in added}
    check_size(folder, max(pieces.values()) + 1, size)
    if not model.get("byte_fallback"):
        return byte_level(folder, content, pieces, size)
    steps = [*steps_of(content["normalizer"]), *steps_of(content["pre_tokenizer"])]
    if unknown := {step["type"] for step in steps} - {"Prepend", "Replace", "Metaspace"}:
        raise ValueError(
            f"{folder}: its tokenizer has the step {min(unknown)}, which llama.cpp hasn't; can't export it"
        )
    first = any(step["type"] == "Prepend" or step.get("prepend_scheme", "never") != "never" for step in steps)
    vocabulary = Vocabulary("llama", size, space_first=first)
    scores: dict[str, float] = {}
    for rank, pair in enumerate(model["merges"]):
        scores.setdefault("".join(pair), float(-rank))
    for piece, number in pieces.items():
        is_byte = re.fullmatch("<0x[0-9A-F]{2}>", piece)
        vocabulary.place(number, piece, TokenType.BYTE if is_byte else TokenType.NORMAL, scores.get(piece, NEVER))
    return vocabulary


def byte_level(folder: Path, content: dict, pieces: Mapping[str, int], size: int) -> Vocabulary:
    model = content["model"]
    cut = tuple(name_of(step) for step in steps_of(content["pre_tokenizer"]))
    name = CUTS.get((cut, model.get("ignore_merges", False)))
    normalizers = [step["type"] for step in steps_of(content["normalizer"]) if step["type"] != "NFC"]
    if name is None or normalizers:
        raise ValueError(f"{folder}: its tokenizer cuts text by a rule that this tool can't name to llama.cpp: {cut}")
    vocabulary = Vocabulary("gpt2", size, cut=name, merges=[" ".join(pair) for pair in model["merges"]])
    for piece, number in pieces.items():
        vocabulary.place(number, piece, TokenType.NORMAL)
    return vocabulary


def steps_of(component: dict | None) -> list[dict]:
    """The steps of a normalizer or pre-tokenizer, which is a sequence, one step or none."""
    if component is None:
        return []
    return component.get("normalizers") or component.get("pretokenizers") or [component]


def name_of(step: dict) -> str:
    """A pre-tokenizer's step as CUTS has it."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return WORDS_TO_BYTES if step.get("use_regex", True) else BYTES
        case {"type": "Digits", "individual_digits": True}:
            return DIGITS
        case {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}:
            return rule
    return json.dumps(step)


def check_size(source: Path, needed: int, size: int) -> None:
    if needed > size:
        raise ValueError(
            f"{source}: {needed} tokens, the model's embedding has {size} rows; not this model's tokenizer"
        )


def place_added_tokens(vocabulary: Vocabulary, tokenizer, folder: Path) -> None:
    """llama.cpp matches special tokens in a prompt only where it is told to, the other added tokens always."""
    for number, token in sorted(tokenizer.added_tokens_decoder.items()):
        if number >= vocabulary.size:
            print(f"{folder}: {token.content} is left out: id {number} has no row in the embedding", file=sys.stderr)
        elif vocabulary.kind == "llama" and number == tokenizer.unk_token_id:
            vocabulary.place(number, token.content, TokenType.UNKNOWN)
        else:
            vocabulary.place(number, token.content, TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
