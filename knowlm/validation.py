"""How good a model is while it is tuned: the F1 of what it extracts from a few cases."""

from collections.abc import Iterator, Sequence

from knowlm.extraction.scoring import score, scores_of
from knowlm.generation import GenerationSettings, generate


def answers(model, tokenizer, prompts: Sequence[str], batch_size: int, max_new_tokens: int) -> Iterator[str]:
    """Greedy answers, in order."""
    settings = GenerationSettings(max_new_tokens=max_new_tokens)
    for first in range(0, len(prompts), batch_size):
        yield from generate(model, tokenizer, prompts[first : first + batch_size], settings)


def mean_f1(cases: Sequence[dict], answers: Sequence[str]) -> float:
    """The mean of the strict F1 of every task among the cases; of events both trigger's and arguments'.

    >>> case = {"id": 1, "task": "NER", "language": "english", "schema": ["place"], "input": "Paris",
    ...         "gold": [{"text": "Paris", "type": "place"}]}
    >>> mean_f1([case], ["(Paris,place)"]), mean_f1([case], [""])
    (1.0, 0.0)
    """
    found = [figures["f1"] for _, figures in scores_of(score(cases, answers, resamples=1))]
    return sum(found) / len(found)
