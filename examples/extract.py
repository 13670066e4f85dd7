"""Extract entities, relations or events that stand in the text, with their offsets.

    python examples/extract.py --base_model ./zhixi --lora_weights ./lora --task NER --schema '["person", "place"]' \\
        --text "Marie Curie was born in Warsaw." --output entities.jsonl
    python examples/extract.py --base_model ./zhixi --task RE --schema relations.json --input articles.jsonl \\
        --output triples.jsonl --table triples.csv --graph triples.ttl --graph triples.png
    python examples/extract.py --server http://127.0.0.1:8090 --task EE \\
        --schema '[{"type": "trip", "roles": ["who", "where"]}]' --text "…" --output events.jsonl

Each token is held to a grammar of the text's own spans and the schema's labels, so every answer parses. Input is JSONL
of {"id", "text"}. Output, a line a text: {"id", "entities": [{"text", "type", "start", "end", "score"}]},
{"id", "relations": [{"head": {"text", "start", "end"}, "relation", "tail", "score"}]} or
{"id", "events": [{"type", "trigger", "arguments": [{"text", "start", "end", "role"}], "score"}]};
text[start:end] is the span, of at most 200 characters. Long texts are read in windows that overlap: entities are given
at every mention, triples where their two names stand nearest in each window. A run that was stopped goes on.
"""

import hashlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import ArgumentParser, refuse, run
from knowlm.extraction.answering import Answerer, answer_all, grounded_answers, server_grounded_answers, weight_times
from knowlm.extraction.forms import TASKS
from knowlm.extraction.graph_files import GRAPHS, TABLES, aligned, write_graph, write_table
from knowlm.extraction.grounded import OVERLAP, WINDOW
from knowlm.extraction.schemas import read_schema
from knowlm.extraction.thresholds import read_threshold
from knowlm.extraction.windows import LONGEST_WINDOW, NAMES, split
from knowlm.files import HALF, locked, read_records, write_jsonl
from knowlm.generation import GenerationSettings

AFTERWARDS = ("output", "threshold", "table", "graph", "batch_size")  # flags that no answer depends on


def main() -> None:
    args = parse_args()
    schema = read_schema(args.task, args.schema)
    texts = read_texts(args)
    questions = [{name: q[name] for name in q if name != "id"} | {"task": args.task, "schema": schema} for q in texts]
    split(questions, args.window, args.overlap, args.labels_at_once)  # finds mistakes
    threshold = read_threshold(args.threshold, [args.task])[args.task] if args.threshold else 0.0
    job = {name: value for name, value in vars(args).items() if name not in AFTERWARDS}
    job["changed"] = weight_times(args.base_model, args.lora_weights)
    job["questions"] = hashlib.sha256(json.dumps(questions).encode()).hexdigest()
    with locked(args.output):
        journal = Path(f"{args.output}.answers")  # not .partial: what writes the output uses that
        found = [json.loads(answer) for answer in answer_all(questions, partial(answerer, args), journal, job)]
        rows = [as_row(args.task, text["id"], one, threshold) for text, one in zip(texts, found, strict=True)]
        for path in args.graph:
            write_graph(rows, path)
        for path in args.table:
            print(aligned(rows), end="") if path == "-" else write_table(rows, path)
        write_jsonl(Path(args.output), rows)
        journal.unlink(missing_ok=True)
    print(one_line(args, rows, found), file=sys.stderr if "-" in args.table else sys.stdout)


