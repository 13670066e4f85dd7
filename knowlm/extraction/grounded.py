"""Extraction with a model in this process: answers that hold only the text's own words, and where they stand.

By default each token is held to a grammar of the answers that text and schema allow (llguidance, see ``grammar.py``),
so that every answer parses, ends, and is verbatim. With ``free=True`` the model writes what it likes, and what the
parser can read and the text holds is kept.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from knowlm.extraction.forms import NOTHING
from knowlm.extraction.grammar import grammar, read_items
from knowlm.extraction.locating import locate
from knowlm.extraction.parsing import parse
from knowlm.extraction.windows import LONGEST_WINDOW, Ask, Extraction, join, split
from knowlm.generation import GenerationSettings, encode_prompts, generate
from knowlm.prompts import encode_plain

WINDOW, OVERLAP = 600, 150  # characters
AT_ONCE = 1000  # prompts that the tokenizer takes in one call
MOST_REPEATS = 3  # items of an answer that it held already; a model that repeats itself is ended
Answer = Callable[[list[Ask], list[str]], list[Extraction]]  # of a batch: what is asked, and the prompts
PARTS = {"NER": 2, "RE": 3}  # of an item, each a decision of the model; an event has two, and two for every argument


def extract(
    model,
    tokenizer,
    questions: Sequence[dict],
    prompter,
    settings: GenerationSettings,
    *,
    free: bool = False,
    batch_size: int = 8,
    window: int = WINDOW,
    overlap: int = OVERLAP,
    labels_at_once: int | None = None,
) -> Iterator[tuple[int, Extraction]]:
    """(number of the question, its Extraction), as they are done; long ones come first.

    questions: ``{"task", "schema", "text"}``, and ``"language"`` if it isn't to be guessed. settings: of each window's
    answer; under the grammar greedy or drawn, not by beams. free: without the grammar; there are no scores then, and
    items that the text doesn't hold in any script, case or width, or whose label isn't in the schema, stand in
    ``not_found``. labels_at_once: how many labels a prompt names (by default 6, or 4 for RE and EE); the order in which
    a schema is given changes nothing.

    Raises ValueError on a question that is none, a prompt too long for the model, a tokenizer without a fast form.
    """
    if window > LONGEST_WINDOW:
        raise ValueError(f"window={window}: at most {LONGEST_WINDOW} characters")
    asks = split(questions, window, overlap, labels_at_once)
    prompts = [prompter.prompt(ask.instruction, ask.text) for ask in asks]
    check_lengths(tokenizer, prompts, settings.max_new_tokens, getattr(model.config, "max_position_embeddings", None))
    how = _freely if free else _grounded
    answer = how(model, tokenizer, settings)
    waiting: list[list[int]] = [[] for _ in questions]  # of each question, its prompts
    for number, ask in enumerate(asks):
        waiting[ask.question].append(number)
    parts: dict[int, Extraction] = {}
    order = sorted(range(len(asks)), key=lambda i: -len(prompts[i]))  # a batch is of like lengths
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        parts.update(zip(batch, answer([asks[i] for i in batch], [prompts[i] for i in batch]), strict=True))
        for number in sorted({asks[i].question for i in batch}):
            if all(i in parts for i in waiting[number]):
                question, own = questions[number], [(asks[i], parts.pop(i)) for i in waiting[number]]
                yield number, join(question["task"], question["text"], own)


def _freely(model, tokenizer, settings: GenerationSettings) -> Answer:
    def answer(batch: list[Ask], prompts: list[str]) -> list[Extraction]:
        answers = generate(model, tokenizer, prompts, settings)
        return [read_freely(ask, text) for ask, text in zip(batch, answers, strict=True)]

    return answer


def _grounded(model, tokenizer, settings: GenerationSettings) -> Answer:
    import torch

    if settings.num_beams > 1:
        raise ValueError(f"num_beams={settings.num_beams}: grounded extraction decodes greedily or draws; use 1")
    constraint = wrapped_tokenizer(tokenizer, model.get_output_embeddings().weight.shape[0])

    def answer(batch: list[Ask], prompts: list[str]) -> list[Extraction]:
        inputs = encode_prompts(tokenizer, prompts, model.device)
        guide = Guide(constraint, batch, tokenizer.pad_token_id)
        with torch.inference_mode():
            output = model.generate(
                **inputs, generation_config=settings.for_transformers(tokenizer), logits_processor=[guide]
            )
        guide.note(output[:, -1])
        return [
            read_grounded(ask, constraint, row.tokens, row.log_probabilities, row.is_whole)
            for ask, row in zip(batch, guide.rows, strict=True)
        ]

    return answer


def check_lengths(tokenizer, prompts: list[str], max_new_tokens: int, longest: int | None) -> None:
    """ValueError if a prompt and its answer are more tokens than the model has positions."""
    some = (prompts[first : first + AT_ONCE] for first in range(0, len(prompts), AT_ONCE))  # the ids take much memory
    length = max((len(ids) + 1 for part in some for ids in encode_plain(tokenizer, part)["input_ids"]), default=0)
    if longest and length + max_new_tokens > longest:
        raise ValueError(
            f"a prompt of {length} tokens and max_new_tokens={max_new_tokens} exceed the model's {longest}; "
            "choose a shorter window, fewer labels at once, or fewer new tokens"
        )


def wrapped_tokenizer(tokenizer, vocabulary: int):
    """llguidance's view of a tokenizer: the bytes of every token. Takes half a second once."""
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{type(tokenizer).__name__}: grounded extraction needs a fast tokenizer (tokenizer.json)")
    return _wrapped(tokenizer, max(vocabulary, len(tokenizer)), tokenizer.eos_token_id)


