"""Instruction rows: read them, tokenise them once, tell prompt from answer, count what is cut off."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from knowlm.files import HALF, read_records
from knowlm.prompts import Prompt, Prompter, encode, missing_begin

AT_ONCE = 1000  # rows that the tokenizer takes in one call


class Example(NamedTuple):
    """A row as tokens: BOS, prompt, answer, EOS. The loss is taken from ``answer_start`` on, which is at least 1."""

    ids: np.ndarray  # (tokens,) of int32
    answer_start: int
    is_cut: bool  # the end, with its EOS, was cut off

    @property
    def has_answer(self) -> bool:
        return self.answer_start < len(self.ids)


def read_rows(data_path: str | Path) -> list[dict]:
    """Rows of a file, or of every .json and .jsonl file of a folder in order of name.

    Raises ValueError naming file and record where a row has no text under "instruction" or "output".
    """
    path = Path(data_path)
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl")) if path.is_dir() else [path]
    rows = []
    for file in files:
        records = read_records(file)
        for number, row in enumerate(records, 1):
            if not isinstance(row.get("instruction"), str) or not isinstance(row.get("output"), str):
                raise ValueError(f'{file}, record {number}: needs texts under "instruction" and "output"')
            if not isinstance(row.get("input") or "", str):
                raise ValueError(f'{file}, record {number}: "input" must be a text')
            if any(HALF.search(row.get(field) or "") for field in ("instruction", "input", "output")):
                raise ValueError(f"{file}, record {number}: holds half a character (a lone surrogate); leave it out")
        rows += records
    if not rows:
        raise ValueError(f"{data_path}: holds no examples; a .json or .jsonl file of instruction rows is needed")
    return rows


def encode_rows(
    rows: Sequence[dict], prompter: Prompter, tokenizer, cutoff_len: int, train_on_inputs: bool = False
) -> Iterator[Example]:
    """Each row's tokens, at most ``cutoff_len``, BOS first and EOS last.

    Prompt and answer are tokenised together, once: where they are apart, characters say. A token that holds any
    character of the answer belongs to the answer, so that " Paris" after a prompt that ends in a space is learned.
    Special tokens are the BOS, the EOS and those of the template: those written in a row are text.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{tokenizer.name_or_path}: its tokenizer can't tell characters' places; a tokenizer.json is needed"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{tokenizer.name_or_path}: its tokenizer has no end token (eos_token); name one in its files")
    for first in range(0, len(rows), AT_ONCE):
        part = rows[first : first + AT_ONCE]
        prompts = [prompter.prompt(row["instruction"], row.get("input")) for row in part]
        texts = [Prompt(prompt + row["output"], prompt.written) for prompt, row in zip(prompts, part, strict=True)]
        for prompt, (ids, spans) in zip(prompts, encode(tokenizer, texts, places=True), strict=True):
            bos = missing_begin(tokenizer, ids)
            prompt_tokens = sum(stop <= len(prompt) for _, stop in spans)
            whole = np.array([*bos, *ids, tokenizer.eos_token_id], np.int32)
            answer_start = 1 if train_on_inputs else max(len(bos) + prompt_tokens, 1)
            yield Example(whole[:cutoff_len].copy(), answer_start, len(whole) > cutoff_len)


def describe_lengths(examples: Sequence[Example], cutoff_len: int) -> str:
    """How long the examples are and how many were cut.

    Raises ValueError where none keeps any of its answer.
    """
    lengths = np.array([len(example.ids) for example in examples])
    cut = sum(example.is_cut for example in examples)
    lost = sum(not example.has_answer for example in examples)
    if lost == len(examples):
        raise ValueError(f"--cutoff_len {cutoff_len} cuts the answer off every example; choose a larger one")
    said = (
        f"{len(examples)} examples of {lengths.min()} to {lengths.max()} tokens, {lengths.mean():.0f} on average, "
        f"{np.percentile(lengths, 95):.0f} at the 95th percentile"
    )
    if cut:
        said += f"; {cut} ({cut / len(examples):.1%}) are cut at --cutoff_len {cutoff_len}"
        if lost:
            said += f", {lost} of them lose their whole answer and are left out"
        said += "; raise it, or make the examples shorter (kg2instructions.py --piece_length)"
    return said
