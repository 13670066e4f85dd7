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
text[start:end] is the span. Long texts are read in windows that overlap.
"""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from tqdm import tqdm

from knowlm.cli import ArgumentParser, refuse, run
from knowlm.extraction.forms import TASKS
from knowlm.extraction.graph_files import GRAPHS, TABLES, aligned, write_graph, write_table
from knowlm.extraction.grounded import OVERLAP, WINDOW, extract, extract_freely
from knowlm.extraction.windows import LONGEST_WINDOW, NAMES, Extraction, split
from knowlm.files import read_json, read_records, write_jsonl
from knowlm.generation import GenerationSettings


def main() -> None:
    args = parse_args()
    schema = read_schema(args.schema)
    questions = [question | {"task": args.task, "schema": schema} for question in read_texts(args)]
    split(questions, args.window, args.overlap, args.labels_at_once, check_ends=not args.free)  # finds mistakes
    extract_all = extract_by_server if args.server else extract_here
    found: list[Extraction] = [Extraction([], [], "")] * len(questions)
    bar = tqdm(extract_all(args, questions), total=len(questions), desc="texts", disable=None)
    for number, extraction in bar:
        found[number] = extraction
    rows = [as_row(args, question["id"], one) for question, one in zip(questions, found, strict=True)]
    write_jsonl(args.output, rows)
    for path in args.graph:
        write_graph(rows, path)
    for path in args.table:
        print(aligned(rows), end="") if path == "-" else write_table(rows, path)
    print(one_line(args, rows, found), file=sys.stderr if "-" in args.table else sys.stdout)


def parse_args():
    parser = ArgumentParser(__doc__)
    engine = parser.add_mutually_exclusive_group(required=True)
    engine.add_argument("--base_model", help="folder (or hub name) of a model")
    engine.add_argument("--server", help="address of a running inference/launch_vllm.py")
    parser.add_argument("--lora_weights", help="folder of a LoRA adapter for --base_model")
    parser.add_argument("--load_8bit", action="store_true", help="base in int8")
    parser.add_argument("--task", required=True, choices=TASKS, help="entities, relations or events")
    parser.add_argument("--schema", required=True, help="JSON list of labels (EE: of type and roles), or its file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="one text; its id is 1")
    source.add_argument("--input", help='JSON or JSONL of {"id", "text"}')
    parser.add_argument("--output", required=True, help="JSONL file of what is found")
    parser.add_argument(
        "--table", action="append", default=[], help=f"also a table: {', '.join(TABLES)} file, - shows it"
    )
    parser.add_argument("--graph", action="append", default=[], help=f"also a graph: {', '.join(GRAPHS)} file")
    parser.add_argument("--language", choices=["english", "chinese"], help="of the question (default: the text's)")
    parser.add_argument("--threshold", type=float, default=0.0, help="lowest score kept, 0 to 1 (default: 0)")
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
    if not 0 <= args.threshold <= 1 or (args.threshold and args.free):
        refuse("--threshold is from 0 to 1, and without --free: only grounded answers have scores")
    for flag, paths, endings in (("--graph", args.graph, GRAPHS), ("--table", args.table, (*TABLES, ""))):
        for path in paths:
            if Path(path).suffix not in endings or (not Path(path).suffix and path != "-"):
                refuse(f"{flag} {path}: the file's name must end in {', '.join(filter(None, endings))}")
    return args


def read_schema(text: str) -> list:
    """The schema itself, or that of a file; ValueError if it is neither."""
    if not text.lstrip().startswith(("[", "{")):
        return read_json(text)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--schema {text[:60]}: not valid JSON ({error})") from None


def read_texts(args) -> list[dict]:
    language = {"language": args.language} if args.language else {}
    if args.text is not None:
        return [{"id": "1", "text": args.text} | language]
    records = read_records(args.input)
    for number, record in enumerate(records, 1):
        if not isinstance(record.get("text"), str) or not isinstance(record.get("id"), str | int):
            raise ValueError(f'{args.input}, record {number}: needs "id" and a text under "text"')
    if not records:
        raise ValueError(f"{args.input}: holds no texts")
    return [{"id": record["id"], "text": record["text"]} | language for record in records]


def extract_here(args, questions: list[dict]) -> Iterator[tuple[int, Extraction]]:
    from knowlm.models import load_for_generation
    from knowlm.prompts import Prompter

    prompter, settings = Prompter(args.prompt_template), GenerationSettings(max_new_tokens=args.max_new_tokens)
    model, tokenizer = load_for_generation(args.base_model, args.lora_weights, args.load_8bit)
    yield from (extract_freely if args.free else extract)(
        model,
        tokenizer,
        questions,
        prompter,
        settings,
        batch_size=args.batch_size,
        window=args.window,
        overlap=args.overlap,
        labels_at_once=args.labels_at_once,
    )


def extract_by_server(args, questions: list[dict]) -> Iterator[tuple[int, Extraction]]:
    """Several requests are under way at once: the engine answers them together."""
    settings = {"window": args.window, "overlap": args.overlap, "max_tokens": args.max_new_tokens}
    settings |= {"labels_at_once": args.labels_at_once} if args.labels_at_once else {}
    with ThreadPoolExecutor(args.batch_size) as pool:
        asked = {
            pool.submit(ask_server, args.server, {name: q[name] for name in q if name != "id"} | settings): number
            for number, q in enumerate(questions)
        }
        try:
            for future in as_completed(asked):
                yield asked[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def ask_server(server: str, question: dict) -> Extraction:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(
        f"{server.rstrip('/')}/extract", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=3600) as reply:
            answer = json.load(reply)
    except urllib.error.HTTPError as error:
        raise OSError(f"{server}: refused a text: {error.read().decode(errors='replace')[:300]}") from None
    except urllib.error.URLError as error:
        raise OSError(f"{server}: can't be reached ({error.reason}); start inference/launch_vllm.py first") from None
    return Extraction([], answer["items"], "", answer["is_whole"])


def as_row(args, number: str | int, extraction: Extraction) -> dict:
    kept = [r for r in extraction.records if r["score"] is None or r["score"] >= args.threshold]
    return {"id": number, NAMES[args.task]: kept}


def one_line(args, rows: list[dict], found: list[Extraction]) -> str:
    count = sum(len(row[NAMES[args.task]]) for row in rows)
    cut = sum(not one.is_whole for one in found)
    missing = sum(len(one.not_found) for one in found)
    return (
        f"{args.output}: {count} {NAMES[args.task]} in {len(rows)} texts"
        + (f"; {cut} answers were cut off at --max_new_tokens" if cut else "")
        + (f"; {missing} more are not in their text or schema, and left out" if missing else "")
    )


if __name__ == "__main__":
    run(main)
