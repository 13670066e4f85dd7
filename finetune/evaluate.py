"""Score extraction: strict micro precision, recall and F1 of a model, a server or a file of answers.

    python finetune/evaluate.py --data ./instructions/heldout.jsonl --base_model ./zhixi \\
        --lora_weights ./lora --report ./report
    python finetune/evaluate.py --data ./instructions/heldout.jsonl --predictions ./answers.jsonl --report ./report
    python finetune/evaluate.py --data ./instructions/heldout.jsonl --server http://127.0.0.1:8090 --report ./report

A case: {"id", "task": "NER|RE|EE", "language", "schema", "input", "gold"}. An answer: {"id", "output"}, any known form,
or a line of examples/extract.py whose text has the case's id.
Output: metrics.json, report.md with scores.png and errors.png, predictions.jsonl in the report folder.
A run that was stopped keeps its answers: the same command asks only for the others. With --grounded every answer
parses, and the report tells the score below which items are better dropped; --threshold takes it to other cases.
"""

import hashlib
import json
import sys
from functools import cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import ArgumentParser, refuse, run
from knowlm.extraction.answering import (
    Answerer,
    answer_all,
    answers_in_file,
    grounded_answers,
    grounded_question_of,
    model_answers,
    question_of,
    reordered,
    server_answers,
    server_grounded_answers,
    weight_times,
)
from knowlm.extraction.cases import read_cases
from knowlm.extraction.forms import FORMS
from knowlm.extraction.grounded import OVERLAP, WINDOW
from knowlm.extraction.locating import items_of
from knowlm.extraction.score_report import as_markdown, draw, one_line
from knowlm.extraction.scoring import difference, score, spread
from knowlm.extraction.thresholds import fit_thresholds, only_above, read_threshold
from knowlm.extraction.windows import split
from knowlm.files import locked, read_records, write_json, write_jsonl, write_text

# Flags that no answer depends on
AFTERWARDS = ("report", "counting", "compare", "schema_orders", "batch_size", "threshold")
UNANSWERED = "?"  # can't be parsed, so counts as a miss


def main() -> None:
    args = parse_args()
    cases = read_cases(args.data)
    if args.grounded or args.filtered:
        check_questions(cases, args)
    report = Path(args.report)
    thresholds = read_threshold(args.threshold, {case["task"] for case in cases}) if args.threshold else {}
    with locked(report):
        if args.predictions:
            answers, others = read_answers(args.predictions, cases), []
        else:
            answers, *others = answers_by_order(args, cases, report)
        fitted = fit_thresholds(cases, ["[]" if answer == UNANSWERED else answer for answer in answers])
        if thresholds:
            answers, *others = (dropped(thresholds, cases, one) for one in (answers, *others))
        metrics = score(cases, answers, counting=args.counting)
        if fitted:
            metrics["thresholds"] = fitted
        if others:
            reports = [metrics, *(score(cases, other, resamples=1, counting=args.counting) for other in others)]
            metrics["schema_orders"] = spread(reports)
        if args.compare:
            before = read_answers(Path(args.compare) / "predictions.jsonl", cases)
            metrics["compared"] = {"with": args.compare, **difference(cases, answers, before, counting=args.counting)}
        rows = ({"id": c["id"], "output": a} for c, a in zip(cases, answers, strict=True))
        write_jsonl(report / "predictions.jsonl", rows)
        draw(metrics, report)
        write_text(report / "report.md", as_markdown(metrics, cases, answers))
        write_json(report / "metrics.json", metrics)
        for journal in report.glob("answers-*.jsonl"):
            journal.unlink()
    print(f"{report}: {one_line(metrics)}")


def check_questions(cases: list[dict], args) -> None:
    """Raise ValueError naming the case whose schema can't be asked for in batches of labels."""
    for case in cases:
        try:
            split([grounded_question_of(case)], WINDOW, OVERLAP, args.labels_at_once)
        except ValueError as error:
            raise ValueError(f"{args.data}, case {case['id']}: {error}") from None


def read_answers(path: str | Path, cases: list[dict]) -> list[str]:
    """The answers of a file, in the order of the cases."""
    by_id, others = answers_in_file(read_records(path), str(path), cases)
    if others:
        print(f"{path}: {others} answer{'s' * (others != 1)} to no case left out", file=sys.stderr)
    if len(by_id) < len(cases):
        print(f"{path}: {len(cases) - len(by_id)} of {len(cases)} cases without an answer: misses", file=sys.stderr)
    return [by_id.get(str(case["id"]), UNANSWERED) for case in cases]


def dropped(thresholds: dict[str, float], cases: list[dict], answers: list[str]) -> list[str]:
    """The answers without the items that don't reach their task's threshold."""
    pairs = zip(cases, answers, strict=True)
    return [answer if answer == UNANSWERED else only_above(thresholds[case["task"]], answer) for case, answer in pairs]