def parse_args():
    parser = ArgumentParser(__doc__)
    engine = parser.add_mutually_exclusive_group(required=True)
    engine.add_argument("--base_model", help="folder (or hub name) of a model")
    engine.add_argument("--server", help="address of a running inference/launch_vllm.py")
    parser.add_argument("--lora_weights", help="folder of a LoRA adapter for --base_model")
    parser.add_argument("--load_8bit", action="store_true", help="base in int8")
    parser.add_argument("--task", required=True, choices=TASKS, help="entities, relations or events")
    parser.add_argument(
        "--schema", required=True, help="labels, JSON list (EE: of type and roles) or commas, or a file"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="one text; its id is 1")
    source.add_argument("--input", help='JSON or JSONL of {"id", "text"}')
    parser.add_argument("--output", required=True, help="JSONL file of what is found")
    parser.add_argument(
        "--table", action="append", default=[], help=f"also a table: {', '.join(TABLES)} file, - shows it"
    )
    parser.add_argument("--graph", action="append", default=[], help=f"also a graph: {', '.join(GRAPHS)} file")
    parser.add_argument("--language", choices=["english", "chinese"], help="of the question (default: the text's)")
    parser.add_argument(
        "--threshold", help="lowest score kept: a number, or the report folder of finetune/evaluate.py that fitted it"
    )
    parser.add_argument("--free", action="store_true", help="no grammar: parse the answer, keep what the text holds")
    parser.add_argument("--prompt_template", default="alpaca", help="name in knowlm/templates, or a template's path")
    parser.add_argument("--window", type=int, default=WINDOW, help=f"characters read at once (default: {WINDOW})")
    parser.add_argument("--overlap", type=int, default=OVERLAP, help=f"of two windows, characters (default: {OVERLAP})")
    parser.add_argument("--labels_at_once", type=int, help="of the schema, in a prompt (default: 6 for NER, else 4)")
    parser.add_argument(
        "--max_new_tokens", type=int, default=256, help="most tokens of a window's answer (default: 256)"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="windows answered at once (default: 8)")
    args = parser.parse_args()
    if (args.lora_weights or args.load_8bit) and not args.base_model:
        refuse("--lora_weights and --load_8bit go with --base_model")
    if args.server and (args.free or args.prompt_template != "alpaca"):
        refuse("--free and --prompt_template go with --base_model; the server has its own template")
    if args.server and not args.server.startswith(("http://", "https://")):
        refuse(f"--server {args.server}: an address such as http://127.0.0.1:8090 is needed")
    for name in ("window", "max_new_tokens", "batch_size", "labels_at_once"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            refuse(f"--{name} must be at least 1")
    if args.window > LONGEST_WINDOW or not 0 <= args.overlap < args.window:
        refuse(f"--window is at most {LONGEST_WINDOW} characters, and --overlap less than it")
    if args.threshold and args.free:
        refuse("--threshold goes without --free: only grounded answers have scores")
    outputs = [Path(path).resolve() for path in (args.output, *args.graph, *args.table) if path != "-"]
    inputs = {Path(path).resolve() for path in (args.input, args.schema) if path and os.path.exists(path)}
    if len(set(outputs)) < len(outputs) or inputs.intersection(outputs):
        refuse("--input, --schema, --output, --table and --graph must be different files")
    for path in outputs:
        if path.exists() and not path.is_file():
            refuse(f"{path}: is a {'folder' if path.is_dir() else 'device'}, a file is needed")
    for flag, paths, endings in (("--graph", args.graph, GRAPHS), ("--table", args.table, (*TABLES, ""))):
        for path in paths:
            if Path(path).suffix not in endings or (not Path(path).suffix and path != "-"):
                refuse(f"{flag} {path}: the file's name must end in {', '.join(filter(None, endings))}")
    return args


def read_texts(args) -> list[dict]:
    language = {"language": args.language} if args.language else {}
    if args.text is not None:
        return [{"id": "1", "text": args.text} | language]
    records = read_records(args.input)
    for number, record in enumerate(records, 1):
        if not isinstance(record.get("text"), str) or "id" not in record:
            raise ValueError(f'{args.input}, record {number}: needs "id" and a text under "text"')
        if HALF.search(record["text"]):
            raise ValueError(f"{args.input}, record {number}: holds half a character (a lone surrogate); mend it")
    if not records:
        raise ValueError(f"{args.input}: holds no texts")
    if len({str(record["id"]) for record in records}) < len(records):
        raise ValueError(f"{args.input}: two texts have the same id; give each its own")
    return [{"id": record["id"], "text": record["text"]} | language for record in records]


def answerer(args) -> Answerer:
    """What extracts: a model here, or a server."""
    options = {"window": args.window, "overlap": args.overlap, "labels_at_once": args.labels_at_once}
    if args.server:
        given = {name: value for name, value in options.items() if value is not None}
        return server_grounded_answers(args.server, args.batch_size, max_tokens=args.max_new_tokens, **given)
    from knowlm.models import load_for_generation
    from knowlm.prompts import Prompter

    prompter, settings = Prompter(args.prompt_template), GenerationSettings(max_new_tokens=args.max_new_tokens)
    model, tokenizer = load_for_generation(args.base_model, args.lora_weights, args.load_8bit)
    return grounded_answers(model, tokenizer, prompter, settings, batch_size=args.batch_size, free=args.free, **options)


def as_row(task: str, name: Any, found: dict, threshold: float) -> dict:
    kept = [record for record in found["records"] if record["score"] is None or record["score"] >= threshold]
    return {"id": name, NAMES[task]: kept}


def one_line(args, rows: list[dict], found: list[dict]) -> str:
    count = sum(len(row[NAMES[args.task]]) for row in rows)
    cut = sum(not one["is_whole"] for one in found)
    missing = sum(len(one["not_found"]) for one in found)
    return (
        f"{args.output}: {count} {NAMES[args.task]} in {len(rows)} texts"
        + (f"; {cut} answers were cut off at --max_new_tokens" if cut else "")
        + (f"; {missing} more are not in their text or schema, and left out" if missing else "")
    )


if __name__ == "__main__":
    run(main)
