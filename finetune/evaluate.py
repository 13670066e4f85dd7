"""Score extraction: strict micro precision, recall and F1 of a model, a server or a file of answers.

    python finetune/evaluate.py --data ./instructions/heldout.jsonl --base_model ./zhixi \\
        --lora_weights ./lora --report ./report
    python finetune/evaluate.py --data ./instructions/heldout.jsonl --predictions ./answers.jsonl --report ./report
    python finetune/evaluate.py --data ./instructions/heldout.jsonl --server http://127.0.0.1:8090 --report ./report

A case: {"id", "task": "NER|RE|EE", "language", "schema", "input", "gold"}. An answer: {"id", "output"}, any known form.
Output: metrics.json, report.md, predictions.jsonl in the report folder.
"""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from tqdm import tqdm

from knowlm.cli import ArgumentParser, refuse, run
from knowlm.extraction.forms import FORMS, TASKS, render, write_answer
from knowlm.extraction.scoring import elements, score
from knowlm.files import read_records, write_json, write_jsonl, write_text


def main() -> None:
    args = parse_args()
    cases = read_cases(args.data)
    if args.predictions:
        answers = read_answers(args.predictions, cases)
    else:
        asked = [
            {"instruction": render(c["task"], c["schema"], args.form, c["language"]), "input": c["input"]}
            for c in cases
        ]
        answer_all = answers_of_server(args, asked) if args.server else answers_of_model(args, asked)
        answers = [""] * len(cases)
        for number, answer in tqdm(answer_all, total=len(cases), desc="cases", disable=None):
            answers[number] = answer
    metrics = score(cases, answers)
    report = Path(args.report)
    write_jsonl(
        report / "predictions.jsonl", ({"id": c["id"], "output": a} for c, a in zip(cases, answers, strict=True))
    )
    write_text(report / "report.md", as_markdown(metrics, cases, answers))
    write_json(report / "metrics.json", metrics)
    print(f"{report}: {one_line(metrics)}")


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data", required=True, help="cases, JSON or JSONL")
    parser.add_argument("--report", required=True, help="folder for the results")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--predictions", help="raw answers, JSON or JSONL")
    source.add_argument("--base_model", help="folder (or hub name) of a model")
    source.add_argument("--server", help="address of a running inference/launch_vllm.py")
    parser.add_argument("--lora_weights", help="folder of a LoRA adapter for --base_model")
    parser.add_argument("--load_8bit", action="store_true", help="base in int8")
    parser.add_argument("--prompt_template", default="alpaca", help="name in knowlm/templates, or a template's path")
    parser.add_argument("--form", choices=FORMS, default="tuple", help="how answers are asked for (default: tuple)")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="most tokens of an answer (default: 256)")
    parser.add_argument("--batch_size", type=int, default=8, help="cases answered at once (default: 8)")
    args = parser.parse_args()
    if (args.lora_weights or args.load_8bit) and not args.base_model:
        refuse("--lora_weights and --load_8bit go with --base_model")
    if args.server and not args.server.startswith(("http://", "https://")):
        refuse(f"--server {args.server}: an address such as http://127.0.0.1:8090 is needed")
    if Path(args.report).is_file():
        refuse(f"--report {args.report}: is a file, a folder is needed")
    if args.batch_size < 1 or args.max_new_tokens < 1:
        refuse("--batch_size and --max_new_tokens must be at least 1")
    return args


def read_cases(path: str) -> list[dict]:
    cases = read_records(path)
    for number, case in enumerate(cases, 1):
        where = f"{path}, record {number}"
        missing = {"id", "task", "language", "schema", "input", "gold"} - case.keys()
        if missing:
            raise ValueError(f"{where}: lacks {', '.join(sorted(missing))}")
        if case["task"] not in TASKS or case["language"] not in ("english", "chinese"):
            raise ValueError(f"{where}: task is one of {', '.join(TASKS)}, language english or chinese")
        if not isinstance(case["id"], str | int) or not isinstance(case["input"], str):
            raise ValueError(f"{where}: id and input must be texts")
        try:
            written = json.loads(write_answer(case["task"], case["gold"], "json"))
            parsed = elements(case["task"], written)
            right = isinstance(case["schema"], list) and all(
                isinstance(part, str) for counter in parsed.values() for element in counter for part in element
            )
            render(case["task"], case["schema"], "tuple", case["language"])
        except (KeyError, TypeError, AttributeError):
            right = False
        if not right:
            raise ValueError(f"{where}: gold or schema is not of the form that finetune/README.md shows")
    if len({case["id"] for case in cases}) < len(cases):
        raise ValueError(f"{path}: two cases have the same id; give each its own")
    if not cases:
        raise ValueError(f"{path}: holds no cases")
    return cases


