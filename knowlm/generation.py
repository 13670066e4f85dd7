"""Decoding settings, and answers that hold neither prompt nor special tokens and end where the model ends them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from threading import Thread

from knowlm.prompts import encode_prompt


@dataclass
class GenerationSettings:
    """How to decode. Temperature, top_p and top_k count only where ``do_sample`` is set."""

    max_new_tokens: int = field(default=512, metadata={"help": "most tokens added after the prompt"})
    num_beams: int = field(default=1, metadata={"help": "beams searched side by side; 1 is greedy"})
    do_sample: bool = field(default=False, metadata={"help": "draw tokens instead of taking the likeliest"})
    temperature: float = field(default=0.3, metadata={"help": "sharpness when drawing"})
    top_p: float = field(default=0.75, metadata={"help": "draw from the likeliest tokens of this total probability"})
    top_k: int = field(default=40, metadata={"help": "draw from so many likeliest tokens"})
    repetition_penalty: float = field(default=1.0, metadata={"help": "divides the score of tokens seen before"})

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_new_tokens", 1, None),
            ("num_beams", 1, None),
            ("temperature", 0, None),
            ("top_p", 0, 1),
            ("top_k", 0, None),
            ("repetition_penalty", 1e-6, None),
        ):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or value < low
                or (high is not None and value > high)
            ):
                bounds = f"at least {low}" if high is None else f"{low} to {high}"
                raise ValueError(f"{name}={value!r}: must be a number, {bounds}")

    def for_transformers(self, tokenizer):
        """A GenerationConfig; a temperature of 0 means greedy."""
        from transformers import GenerationConfig

        drawing = {"temperature": self.temperature, "top_p": self.top_p or 1e-6, "top_k": self.top_k}
        sample = self.do_sample and self.temperature > 0
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            do_sample=sample,
            repetition_penalty=self.repetition_penalty,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **(drawing if sample else {}),
        )

    def updated(self, **changes) -> "GenerationSettings":
        """A copy with the changes that aren't None."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items())


def encode_prompts(tokenizer, prompts: Sequence[str], device):
    """Left-padded input ids and mask, (batch, seq), each prompt begun by BOS exactly once."""
    import torch

    rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    longest = max(map(len, rows))
    padded = [[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(padded, device=device), "attention_mask": torch.tensor(mask, device=device)}


def generate(model, tokenizer, prompts: Sequence[str], settings: GenerationSettings) -> list[str]:
    """The answers to a batch of prompts, without the prompts and without special tokens."""
    inputs = encode_prompts(tokenizer, prompts, model.device)
    # No inference_mode: what ZeRO-3 gathers in it amid a training can't be trained on. transformers takes no gradients.
    output = model.generate(**inputs, generation_config=settings.for_transformers(tokenizer))
    answers = output[:, inputs["input_ids"].shape[1] :]  # (batch, new tokens)
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def stream(model, tokenizer, prompt: str, settings: GenerationSettings) -> Iterator[str]:
    """The answer so far, again and again as it grows. Beam search can't stream: it yields the whole answer once.

    Generation stops when the consumer closes the iterator.
    """
    if settings.num_beams > 1:
        yield generate(model, tokenizer, [prompt], settings)[0]
        return
    from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

    class Stopper(StoppingCriteria):
        stopped = False

        def __call__(self, input_ids, scores, **_):
            import torch

            return torch.full((input_ids.shape[0],), self.stopped, device=input_ids.device)

    stopper, failures = Stopper(), []
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)

    def work() -> None:
        try:
            model.generate(
                **encode_prompts(tokenizer, [prompt], model.device),
                streamer=streamer,
                generation_config=settings.for_transformers(tokenizer),
                stopping_criteria=StoppingCriteriaList([stopper]),
            )
        except Exception as error:  # handed to the consumer, who would wait forever otherwise
            failures.append(error)
            streamer.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    answer = ""
    try:
        for piece in streamer:
            answer += piece
            yield answer.strip()
    finally:
        stopper.stopped = True
        thread.join()
    if failures:
        raise failures[0]
