"""Turn extraction and instruction data from one published form into another.

    python finetune/convert_data.py --input iepile.json --from iepile --to alpaca --output train.jsonl
    python finetune/convert_data.py --input instructie.jsonl --from instructie --to alpaca --ask hard --output t.jsonl
    python finetune/convert_data.py --input heldout.jsonl --from cases --to iepile --output heldout_iepile.jsonl

Forms: cases (finetune/evaluate.py's), iepile, instructie (also records with "entity" or "event"), ccks (CCKS2023),
alpaca (finetune/lora/finetune.py's rows), sharegpt and messages (chats: one becomes the other turn by turn). Input is
JSONL or a JSON list, and so is the output, by its suffix. What has a schema can become anything; so can rows with
instructions of examples/ie_prompt.py.
"""

import itertools
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from tqdm import tqdm

from knowlm.cli import ArgumentParser, refuse, run
from knowlm.extraction.cases import case_of_row, check_case, in_our_words, row_of, schema_labels
from knowlm.extraction.forms import FORMS
from knowlm.extraction.label_batches import FewEmpty, batched, confusable, label_of, spans_of
from knowlm.extraction.published_data import (
    CHATS,
    READERS,
    convert_chat,
    read_chat,
    write_annotated,
    write_ccks,
    write_chat,
    write_iepile,
)
from knowlm.files import iterate_records, locked, read_json, require_file, write_records

ROWS = ("alpaca", *CHATS)  # an instruction and its answer; the others are cases
ENOUGH_SPANS = 1000  # of a label, to compare it with others
KINDS = ("cases", *READERS, *ROWS)


def main() -> None:
    args = parse_args()
    require_file(args.input)
    if args.to in CHATS and args.source in CHATS:
        written = chats(args)
    elif args.to in ROWS and args.source in ROWS:
        written = write_rows(read_rows(args), args.to)
    else:
        written = write_cases(args, asked_cases(args))
    written = iter(tqdm(written, desc=args.to, unit="record", disable=None))
    first = next(written, None)
    if first is None:
        raise ValueError(f"{args.input}: gives no {args.to} record")
    with locked(args.output):
        count = write_records(args.output, itertools.chain([first], written))
    print(f"{args.output}: {count} records as {args.to}")


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--input", required=True, help="JSONL or JSON list")
    parser.add_argument("--from", dest="source", required=True, choices=KINDS, help="form of the input")
    parser.add_argument("--to", required=True, choices=KINDS, help="form of the output")
    parser.add_argument("--output", required=True, help="file to write; .json: a list, else one record a line")
    parser.add_argument("--tasks", default="NER,RE,EE", help="cases of these alone (default: NER,RE,EE)")
    parser.add_argument(
        "--form",
        default="tuple",
        help=f"how answers are written, or several, drawn at random: {', '.join(FORMS)} (tuple)",
    )
    parser.add_argument(
        "--wordings", type=int, default=1, help="different wordings of an instruction, drawn at random (default: 1)"
    )
    parser.add_argument(
        "--ask",
        choices=["given", "hard", "all"],
        default="given",
        help="which labels are asked for: those given; those of the answer, confusable and a few other ones; all of "
        "the data; the latter two 6 (NER) or 4 at once (default: given)",
    )
    parser.add_argument(
        "--hard_negatives", help="own table of confusable labels, JSON {label: [labels]}, for --ask hard"
    )
    parser.add_argument(
        "--empty_share",
        type=float,
        help="most examples without an answer, for each with one: 2 or 3 (default: keep all)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of wordings and batches (default: 0)")
    args = parser.parse_args()
    if args.to in ROWS and args.source in ROWS and (args.ask != "given" or args.empty_share is not None):
        refuse("--ask and --empty_share need a schema, which chats and alpaca rows don't tell")
    if not set(args.tasks.split(",")) <= {"NER", "RE", "EE"}:
        refuse(f"--tasks {args.tasks}: of NER, RE, EE, with commas between")
    if args.hard_negatives and args.ask != "hard":
        refuse("--hard_negatives goes with --ask hard")
    if args.empty_share is not None and args.empty_share < 0:
        refuse("--empty_share must be 0 or more")
    if not set(args.form.split(",")) <= set(FORMS):
        refuse(f"--form {args.form}: forms are {', '.join(FORMS)}")
    if args.wordings < 1:
        refuse("--wordings must be 1 or more")
    if Path(args.input).resolve() == Path(args.output).resolve():
        refuse("--output is the input; name another file")
    return args


