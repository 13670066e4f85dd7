"""Instructions to ask for entities, relations and events with; and the answers to them, read back.

    python examples/ie_prompt.py --task RE --schema "founded by,headquarters"
    python examples/ie_prompt.py --task NER --schema 人物,地点 --language chinese --form json --variant role
    python examples/ie_prompt.py --task EE --schema "旅游行程:旅游地点/旅游时间/旅游人员" --language chinese
    python examples/ie_prompt.py --task NER --schema labels.json --input "Ann lives in Rome." --variant 0
    python examples/ie_prompt.py --task NER --schema labels.json --parse answers.jsonl

An event type is followed by its roles. Without --task it prints an example of each task in both languages.
--parse prints a line of JSON for each answer: its items, whether it could be read, and what it took to read it.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import ArgumentParser, refuse, run
from knowlm.extraction.forms import FORMS, LANGUAGES, TASKS, WORDINGS, forms_of, render
from knowlm.extraction.parsing import parse
from knowlm.extraction.schemas import read_schema
from knowlm.prompts import Prompter

EXAMPLES = {
    ("NER", "english"): "person,place,organisation",
    ("RE", "english"): "founded by,headquarters,place of birth",
    ("EE", "english"): "trip:place/time/traveller",
    ("NER", "chinese"): "人物,地点,机构",
    ("RE", "chinese"): "创办者,总部所在地,出生地",
    ("EE", "chinese"): "旅游行程:旅游地点/旅游时间/旅游人员",
}


def main() -> None:
    args = parse_args()
    if args.parse:
        schema = read_schema(args.task, args.schema) if args.schema else []
        for record in read_answers(args.parse):
            line = json.dumps({**record, **vars(parse(args.task, record.pop("output"), schema))}, ensure_ascii=False)
            sys.stdout.buffer.write(line.encode(errors="backslashreplace") + b"\n")  # half a character, as JSON has it
        return
    chosen = {(args.task, args.language): args.schema} if args.task else EXAMPLES
    for (task, language), given in chosen.items():
        schema = read_schema(task, given)
        for variant in range(len(WORDINGS)) if args.variant == "all" else [args.variant]:
            instruction = render(task, schema, args.form, language, variant)
            print(instruction if args.input is None else Prompter().prompt(instruction, args.input))


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--task", choices=TASKS, help="entities, relations or events")
    parser.add_argument(
        "--schema",
        help="comma-separated labels (an event type is written type:role/role), a JSON list, or a file of either",
    )
    parser.add_argument(
        "--language", choices=LANGUAGES, default="english", help="of the instruction (default: english)"
    )
    parser.add_argument(
        "--form",
        choices=FORMS,
        default="tuple",
        metavar="FORM",
        help="how the answer is asked for (default: tuple); "
        + "; ".join(f"{task}: {', '.join(forms_of(task))}" for task in TASKS),
    )
    parser.add_argument(
        "--variant",
        default="all",
        help=f"which wording: a number from 0, or {', '.join(WORDINGS)} (default: all)",
    )
    parser.add_argument("--input", metavar="TEXT", help="print the whole prompt that asks about this text")
    parser.add_argument(
        "--parse",
        metavar="FILE",
        help='read answers instead (- for standard input): JSON or JSONL with "output", or the text of one answer',
    )
    args = parser.parse_args()
    if args.parse and not args.task:
        refuse("--parse needs --task")
    if args.parse and args.input is not None:
        refuse("--parse reads answers, --input asks: give one of them")
    if not args.parse and bool(args.task) != bool(args.schema):
        refuse("--task and --schema go together")
    if args.form not in (forms_of(args.task) if args.task else set.intersection(*(set(forms_of(t)) for t in TASKS))):
        of = f"of {args.task}: {', '.join(forms_of(args.task))}" if args.task else "of every task; give --task"
        refuse(f"--form {args.form} is no form {of}")
    if args.variant in WORDINGS:
        args.variant = WORDINGS.index(args.variant)
    elif args.variant != "all":
        if not (args.variant.isdecimal() and int(args.variant) < len(WORDINGS)):
            refuse(f"--variant {args.variant}: 0 to {len(WORDINGS) - 1}, all, or one of {', '.join(WORDINGS)}")
        args.variant = int(args.variant)
    return args


def read_answers(path: str) -> list[dict]:
    """Records with an "output", as ``finetune/evaluate.py`` takes them; any other text is one answer."""
    raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    text = raw.decode("utf-8-sig", errors="replace")
    for read in (lambda: json.loads(text), lambda: [json.loads(line) for line in text.split("\n") if line.strip()]):
        try:
            records = read()
        except (ValueError, RecursionError):
            continue
        records = records if isinstance(records, list) else [records]
        if records and all(isinstance(row, dict) and isinstance(row.get("output"), str) for row in records):
            return [{name: row[name] for name in ("id", "output") if name in row} for row in records]
    return [{"output": text}]


if __name__ == "__main__":
    run(main)
