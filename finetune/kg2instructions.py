"""Make extraction instructions from texts and a knowledge graph, by distant supervision.

    python finetune/kg2instructions.py --english finetune/data/encyclopedia/english.jsonl \\
        --chinese finetune/data/encyclopedia/chinese.jsonl --knowledge finetune/data/encyclopedia \\
        --output_dir ./instructions
    python finetune/kg2instructions.py --texts texts/*.jsonl.gz notes.txt --knowledge latest-all.json.bz2 \\
        --database wikidata.db --num_workers 16 --output_dir ./instructions

Texts: JSON lines with "text" (and "title", and "links" [{"start", "end", "target"}]), or plain: a document a line.
Knowledge: a folder of tables (finetune/data/encyclopedia/README.md), head<TAB>relation<TAB>tail (.tsv), objects with
head, relation, tail (.jsonl), N-Triples (.nt), Wikidata's dump (.json); also .gz, .bz2, .zst. It is streamed into one
SQLite file, which is used again while its sources stay the same.
Output: train.json (Alpaca rows for finetune/lora/finetune.py) and the same as cases, train.jsonl; from other documents
heldout.jsonl (cases for finetune/evaluate.py) and valid.json (the same as rows); evidence.jsonl (where each triple was
found); report.json and report.md. The same input gives the same bytes, with any number of workers.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from tqdm import tqdm

from knowlm.cli import ArgumentParser, refuse, run
from knowlm.extraction.cases import row_of
from knowlm.extraction.forms import FORMS, INSTRUCTIONS, TASKS, forms_of
from knowlm.files import (
    locked,
    new_folder,
    read_records,
    require_file,
    require_new,
    write_json,
    write_jsonl,
    write_records,
    write_text,
)
from knowlm.sources import find_sources
from knowlm.supervision.case_store import CaseStore
from knowlm.supervision.documents import Unread, unread_documents
from knowlm.supervision.entailment import EntailmentFilter
from knowlm.supervision.graph import KnowledgeGraph, telling_of_disk
from knowlm.supervision.graph_builder import build_database, schema_for_graph
from knowlm.supervision.graph_readers import graph_inputs, reader_of
from knowlm.supervision.names import name_finders
from knowlm.supervision.report import Figures, as_markdown
from knowlm.supervision.workers import Supervisor, find_all


def main() -> None:
    args = parse_args()
    require_new(args.output_dir)
    sources = text_sources(args)
    knowledge = [Path(path) for path in args.knowledge]
    for path in knowledge:
        reader_of(path)
        graph_inputs(path)
    predictions = read_predictions(args.add_predictions) if args.add_predictions else {}
    entailment = EntailmentFilter(args.entailment_model, args.min_entailment) if args.entailment_model else None
    database = Path(args.database or f"{args.output_dir.rstrip('/')}.db")
    build_database(knowledge, args.schema, database)
    schema = schema_for_graph(knowledge, args.schema)
    graph = KnowledgeGraph(database, schema)
    schema.ask_only(filter(None, args.relations.split(",")), filter(None, args.types.split(",")))
    if "NER" in args.tasks and not schema.asked_types:
        tell_of_types(args)
    languages = {language for _, language in sources}
    finders = name_finders(graph.connection, ["english", "chinese"] if "auto" in languages else sorted(languages))
    figures = Figures(graph, finders)
    graph.connection.close()
    supervisor = Supervisor(
        database, schema, finders, args.tasks, args.piece_length, args.seed, args.min_margin, predictions, entailment
    )
    with locked(args.output_dir), telling_of_disk(args.output_dir), new_folder(args.output_dir) as folder:
        store = CaseStore(folder / "cases.db", args.seed)
        found = find_all(documents(args, sources), supervisor, args.num_workers)
        not_entailed: Counter[str] = Counter()
        write_jsonl(folder / "evidence.jsonl", collect(found, store, figures, not_entailed, args))
        for side, most in (("train", args.max_train), ("heldout", args.max_heldout)):
            figures.rows[side] = store.choose(side, args.empty_share, most)
        train, heldout = (figures.rows[side].total() for side in ("train", "heldout"))
        if not train or (args.heldout and not heldout):
            raise ValueError(
                f"{args.output_dir}: {train} training and {heldout} held-out examples; "
                "give more texts, a graph that names what they name, or another --heldout (0: hold none out)"
            )
        for side, rows in (("train", "train.json"), ("heldout", "valid.json")):
            write_jsonl(folder / f"{side}.jsonl", store.chosen(side))
            cases = store.chosen(side)
            write_records(folder / rows, (row_of(case, args.form, args.wordings, args.seed) for case in cases))
        report = figures.report(store.num_facts(), list(islice(store.chosen("heldout"), 8)))
        if entailment:
            report |= {
                "not_entailed": not_entailed.total(),
                "not_entailed_by_relation": dict(not_entailed.most_common()),
            }
        store.close()
        (folder / "cases.db").unlink()
        write_json(folder / "report.json", report)
        write_text(folder / "report.md", as_markdown(report))
    print(
        f"{args.output_dir}: {train} training rows and {heldout} held-out cases "
        f"from {report['pieces']} pieces of text, {report['matched']} of {report['triples']} triples matched"
    )


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--texts", nargs="+", default=[], help="files or globs of texts, JSON lines or plain")
    parser.add_argument("--english", help="a file of English texts")
    parser.add_argument("--chinese", help="a file of Chinese texts")
    parser.add_argument(
        "--language", choices=("auto", "english", "chinese"), default="auto", help="of --texts (default: by document)"
    )
    parser.add_argument("--text_fields", default="", help="fields of JSON lines, comma-separated (default: text)")
    parser.add_argument("--whole_files", action="store_true", help="each of --texts is one plain document")
    parser.add_argument("--knowledge", nargs="+", required=True, help="the graph: a folder of tables, or files")
    parser.add_argument(
        "--schema", help="folder with relations.tsv, types.tsv …: what to ask for (default: the graph's)"
    )
    parser.add_argument("--database", help="SQLite file that the graph is put in (default: OUTPUT_DIR.db)")
    parser.add_argument("--output_dir", required=True, help="new folder for the results")
    parser.add_argument("--tasks", default="NER,RE", help=f"comma-separated, of {', '.join(TASKS)} (default: NER,RE)")
    parser.add_argument("--relations", default="", help="ids of relations to ask for, comma-separated (default: all)")
    parser.add_argument("--types", default="", help="ids of entity types to ask for, comma-separated (default: all)")
    parser.add_argument(
        "--form",
        default="tuple",
        help=f"how answers are written; of several one is drawn: {', '.join(FORMS)} (default: tuple)",
    )
    parser.add_argument("--wordings", type=int, default=3, help="different wordings of an instruction (default: 3)")
    parser.add_argument(
        "--piece_length",
        type=int,
        default=512,
        help="most words (English) or characters (Chinese) of a piece (default: 512)",
    )
    parser.add_argument(
        "--min_margin",
        type=int,
        default=0,
        help="leave out ambiguous names decided by less; 1: only those that nothing decided (default: 0)",
    )
    parser.add_argument("--add_predictions", help='answers of a tuned model, {"id", "output"}: their triples are added')
    parser.add_argument(
        "--entailment_model",
        help='folder of a classification model with a label "entailment": only facts that it finds stated stay',
    )
    parser.add_argument(
        "--min_entailment", type=float, default=0.5, help="least probability of a fact that stays (default: 0.5)"
    )
    parser.add_argument(
        "--heldout", type=float, default=0.15, help="share of documents held out; 0: none (default: 0.15)"
    )
    parser.add_argument(
        "--empty_share",
        type=float,
        default=0.1,
        help="examples with nothing to find, as a share of the others; at most 2 to 3 is usual (default: 0.1)",
    )
    parser.add_argument("--max_train", type=int, help="most training rows, tasks and languages in equal parts")
    parser.add_argument("--max_heldout", type=int, help="most held-out cases, likewise")
    parser.add_argument("--num_workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the split, the order and the labels asked for (default: 0)"
    )
    args = parser.parse_args()
    args.tasks, args.form = args.tasks.split(","), args.form.split(",")
    if not args.english and not args.chinese and not args.texts:
        refuse("give --texts, --english or --chinese")
    for flag, given, known in (("tasks", args.tasks, TASKS), ("form", args.form, FORMS)):
        if not set(given) <= set(known):
            refuse(f"--{flag}: {','.join(given)}; choose from {', '.join(known)}")
    for task in args.tasks:
        if not set(args.form) & set(forms_of(task)):
            refuse(f"--form {','.join(args.form)}: {task} answers are written as {', '.join(forms_of(task))}")
    if args.database and Path(args.output_dir).resolve() in Path(args.database).resolve().parents:
        refuse(f"--database {args.database}: lies in --output_dir, which is made new; name another place")
    if not 0 <= args.heldout < 1 or args.piece_length < 1 or args.num_workers < 1:
        refuse("--heldout must be 0 or more and below 1, --piece_length and --num_workers above 0")
    if not 0 <= args.min_entailment <= 1:
        refuse("--min_entailment must lie between 0 and 1")
    if args.empty_share < 0 or any(most is not None and most < 1 for most in (args.max_train, args.max_heldout)):
        refuse("--empty_share must be 0 or more, --max_train and --max_heldout 1 or more")
    most = min(len(wordings) for (task, _), wordings in INSTRUCTIONS.items() if task in args.tasks)
    if not 1 <= args.wordings <= most:
        refuse(f"--wordings must be 1 to {most}")
    return args


def text_sources(args) -> list[tuple[Path, str]]:
    """(file, language) of all texts."""
    sources = [(path, args.language) for path in find_sources(args.texts)]
    for language in ("english", "chinese"):
        if getattr(args, language):
            sources.append((require_file(getattr(args, language)), language))
    return sources


def documents(args, sources: list[tuple[Path, str]]) -> Iterator[Unread]:
    fields = [name for name in args.text_fields.split(",") if name]
    for path, language in sources:
        read = unread_documents(path, language, fields, args.whole_files)
        yield from tqdm(read, desc=path.name, unit=" documents", disable=None)


def tell_of_types(args) -> None:
    """Say that a graph without types gives no entities to ask for; raise ValueError if nothing else is asked."""
    message = (
        f"{' '.join(args.knowledge)}: gives no entity a type that is asked for, so there are no NER examples; add a "
        '.jsonl to --knowledge with a line for each entity, {"id": "Paris", "type": "place"}'
    )
    if args.tasks == ["NER"]:
        raise ValueError(f"{message}, or give --tasks RE")
    print(message, file=sys.stderr)


def read_predictions(path: str) -> dict[str, list[str]]:
    """Raw answers by piece, of cases with ids as ``RE-PIECE``."""
    answers: dict[str, list[str]] = {}
    for number, row in enumerate(read_records(path), 1):
        if not isinstance(row.get("output"), str) or not isinstance(row.get("id"), str):
            raise ValueError(f'{path}, record {number}: needs "id" and a text under "output"')
        task, _, piece = row["id"].partition("-")
        if task == "RE":
            answers.setdefault(piece, []).append(row["output"])
    if not answers:
        raise ValueError(f"{path}: no answer to a case RE-…; ask a model the cases of train.jsonl with evaluate.py")
    return answers


def collect(found: Iterator, store: CaseStore, figures: Figures, not_entailed: Counter, args) -> Iterator[dict]:
    """Store the cases of all pieces, count, and give back the evidence; a text that came before is left out."""
    for batch in found:
        for piece in batch:
            if store.is_new(piece.id):
                side = "heldout" if is_held_out(piece.document, args.heldout, args.seed) else "train"
                for case in piece.cases:
                    store.add_case(side, case)
                figures.add(piece)
                not_entailed.update(piece.not_entailed)
                if piece.evidence:
                    for triple in piece.evidence["triples"]:
                        if triple.get("from") != "prediction":  # a model's triples are none of the graph's
                            store.add_fact(triple["head"], triple["relation"], triple["tail"])
                    yield piece.evidence


def is_held_out(document: str, share: float, seed: int) -> bool:
    """By the document's entity, so that its English and Chinese texts lie on one side."""
    digest = hashlib.sha256(f"{seed} {document}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


if __name__ == "__main__":
    run(main)
