"""The one prompt template reader: tuning, generation and serving build the same prompt."""

import re
from collections.abc import Sequence
from pathlib import Path

from knowlm.files import read_json

TEMPLATES = Path(__file__).parent / "templates"


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

    def prompt(self, instruction: str, input: str | None = None) -> str:
        """The prompt up to where the answer begins.

        >>> Prompter().prompt("Say hello.").endswith("### Response:\\n")
        True
        """
        text = self.template["prompt_input" if input else "prompt_no_input"]
        values = {"{instruction}": instruction, "{input}": input or ""}
        return re.sub(r"\{instruction\}|\{input\}", lambda match: values[match[0]], text)

    def response(self, text: str) -> str:
        """The answer within a text that still holds its prompt."""
        return text.split(self.template["response_split"])[-1].strip()


def begin_of(tokenizer) -> list[int]:
    """What a prompt begins with: BOS, or nothing where the tokenizer has none."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def encode_plain(tokenizer, texts: Sequence[str], **options):
    """What a Hugging Face tokenizer gives for texts in which every character is text: no special token is added, and
    "</s>" or "<|im_end|>" in them are letters like others. Tuning, generation and serving encode all text with it.

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


def encode_prompt(tokenizer, prompt: str) -> list[int]:
    """A prompt's ids, begun by BOS exactly once."""
    return begin_of(tokenizer) + encode_plain(tokenizer, [prompt])["input_ids"][0]
