"""Answers of a model or a server to extraction cases; those of a stopped run are kept."""

import http.client
import json
import random
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from knowlm.extraction.forms import render
from knowlm.extraction.locating import items_of
from knowlm.extraction.windows import NAMES
from knowlm.files import write_text

Answers = Iterator[tuple[int, str]]  # (number of the question, answer), in any order
Answerer = Callable[[Sequence[dict]], Answers]


def weight_times(*folders: str | None) -> list[int]:
    """When the weights of models and adapters were written: answers of others are not taken for theirs."""
    paths = [Path(folder) for folder in folders if folder]
    files = (file for path in paths for pattern in ("*.safetensors", "*.bin") for file in path.glob(pattern))
    return [file.stat().st_mtime_ns for file in sorted(files)]


def question_of(case: dict, form: str) -> dict[str, str]:
    """``{"instruction", "input"}`` that asks for a case."""
    return {"instruction": render(case["task"], case["schema"], form, case["language"]), "input": case["input"]}


def grounded_question_of(case: dict) -> dict:
    """``{"task", "schema", "language", "text"}`` of a case."""
    return {name: case[name] for name in ("task", "schema", "language")} | {"text": case["input"]}


def reordered(case: dict, seed: int) -> dict:
    """The case with the labels of its schema (for events the roles, too) in another order."""
    generator = random.Random(f"{seed} {case['id']}")
    schema = [
        label | {"roles": generator.sample(label["roles"], len(label["roles"]))} if isinstance(label, dict) else label
        for label in case["schema"]
    ]
    return case | {"schema": generator.sample(schema, len(schema))}


def answer_all(questions: Sequence[dict], load: Callable[[], Answerer], journal: Path, job: dict) -> list[str]:
    """The answer to every question, in order. Each is kept in ``journal`` at once, so that the same job, when run
    again, asks only what is left.

    load: called if anything is left; gives what answers questions with (number, answer), in any order.
    job: what the answers depend on, in JSON values.
    """
    kept = _read_journal(journal, job)
    answers: dict[int, str] = dict(json.loads(line) for line in kept)
    left = [number for number in range(len(questions)) if number not in answers]
    if left:
        answer = load()
        write_text(journal, "\n".join([json.dumps(job), *kept, ""]))  # without a line that a kill cut
        with (
            journal.open("a", encoding="utf-8") as lines,
            tqdm(total=len(questions), initial=len(answers), desc="texts", disable=None) as bar,
        ):
            for position, text in answer([questions[number] for number in left]):
                answers[left[position]] = text
                lines.write(json.dumps([left[position], text]) + "\n")
                lines.flush()
                bar.update()
    return [answers[number] for number in range(len(questions))]


def _read_journal(journal: Path, job: dict) -> list[str]:
    """The whole lines of a journal of the same job."""
    if not journal.is_file():
        return []
    first, *lines = journal.read_text(encoding="utf-8").split("\n")[:-1] or [""]
    return lines if first == json.dumps(job) else []


def model_answers(model, tokenizer, prompter, settings, batch_size: int) -> Answerer:
    """Answers of a model, longest questions first, so that a batch is of like lengths and memory peaks at once."""
    from knowlm.generation import generate

    def answer(questions: Sequence[dict]) -> Answers:
        prompts = [prompter.prompt(**question) for question in questions]
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            yield from zip(batch, generate(model, tokenizer, [prompts[i] for i in batch], settings), strict=True)

    return answer


def server_answers(address: str, max_new_tokens: int, at_once: int) -> Answerer:
    """Answers of a running inference/launch_vllm.py, which gets so many questions ``at_once``."""

    def ask(question: dict) -> str:
        body = {**question, "parameters": {"temperature": 0, "max_tokens": max_new_tokens}}
        return post(address, "generate", body)["generated_text"]

    return at_the_same_time(ask, at_once)