def answers_by_order(args, cases: list[dict], report: Path) -> list[list[str]]:
    """Answers to the cases as they are, then with the labels of each schema in other orders."""
    load = cache(partial(answerer, args))
    found = []
    for order in range(args.schema_orders):
        asked = [reordered(case, order) for case in cases] if order else cases
        extracts = args.grounded or args.filtered
        if extracts:
            questions = [grounded_question_of(case) for case in asked]
        else:
            questions = [question_of(case, args.form) for case in asked]
        job = {
            **{name: value for name, value in vars(args).items() if name not in AFTERWARDS},
            "questions": hashlib.sha256(json.dumps(questions).encode()).hexdigest(),
            "changed": weight_times(args.base_model, args.lora_weights),
        }
        answers = answer_all(questions, load, report / f"answers-{order}.jsonl", job)
        found.append([grounded_output(c, a) for c, a in zip(cases, answers, strict=True)] if extracts else answers)
    return found


def answerer(args) -> Answerer:
    """What answers the questions: a model or a server, freely or under the grammar."""
    extracts = args.grounded or args.filtered
    options = {"labels_at_once": args.labels_at_once} if extracts else {}
    if args.server and args.grounded:
        return server_grounded_answers(args.server, args.batch_size, max_tokens=args.max_new_tokens, **options)
    if args.server:
        return server_answers(args.server, args.max_new_tokens, args.batch_size)
    from knowlm.generation import GenerationSettings
    from knowlm.models import load_for_generation
    from knowlm.prompts import Prompter

    prompter = Prompter(args.prompt_template)
    model, tokenizer = load_for_generation(args.base_model, args.lora_weights, args.load_8bit)
    settings = GenerationSettings(max_new_tokens=args.max_new_tokens)
    answers = partial(grounded_answers, free=args.filtered) if extracts else model_answers
    return answers(model, tokenizer, prompter, settings, batch_size=args.batch_size, **options)


def grounded_output(case: dict, answer: str) -> str:
    """The items of a grounded or filtered answer as a JSON list, with their scores if they have some."""
    return json.dumps(items_of(case["task"], json.loads(answer)["records"]), ensure_ascii=False)


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data", required=True, help="cases, JSON or JSONL")
    parser.add_argument("--report", required=True, help="folder for the results")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--predictions", help="raw answers or what extract.py wrote, JSON or JSONL")
    source.add_argument("--base_model", help="folder (or hub name) of a model")
    source.add_argument("--server", help="address of a running inference/launch_vllm.py")
    parser.add_argument("--lora_weights", help="folder of a LoRA adapter for --base_model")
    parser.add_argument("--load_8bit", action="store_true", help="base in int8")
    parser.add_argument("--prompt_template", default="alpaca", help="name in knowlm/templates, or a template's path")
    parser.add_argument("--form", choices=FORMS, default="tuple", help="how answers are asked for (default: tuple)")
    parser.add_argument(
        "--grounded", action="store_true", help="hold answers to the text's spans and the schema's labels (no --form)"
    )
    parser.add_argument(
        "--filtered",
        action="store_true",
        help="ask as --grounded does, but decode freely and drop what the text doesn't hold or the schema hasn't",
    )
    parser.add_argument(
        "--labels_at_once",
        type=int,
        help="of the schema, in a prompt, grounded or filtered (default: 6 for NER, else 4)",
    )
    parser.add_argument(
        "--threshold",
        help="of grounded answers, lowest score of an item: a number, or the report of other cases where it was fitted",
    )
    parser.add_argument("--max_new_tokens", type=int, default=256, help="most tokens of an answer (default: 256)")
    parser.add_argument("--batch_size", type=int, default=8, help="cases answered at once (default: 8)")
    parser.add_argument(
        "--counting",
        choices=["multiset", "set"],
        default="multiset",
        help="whether an item given twice must be in the gold twice (default: multiset, yes)",
    )
    parser.add_argument(
        "--schema_orders",
        type=int,
        default=1,
        help="ask so many times, with the labels in other orders, and tell mean, deviation and worst; the scores stay "
        "those of the given order (default: 1)",
    )
    parser.add_argument(
        "--compare", help="report folder of other answers to the same cases: is the difference certain?"
    )
    args = parser.parse_args()
    if (args.lora_weights or args.load_8bit) and not args.base_model:
        refuse("--lora_weights and --load_8bit go with --base_model")
    if args.grounded and (args.predictions or args.form != "tuple"):
        refuse("--grounded asks a model or a server, in its own form; --predictions and --form don't go with it")
    if args.filtered and (not args.base_model or args.grounded or args.form != "tuple"):
        refuse("--filtered asks a --base_model, in its own form; --grounded and --form don't go with it")
    if args.labels_at_once is not None and not (args.grounded or args.filtered):
        refuse("--labels_at_once goes with --grounded or --filtered; else all labels are asked for at once")
    if args.threshold and not args.grounded and not args.predictions:
        refuse("--threshold needs --grounded, or such a run's --predictions: only grounded answers have scores")
    if args.server and not args.server.startswith(("http://", "https://")):
        refuse(f"--server {args.server}: an address such as http://127.0.0.1:8090 is needed")
    if args.compare and not (Path(args.compare) / "predictions.jsonl").is_file():
        refuse(f"--compare {args.compare}: holds no predictions.jsonl; name the report folder of an earlier run")
    if Path(args.report).is_file():
        refuse(f"--report {args.report}: is a file, a folder is needed")
    for name in ("batch_size", "max_new_tokens", "schema_orders", "labels_at_once"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            refuse(f"--{name} must be at least 1")
    if args.predictions and args.schema_orders > 1:
        refuse("--schema_orders asks a model or a server; answers in a file have one order")
    return args


if __name__ == "__main__":
    run(main)
