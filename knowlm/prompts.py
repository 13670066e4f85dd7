"""The one prompt template reader: tuning, generation and serving build the same prompt."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from knowlm.files import read_json

TEMPLATES = Path(__file__).parent / "templates"
GUARD = "\x02"  # a character that no piece of a vocabulary holds beside others


class Prompt(str):
    """A prompt, or a prompt with its answer, that knows what its template wrote: (start, stop) of characters."""

    written: Sequence[tuple[int, int]]

    def __new__(cls, text: str, written: Sequence[tuple[int, int]]):
        prompt = super().__new__(cls, text)
        prompt.written = written
        return prompt


class Prompter:
    """Builds prompts from a template file with ``prompt_input``, ``prompt_no_input`` and ``response_split``.

    template: the name of a file in ``knowlm/templates`` or a path to one elsewhere.
    """

    def __init__(self, template: str = "alpaca"):
        shipped = TEMPLATES / f"{template}.json"
        path = shipped if shipped.is_file() else Path(template)
        self.template = read_json(path)
        missing = {"prompt_input", "prompt_no_input", "response_split"} - self.template.keys()
        if missing:
            raise ValueError(f"{path}: lacks {', '.join(sorted(missing))}; see {TEMPLATES / 'alpaca.json'}")

    def prompt(self, instruction: str, input: str | None = None) -> Prompt:
        """The prompt up to where the answer begins.

        >>> Prompter().prompt("Say hello.").endswith("### Response:\\n")
        True
        """
        template = self.template["prompt_input" if input else "prompt_no_input"]
        values = {"{instruction}": instruction, "{input}": input or ""}
        text, written = "", []
        for part in re.split(r"(\{instruction\}|\{input\})", template):
            if part not in values:
                written.append((len(text), len(text) + len(part)))
            text += values.get(part, part)
        return Prompt(text, written)

    def response(self, text: str) -> str:
        """The answer within a text that still holds its prompt."""
        return text.split(self.template["response_split"])[-1].strip()


def missing_begin(tokenizer, ids: Sequence[int]) -> list[int]:
    """What must stand before a text's ids: BOS, or nothing where the template wrote it or the tokenizer has none."""
    bos = tokenizer.bos_token_id
    return [] if bos is None or list(ids[:1]) == [bos] else [bos]


def encode_plain(tokenizer, texts: Sequence[str], **options):
    """What a Hugging Face tokenizer gives for texts in which every character is text: no special token is added, and
    "</s>" or "<|im_end|>" in them are letters like others.

    Raises ValueError where a tokenizer can't: its files don't mark the end token as a special one.
    """
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, **options)
    end, unknown = tokenizer.eos_token_id, tokenizer.unk_token_id
    if end is not None and end != unknown and any(end in ids for ids in encoded["input_ids"]):
        raise ValueError(
            f"{tokenizer.name_or_path}: its tokenizer reads {tokenizer.eos_token!r} within a text as the end; mark it "
            'as "special": true in its tokenizer.json, or leave it out of the text'
        )
    return encoded


class Segment(NamedTuple):
    """Part of a text: a special token that a template wrote, or what lies between two of them."""

    start: int
    text: str
    is_special: bool


def segments_of(text: str, special: re.Pattern) -> Iterator[Segment]:
    end = 0
    for start, stop in getattr(text, "written", ()):
        for match in special.finditer(text, start, stop):
            if end < match.start():
                yield Segment(end, text[end : match.start()], False)
            yield Segment(match.start(), match[0], True)
            end = match.end()
    if end < len(text):
        yield Segment(end, text[end:], False)


def encode(tokenizer, texts: Sequence[str], places: bool = False) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """Each text's ids and, where asked for, the (start, stop) of each one's characters.

    As ``encode_plain``, but a special token that a template wrote (see ``Prompt``) is one, such as ChatML's. Tuning,
    generation and serving encode all text with it.
    """
    contents = sorted((t.content for t in tokenizer.added_tokens_decoder.values() if t.special), key=len, reverse=True)
    special = re.compile("|".join(map(re.escape, contents)) or "(?!)")
    segments = [list(segments_of(text, special)) for text in texts]
    plain = [segment for found in segments for segment in found if not segment.is_special]
    guard = GUARD if begins_words_at_the_start_alone(tokenizer) else ""
    encoded = encode_plain(
        tokenizer,
        [guard * (segment.start > 0) + segment.text for segment in plain],
        **({"return_offsets_mapping": True} if places else {}),
    )
    guard_ids = encode_plain(tokenizer, [guard])["input_ids"][0] if guard else []
    parts = zip(encoded["input_ids"], encoded["offset_mapping"] if places else plain, strict=True)
    for found in segments:
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for start, text, is_special in found:
            if is_special:
                ids.append(tokenizer.convert_tokens_to_ids(text))
                spans.append((start, start + len(text)))
                continue
            more, where = next(parts)
            hidden, shift = (len(guard_ids), start - len(guard)) if start else (0, 0)
            ids += more[hidden:]
            spans += [(shift + first, shift + last) for first, last in where[hidden:]] if places else []
        yield ids, spans


def begins_words_at_the_start_alone(tokenizer) -> bool:
    """Whether SentencePiece's mark of a word's begin is put before a text, but not behind a special token in it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return getattr(getattr(backend, "pre_tokenizer", None), "prepend_scheme", None) == "first"


def encode_prompt(tokenizer, prompt: str) -> list[int]:
    """A prompt's ids, begun by BOS exactly once."""
    ids, _ = next(encode(tokenizer, [prompt]))
    return missing_begin(tokenizer, ids) + ids