def at_the_same_time(ask: Callable[[dict], str], at_once: int) -> Answerer:
    """Answers as they come, of questions of which so many are under way: the server's engine answers them together."""

    def answer(questions: Sequence[dict]) -> Answers:
        with ThreadPoolExecutor(at_once) as pool:
            asked = {pool.submit(ask, question): number for number, question in enumerate(questions)}
            try:
                for future in as_completed(asked):
                    yield asked[future], future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    return answer


def grounded_answers(model, tokenizer, prompter, settings, **options) -> Answerer:
    """What a model extracts (see ``grounded.extract``, which takes the options), as JSON: ``records``, ``is_whole``
    and ``not_found``.
    """
    from knowlm.extraction.grounded import extract

    def answer(questions: Sequence[dict]) -> Answers:
        for number, found in extract(model, tokenizer, questions, prompter, settings, **options):
            kept = {"records": found.records, "is_whole": found.is_whole, "not_found": found.not_found}
            yield number, json.dumps(kept, ensure_ascii=False)

    return answer


def server_grounded_answers(address: str, at_once: int, **options) -> Answerer:
    """As ``grounded_answers``, of a running inference/launch_vllm.py, which takes the options."""

    def ask(question: dict) -> str:
        reply = post(address, "extract", question | options)
        return json.dumps({"records": reply["items"], "is_whole": reply["is_whole"], "not_found": []})

    return at_the_same_time(ask, at_once)


def post(address: str, route: str, body: dict) -> dict:
    """The JSON reply of a server. Raises OSError with the server's own words if it refuses, and if it isn't there."""
    request = urllib.request.Request(
        f"{address.rstrip('/')}/{route}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    is_here = urllib.parse.urlsplit(address).hostname in ("127.0.0.1", "localhost", "::1")  # no proxy reaches it
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_here else []))
    try:
        with opener.open(request, timeout=3600) as response:
            reply = json.load(response)
    except urllib.error.HTTPError as error:
        told = error.read().decode(errors="replace")[:200]
        text = body.get("input", body.get("text", ""))
        raise OSError(f"{address}: refused {text[:40]!r}: {told}") from None
    except urllib.error.URLError as error:
        raise OSError(f"{address}: can't be reached ({error.reason}); start inference/launch_vllm.py first") from None
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise OSError(f"{address}: broke off ({error}); is the server still running?") from None
    except ValueError:
        reply = None
    if not isinstance(reply, dict) or "error" not in reply:
        raise OSError(f"{address}: no inference/launch_vllm.py answers there; name the address that it printed")
    return reply


def answers_in_file(rows: Iterable[dict], path: str, cases: Sequence[dict]) -> tuple[dict[str, str], int]:
    """Answers by the case's id, and how many are to no case.

    rows: ``{"id", "output"}``, a JSON value for a text taken as its text and null as no answer; or what
    ``examples/extract.py`` writes, whose mentions count as in a grounded answer: each item once.
    Raises ValueError if none is to a case, and on a second one to the same case: there is no best of several.
    """
    tasks = {str(case["id"]): case["task"] for case in cases}
    answers: dict[str, str | None] = {}
    others = 0
    for number, row in enumerate(rows, 1):
        records = NAMES.values() & row.keys()
        if "id" not in row or not ("output" in row or records):
            raise ValueError(f'{path}, record {number}: needs "id" and "output", or is a line of examples/extract.py')
        name, output = str(row["id"]), row.get("output")
        if name not in tasks:
            others += 1
            continue
        if name in answers:
            raise ValueError(f"{path}, record {number}: a second answer to {name!r}; keep one")
        if "output" not in row:
            try:
                output = items_of(tasks[name], row[NAMES[tasks[name]]])
            except (KeyError, TypeError, AttributeError):
                raise ValueError(
                    f"{path}, record {number}: holds no {NAMES[tasks[name]]} as examples/extract.py writes them, and "
                    f"{name!r} is a case of {tasks[name]}"
                ) from None
        answers[name] = output if isinstance(output, str | None) else json.dumps(output, ensure_ascii=False)
    if others and not answers:
        raise ValueError(f"{path}: answers none of the cases; do both files belong together?")
    return {name: answer for name, answer in answers.items() if answer is not None}, others
