"""Make extraction instructions from articles and a knowledge graph, by distant supervision.

    python finetune/kg2instructions.py --english finetune/data/encyclopedia/english.jsonl \\
        --chinese finetune/data/encyclopedia/chinese.jsonl --knowledge finetune/data/encyclopedia \\
        --output_dir ./instructions

Input: articles {"title", "text"}, one a line; a folder with entities.tsv, triples.tsv, relations.tsv, types.tsv.
Output: train.json (Alpaca rows for finetune/lora/finetune.py); from other articles heldout.jsonl (cases for
finetune/evaluate.py) and valid.json (the same as rows); evidence.jsonl (where each triple was found); report.json and
report.md. The same input gives the same bytes.
"""

import hashlib
import random
import sys
from collections import Counter, defaultdict
from itertools import chain, zip_longest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from tqdm import tqdm

from knowlm.cli import ArgumentParser, refuse, run
from knowlm.extraction.forms import FORMS, INSTRUCTIONS, render, write_answer
from knowlm.extraction.knowledge import KnowledgeGraph, MentionFinder
from knowlm.extraction.supervision import Piece, find_pieces, gold_entities, gold_relations, schema_for
from knowlm.files import new_folder, read_records, require_new, write_json, write_jsonl, write_text

GOLD = {"NER": gold_entities, "RE": gold_relations}


def main() -> None:
    args = parse_args()
    require_new(args.output_dir)
    graph = KnowledgeGraph(args.knowledge)
    graph.ask_only(filter(None, args.relations.split(",")), filter(None, args.types.split(",")))
    pieces = [
        piece
        for language in ("english", "chinese")
        if getattr(args, language)
        for piece in pieces_of(getattr(args, language), language, graph, args.piece_length)
    ]
    cases: dict[str, list[dict]] = {"train": [], "heldout": []}
    for piece in pieces:
        side = "heldout" if is_held_out(piece.article, args.heldout, args.seed) else "train"
        cases[side] += [case_of(task, piece, graph, args.seed) for task in args.tasks]
    train = balanced(with_few_empty(cases["train"], args.empty_share), args.max_train, args.seed)
    heldout = balanced(with_few_empty(cases["heldout"], args.empty_share), args.max_heldout, args.seed)
    if not train or not heldout:
        raise ValueError(
            f"{args.output_dir}: {len(train)} training and {len(heldout)} held-out examples; "
            "give more articles or another --heldout"
        )
    assert not {case["input"] for case in train} & {case["input"] for case in heldout}
    report = summarise(graph, pieces, train, heldout)
    with new_folder(args.output_dir) as folder:
        for name, rows in (("train", train), ("valid", heldout)):
            write_json(folder / f"{name}.json", [row_of(case, args.form, args.wordings, args.seed) for case in rows])
        write_jsonl(folder / "heldout.jsonl", heldout)
        write_jsonl(
            folder / "evidence.jsonl",
            (
                {"piece": p.id, "article": p.article, "language": p.language, "text": p.text, "triples": p.triples}
                for p in pieces
                if p.triples
            ),
        )
        write_json(folder / "report.json", report)
        write_text(folder / "report.md", as_markdown(report))
    print(
        f"{args.output_dir}: {len(train)} training rows and {len(heldout)} held-out cases "
        f"from {len(pieces)} pieces of text, {report['matched']} of {report['triples']} triples matched"
    )


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--english", help="English articles, JSONL")
    parser.add_argument("--chinese", help="Chinese articles, JSONL")
    parser.add_argument("--knowledge", required=True, help="folder of the knowledge graph")
    parser.add_argument("--output_dir", required=True, help="new folder for the results")
    parser.add_argument("--tasks", default="NER,RE", help="comma-separated, of NER and RE (default: both)")
    parser.add_argument("--relations", default="", help="ids of relations to ask for, comma-separated (default: all)")
    parser.add_argument("--types", default="", help="ids of entity types to ask for, comma-separated (default: all)")
    parser.add_argument("--form", choices=FORMS, default="tuple", help="how answers are written (default: tuple)")
    parser.add_argument("--wordings", type=int, default=3, help="different wordings of an instruction (default: 3)")
    parser.add_argument(
        "--piece_length",
        type=int,
        default=512,
        help="most words (English) or characters (Chinese) of a piece (default: 512)",
    )
    parser.add_argument("--heldout", type=float, default=0.15, help="share of articles held out (default: 0.15)")
    parser.add_argument(
        "--empty_share",
        type=float,
        default=0.1,
        help="examples with nothing to find, as a share of the others (default: 0.1)",
    )
    parser.add_argument("--max_train", type=int, help="most training rows, tasks and languages in equal parts")
    parser.add_argument("--max_heldout", type=int, help="most held-out cases, likewise")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the split, the order and the labels asked for (default: 0)"
    )
    args = parser.parse_args()
    args.tasks = args.tasks.split(",")
    if not args.english and not args.chinese:
        refuse("give --english, --chinese or both")
    if not set(args.tasks) <= GOLD.keys():
        refuse(f"--tasks: {','.join(args.tasks)}; choose from {', '.join(GOLD)}")
    if not 0 < args.heldout < 1 or args.piece_length < 1:
        refuse("--heldout must lie between 0 and 1, --piece_length above 0")
    if args.empty_share < 0 or any(most is not None and most < 1 for most in (args.max_train, args.max_heldout)):
        refuse("--empty_share must be 0 or more, --max_train and --max_heldout 1 or more")
    most = min(len(wordings) for (task, _), wordings in INSTRUCTIONS.items() if task in args.tasks)
    if not 1 <= args.wordings <= most:
        refuse(f"--wordings must be 1 to {most}")
    return args