def read_answers(path: str, cases: list[dict]) -> list[str]:
    """The answer of each case; a case without one counts as unanswered."""
    by_id = {}
    for number, row in enumerate(read_records(path), 1):
        if not isinstance(row.get("output"), str) or "id" not in row:
            raise ValueError(f'{path}, record {number}: needs "id" and a text under "output"')
        by_id[row["id"]] = row["output"]
    unknown = by_id.keys() - {case["id"] for case in cases}
    if unknown:
        raise ValueError(f"{path}: answers {sorted(unknown)[0]!r}, which is no case; do both files belong together?")
    return [by_id.get(case["id"], "?") for case in cases]


def answers_of_model(args, asked: list[dict]) -> Iterator[tuple[int, str]]:
    """(number, answer), longest cases first, so that a batch is of like lengths and memory peaks at once."""
    from knowlm.generation import GenerationSettings, generate
    from knowlm.models import load_for_generation
    from knowlm.prompts import Prompter

    prompter = Prompter(args.prompt_template)
    settings = GenerationSettings(max_new_tokens=args.max_new_tokens)
    model, tokenizer = load_for_generation(args.base_model, args.lora_weights, args.load_8bit)
    prompts = [prompter.prompt(**question) for question in asked]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for first in range(0, len(order), args.batch_size):
        batch = order[first : first + args.batch_size]
        yield from zip(batch, generate(model, tokenizer, [prompts[i] for i in batch], settings), strict=True)


def answers_of_server(args, asked: list[dict]) -> Iterator[tuple[int, str]]:
    for number, question in enumerate(asked):
        body = {**question, "parameters": {"temperature": 0, "max_tokens": args.max_new_tokens}}
        request = urllib.request.Request(
            f"{args.server.rstrip('/')}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as reply:
                yield number, json.load(reply)["generated_text"]
        except urllib.error.HTTPError as error:
            raise OSError(
                f"{args.server}: refused case {number + 1}: {error.read().decode(errors='replace')[:200]}"
            ) from None
        except urllib.error.URLError as error:
            raise OSError(
                f"{args.server}: can't be reached ({error.reason}); start inference/launch_vllm.py first"
            ) from None


def scores_of(metrics: dict) -> list[tuple[str, dict]]:
    """(name, figures) of every score in a report, in order of tasks."""
    found = []
    for task in TASKS:
        entry = metrics.get(task, {})
        found += [(task, entry)] if "f1" in entry else [(f"{task} {part}", figures) for part, figures in entry.items()]
    return found


def one_line(metrics: dict) -> str:
    return (
        "; ".join(f"{name} F1 {figures['f1']:.3f}" for name, figures in scores_of(metrics))
        + f"; {metrics['unparsable']:.1%} of {metrics['cases']} answers unparsable"
    )


def as_markdown(metrics: dict, cases: list[dict], answers: list[str]) -> str:
    lines = [
        "# Extraction, strict micro scores",
        "",
        one_line(metrics),
        "",
        "| score | precision | recall | F1 | 95 % interval | right / predicted / gold |",
        "|---|---|---|---|---|---|",
    ]
    for name, f in scores_of(metrics):
        lines.append(
            f"| {name} | {f['precision']:.3f} | {f['recall']:.3f} | {f['f1']:.3f} | "
            f"{f['interval'][0]:.3f}–{f['interval'][1]:.3f} | {f['right']} / {f['predicted']} / {f['gold']} |"
        )
    for name, figures in scores_of(metrics):
        lines += ["", f"## {name} by label", "", "| label | precision | recall | F1 | gold |", "|---|---|---|---|---|"]
        lines += [
            f"| {label} | {f['precision']:.3f} | {f['recall']:.3f} | {f['f1']:.3f} | {f['gold']} |"
            for label, f in figures["labels"].items()
        ]
    lines += ["", "## First answers", ""]
    for case, answer in list(zip(cases, answers, strict=True))[:10]:
        lines += [
            f"- **{case['input']}**",
            f"  - gold: `{write_answer(case['task'], case['gold']).replace(chr(10), ' ')}`",
            f"  - answer: `{answer.replace(chr(10), ' ')[:300]}`",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