@lru_cache(maxsize=4)
def _wrapped(tokenizer, vocabulary: int, eos: int):
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=eos)


def new_matcher(constraint, ask: Ask):
    """What says which tokens may come next in an answer to ``ask``, token after token."""
    from llguidance import LLMatcher, LLParserLimits, grammar_from

    limits = LLParserLimits(
        initial_lexer_fuel=10_000_000, step_lexer_fuel=10_000_000
    )  # ten and fifty times the default
    matcher = LLMatcher(constraint, grammar_from("grammar", grammar(ask.task, ask.schema, ask.text)), limits=limits)
    if matcher.is_error():
        raise ValueError(
            f"the grammar of a text of {len(ask.text)} characters and {len(ask.schema)} labels is too large "
            f"({matcher.get_error().splitlines()[0]}); choose a shorter window or fewer labels at once"
        )
    return matcher


class Row:
    """An answer as it is written."""

    def __init__(self, ask: Ask, matcher):
        self.ask, self.matcher = ask, matcher
        self.tokens: list[int] = []
        self.log_probabilities: list[float] = []
        self.has_ended = False
        self.is_whole = False  # ended where the grammar lets an answer end
        self.repeats = False


class Guide:
    """A logits processor that leaves each row the tokens its grammar allows, and notes how likely the chosen were."""

    def __init__(self, constraint, batch: list[Ask], pad: int):
        from llguidance.numpy import allocate_token_bitmask

        self.constraint, self.pad = constraint, pad
        self.rows = [Row(ask, new_matcher(constraint, ask)) for ask in batch]
        self.bitmask = allocate_token_bitmask(len(batch), constraint.vocab_size)  # (batch, vocabulary / 32)
        self.scores: Any = None  # (batch, vocabulary) of the step before

    def __call__(self, input_ids, scores):
        import numpy as np
        import torch

        if self.scores is not None:
            self.note(input_ids[:, -1])
        for number, row in enumerate(self.rows):
            self._allow(number, row)
        allowed = np.unpackbits(self.bitmask.view(np.uint8), axis=1, count=scores.shape[1], bitorder="little")
        allowed_BV = torch.from_numpy(allowed.astype(bool)).to(scores.device)
        self.scores = scores.masked_fill(~allowed_BV, -torch.inf)
        return self.scores

    def _allow(self, number: int, row: Row) -> None:
        from llguidance.numpy import fill_next_token_bitmask

        if not row.has_ended and not (row.repeats and row.matcher.is_accepting()):
            fill_next_token_bitmask(row.matcher, self.bitmask, number)
            if not row.matcher.is_error() and self.bitmask[number].any():
                return
        only = self.pad if row.has_ended else self.constraint.eos_token
        self.bitmask[number] = 0
        self.bitmask[number, only // 32] = np_bit(only % 32)

    def note(self, tokens) -> None:
        """Take the tokens, (batch,), chosen from the last scores."""
        chosen = self.scores.gather(1, tokens[:, None])[:, 0] - self.scores.logsumexp(dim=1)
        for row, token, log_probability in zip(self.rows, tokens.tolist(), chosen.tolist(), strict=True):
            if row.has_ended:
                continue
            if token == self.constraint.eos_token:
                row.has_ended, row.is_whole = True, row.matcher.is_accepting()
                continue
            row.tokens.append(token)
            row.log_probabilities.append(log_probability)
            row.matcher.consume_token(token)
            if b")" in self.constraint.decode_bytes([token]):
                row.repeats = _repeats(row.ask, self.constraint.decode_bytes(row.tokens))


def np_bit(place: int) -> int:
    """A 32-bit integer with one bit set, as numpy's int32 takes it."""
    return -(1 << 31) if place == 31 else 1 << place


def _repeats(ask: Ask, answer: bytes) -> bool:
    found = [str(part.item) for part in read_items(ask.task, ask.schema, answer.decode(errors="replace"))]
    return len(found) - len(set(found)) >= MOST_REPEATS


def read_grounded(
    ask: Ask, constraint, tokens: Sequence[int], log_probabilities: Sequence[float], is_whole: bool
) -> Extraction:
    """The extraction of an answer in the grammar, from its tokens (without an end token) and their log-probabilities.

    An item's score is the probability of its tokens, given the grammar and what stands before, to the power of one over
    its parts (span and type; head, relation and tail; …): the geometric mean of the model's decisions, so that an item
    of many is not the worse for it, as with the length of a sentence in Wu et al. 2016 (arXiv 1609.08144).
    """
    written = b"".join(constraint.decode_bytes([token]) for token in tokens)
    answer = written.decode(errors="replace")
    parts = read_items(ask.task, ask.schema, answer)
    stops, position = [], 0  # of each token, in bytes
    for token in tokens:
        position += len(constraint.decode_bytes([token]))
        stops.append(position)
    items: dict[str, dict] = {}
    start = 0
    for part in parts:
        stop = start + len(answer[part.start : part.stop].encode())
        total = sum(p for end, p in zip(stops, log_probabilities, strict=True) if start < end <= stop)
        decisions = PARTS.get(ask.task) or 2 + 2 * len(part.item["arguments"])
        score = round(math.exp(min(total, 0.0) / decisions), 6)
        items.setdefault(str(part.item), part.item | {"score": score})
        start = stop
    cut = parts[-1].stop if parts else 0
    kept = list(items.values())
    return Extraction(kept, locate(ask.task, kept, ask.text), answer[:cut] or NOTHING, is_whole)


def read_freely(ask: Ask, answer: str) -> Extraction:
    """The extraction of an answer in any form: what the text doesn't hold, or the schema, is left out."""
    labels = [label["type"] if ask.task == "EE" else label for label in ask.schema]
    items: list[dict] = []
    not_found: list[dict] = []
    for item in parse(ask.task, answer, labels).items:
        fits = item["relation" if ask.task == "RE" else "type"] in labels and bool(locate(ask.task, [item], ask.text))
        (items if fits else not_found).append(item)
    return Extraction(items, locate(ask.task, items, ask.text), answer, True, not_found)