def pieces_of(path: str, language: str, graph: KnowledgeGraph, length: int) -> list[Piece]:
    finder = MentionFinder(graph, language)
    pieces = []
    for number, article in enumerate(tqdm(read_records(path), desc=language, unit="article", disable=None), 1):
        if not isinstance(article.get("title"), str) or not isinstance(article.get("text"), str):
            raise ValueError(f'{path}, record {number}: needs "title" and "text"')
        pieces += find_pieces(article, language, graph, finder, length)
    return pieces


def is_held_out(article: str, share: float, seed: int) -> bool:
    """By the article's entity, so that its English and Chinese articles lie on one side."""
    digest = hashlib.sha256(f"{seed} {article}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def case_of(task: str, piece: Piece, graph: KnowledgeGraph, seed: int) -> dict:
    gold = GOLD[task](piece, graph)
    schema = schema_for(task, piece, gold, graph, seed)
    return {
        "id": f"{task}-{piece.id}",
        "task": task,
        "language": piece.language,
        "schema": schema,
        "input": piece.text,
        "gold": gold,
    }


def with_few_empty(cases: list[dict], share: float) -> list[dict]:
    """Cases with an answer, and of the empty ones only so many; one with an empty schema asks nothing."""
    full = [case for case in cases if case["gold"]]
    empty = [case for case in cases if not case["gold"] and case["schema"]]
    return full + sorted(empty, key=lambda case: case["id"])[: round(len(full) * share)]


def balanced(cases: list[dict], most: int | None, seed: int) -> list[dict]:
    """Cases in a fixed random order, tasks and languages taking turns; at most ``most``."""
    groups = defaultdict(list)
    for case in cases:
        groups[case["task"], case["language"]].append(case)
    for group in groups.values():
        random.Random(seed).shuffle(group)
    turns = [case for case in chain(*zip_longest(*groups.values())) if case is not None]
    return turns[:most]


def row_of(case: dict, form: str, wordings: int, seed: int) -> dict:
    variant = random.Random(f"{seed} {case['id']}").randrange(wordings)
    return {
        "instruction": render(case["task"], case["schema"], form, case["language"], variant),
        "input": case["input"],
        "output": write_answer(case["task"], case["gold"], form),
    }


def summarise(graph: KnowledgeGraph, pieces: list[Piece], train: list[dict], heldout: list[dict]) -> dict:
    matched = {(t["head"], t["relation"], t["tail"]) for piece in pieces for t in piece.triples}
    relations = Counter(t["relation"] for piece in pieces for t in piece.triples)
    ambiguous = sum(len(mention.candidates) > 1 for piece in pieces for mention, _ in piece.entities)
    return {
        "entities": len(graph.entities),
        "triples": graph.num_triples,
        "matched": len(matched),
        "pieces": len(pieces),
        "pieces_with_triples": sum(bool(piece.triples) for piece in pieces),
        "mentions": sum(len(piece.entities) for piece in pieces),
        "ambiguous_mentions": ambiguous,
        "rows": {
            f"{side} {task} {language}": count
            for side, cases in (("train", train), ("heldout", heldout))
            for (task, language), count in sorted(Counter((c["task"], c["language"]) for c in cases).items())
        },
        "relations": dict(relations.most_common()),
        "examples": [{"input": case["input"], "gold": case["gold"]} for case in heldout[:8]],
    }


def as_markdown(report: dict) -> str:
    figures = [f"| {name} | {value} |" for name, value in report.items() if isinstance(value, int)]
    relations = [f"| {name} | {count} |" for name, count in report["relations"].items()]
    examples = [
        f"- {example['input']}\n  - " + "\n  - ".join(" · ".join(item.values()) for item in example["gold"])
        for example in report["examples"]
        if example["gold"]
    ]
    return "\n".join(
        [
            "# Instructions from a knowledge graph",
            "",
            "| figure | count |",
            "|---|---|",
            *figures,
            "",
            "| rows | count |",
            "|---|---|",
            *(f"| {k} | {v} |" for k, v in report["rows"].items()),
            "",
            "## Matches per relation",
            "",
            "| relation | matches |",
            "|---|---|",
            *relations,
            "",
            "## Examples held out",
            "",
            *examples,
            "",
        ]
    )


if __name__ == "__main__":
    run(main)