@contextmanager
def naming(path: str, number: int) -> Iterator[None]:
    """Name the record that isn't of the form it should have."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path}, record {number}: lacks {error}; is --from right?") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}, record {number}: {error}; is --from right?") from None


def chats(args) -> Iterator[dict]:
    for number, record in enumerate(iterate_records(args.input), 1):
        with naming(args.input, number):
            yield convert_chat(record, CHATS[args.to])


def read_rows(args) -> Iterator[dict]:
    for number, record in enumerate(iterate_records(args.input), 1):
        with naming(args.input, number):
            if args.source in CHATS:
                yield from read_chat(record, number)
            else:
                row = {field: record[field] for field in ("instruction", "output")}
                row = {"instruction": row["instruction"], "input": record.get("input") or "", "output": row["output"]}
                if not all(isinstance(text, str) for text in row.values()):
                    raise ValueError("instruction, input and output must be texts")
                yield row


def read_cases(args) -> Iterator[dict]:
    for number, record in enumerate(iterate_records(args.input), 1):
        with naming(args.input, number):
            if args.source == "cases":
                found: Iterable[dict] = [in_our_words(record)]
            elif args.source in READERS:
                found = READERS[args.source](record, number)
            else:
                rows = read_chat(record, number) if args.source in CHATS else [record]
                found = [case_of_row(row, f"{number}-{i}") for i, row in enumerate(rows)]
            for case in found:
                check_case(case)
                if case["task"] in args.tasks.split(","):
                    yield case


def asked_cases(args) -> Iterator[dict]:
    """Cases with the labels to ask for, and not too many of them empty."""
    cases: Iterator[dict] = read_cases(args)
    if args.ask != "given":
        schemas, near = labels_of_data(args)
        cases = itertools.chain.from_iterable(
            batched(case, list(schemas[kind].values()), near[kind], args.seed, every_label=args.ask == "all")
            for case in cases
            for kind in [(case["task"], case["language"])]
        )
    return filter(FewEmpty(args.empty_share), cases) if args.empty_share is not None else cases


def labels_of_data(args) -> tuple[dict, dict]:
    """All labels of each task and language, as a schema has them, and which are confusable; reads the whole input."""
    schemas: dict[tuple, dict] = defaultdict(dict)
    spans: dict[tuple, dict] = defaultdict(dict)
    for case in tqdm(read_cases(args), desc="labels", unit="case", disable=None):
        kind = (case["task"], case["language"])
        for name, label in zip(schema_labels(case), case["schema"], strict=True):
            if isinstance(label, dict):
                known = schemas[kind].setdefault(name, {"type": name, "roles": []})
                known["roles"] += [role for role in label["roles"] if role not in known["roles"]]
            else:
                schemas[kind][name] = label
            spans[kind].setdefault(name, set())
        for item in case["gold"]:
            found = spans[kind].setdefault(label_of(item, case["task"]), set())
            if len(found) < ENOUGH_SPANS:
                found.update(spans_of(item, case["task"]))
    own = None
    if args.hard_negatives:
        own = flattened(read_json(args.hard_negatives))
        if own is None:
            raise ValueError(f"{args.hard_negatives}: is no table of labels; JSON {{label: [labels]}} is needed")
    return schemas, {kind: confusable(found) if own is None else own for kind, found in spans.items()}


def flattened(table) -> dict[str, list[str]] | None:
    """``{label: [labels]}`` of a table that may have them by task and source, as IEPile's; None if it is none."""
    if not isinstance(table, dict):
        return None
    found: dict[str, list[str]] = {}
    for name, value in table.items():
        part = {name: value} if isinstance(value, list) else flattened(value)
        if part is None:
            return None
        for label, others in part.items():
            found.setdefault(label, []).extend(others)
    return found


def write_cases(args, cases: Iterator[dict]) -> Iterator[dict]:
    if args.to == "cases":
        return cases
    if args.to == "instructie":
        return write_annotated(cases)
    cases = (case for case in cases if case["schema"])  # the others ask for nothing
    if args.to == "iepile":
        return map(write_iepile, cases)
    if args.to == "ccks":
        return map(write_ccks, cases)
    return write_rows((row_of(case, args.form.split(","), args.wordings, args.seed) for case in cases), args.to)


def write_rows(rows: Iterator[dict], kind: str) -> Iterator[dict]:
    return rows if kind == "alpaca" else (write_chat(row, CHATS[kind]) for row in rows)


if __name__ == "__main__":
    run(main)
