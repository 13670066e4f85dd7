"""How good a model is while it is tuned: the F1 of what it extracts from a few cases."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from knowlm.extraction.forms import TASKS, render
from knowlm.extraction.scoring import score
from knowlm.files import read_records
from knowlm.generation import GenerationSettings, generate
from knowlm.prompts import Prompter

NEEDED = {"id", "task", "language", "schema", "input", "gold"}


def read_cases(path: str | Path, limit: int) -> list[dict]:
    """The first ``limit`` cases of a file in the form that finetune/evaluate.py scores.

    Raises ValueError naming the record that is no case.
    """
    cases = read_records(path)[:limit]
    for number, case in enumerate(cases, 1):
        missing = NEEDED - case.keys()
        if missing or case["task"] not in TASKS:
            fact = f"lacks {', '.join(sorted(missing))}" if missing else f"task is one of {', '.join(TASKS)}"
            raise ValueError(f"{path}, record {number}: {fact}; finetune/README.md shows a case")
        try:
            score([case], [""], resamples=1)
            render(case["task"], case["schema"], language=case["language"])
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{path}, record {number}: gold or schema is not as finetune/README.md shows") from None
    if not cases:
        raise ValueError(f"{path}: holds no cases")
    return cases


def prompts_of(cases: Sequence[dict], prompter: Prompter) -> list[str]:
    return [prompter.prompt(render(c["task"], c["schema"], language=c["language"]), c["input"]) for c in cases]


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
    metrics = score(cases, answers, resamples=1)
    found: list[float] = []
    for task in TASKS:
        entry = metrics.get(task, {})
        found += [entry["f1"]] if "f1" in entry else [part["f1"] for part in entry.values()]
    return sum(found) / len(found)
