"""Clean raw text: keep documents of a language that are worth training on, each once.

    python pretrain/clean.py --file_path a.jsonl 'b/*.jsonl.gz' --output_dir ./clean --language chinese
    python pretrain/clean.py --file_path '/data/*.parquet' --output_dir /data/clean --language auto \\
        --executor slurm --partition cpu --tasks 200
    python pretrain/preprocess.py --mode write --file_path './clean/documents/*.jsonl' ...

Input: as for preprocess.py. Output: OUTPUT_DIR/documents/*.jsonl, which preprocess.py reads; removed/REASON/*.jsonl;
rejected/*.jsonl, lines that can't be read; report.md, .json and .png: what was removed and why, with examples; these
and documents/ come last, when all is whole.
A document that is kept is unchanged. A killed run goes on when its command is repeated; the result is the same,
whatever the number of workers. While it runs it needs room for the text twice.

Steps, for --skip:
  language           fastText's language identification (Chinese and English)
  harmful            documents full of words of a list
  gopher_repetition  repeated lines and n-grams (Chinese and English)
  gopher_quality     words, symbols, stop words (English)
  c4                 sentences, braces, policies (English)
  fineweb            ends of lines, short lines, lists (Chinese and English)
  chinese            share of Chinese characters, symbols, advertisements
  code               long lines, few letters
  exact, near        duplicates: of each group the first stays
"""

import argparse
import hashlib
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from datatrove.pipeline.filters import LambdaFilter
from loguru import logger

from knowlm.cleaning import (
    REMOVED,
    CountingWriter,
    DocumentFilter,
    Source,
    SourceReader,
    WorkRemover,
    count_tasks,
    find_formats,
    plan_tasks,
)
from knowlm.cleaning_report import ReportWriter, summarize
from knowlm.cli import ArgumentParser, run
from knowlm.corpus_builder import Recipe
from knowlm.deduplication import MOST_TASKS, deduplication_stages
from knowlm.executor_flags import add_executor_flags, check_executor_flags
from knowlm.executors import Stage, run_stages
from knowlm.files import locked, read_json, require_new, require_space, write_json
from knowlm.quality import HarmfulWords
from knowlm.sources import find_sources

WORD_LISTS = Path(__file__).resolve().parent / "data" / "word_lists"
STEPS = ["language", "harmful", "gopher_repetition", "gopher_quality", "c4", "fineweb", "chinese", "code"]
STEPS += ["exact", "near"]


def main() -> None:
    args = parse_args()
    folder = Path(args.output_dir)
    sources = find_formats(find_sources(args.file_path), args.input_format)
    harmful = None if "harmful" in args.skip else HarmfulWords(args.word_lists)
    tasks = args.tasks or count_tasks(sources)
    settings = settings_of(args, sources, tasks, harmful)
    if folder.is_file():
        require_new(folder)
    with locked(folder / "work"):
        take_folder(folder, settings)
        if not (folder / "report.json").exists():
            require_space(folder, 2 * sum(Path(source.path).stat().st_size for source in sources))
        logger.remove()  # datatrove warns of what doesn't matter here; its own files have it all
        stages = stages_of(args, folder.absolute(), sources, tasks, harmful, settings)
        is_done = run_stages(stages, args, folder.absolute() / "work" / "logs")
    if is_done:
        print(summarize(folder))
    else:
        print(f"{folder}: jobs are submitted, squeue shows them; this command, repeated, goes on or tells the result")


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--file_path", nargs="+", required=True, help="text files or globs, one document a line")
    parser.add_argument("--output_dir", required=True, help="folder for everything that is made")
    parser.add_argument(
        "--language",
        choices=["chinese", "english", "code", "auto"],
        required=True,
        help="documents to keep; auto: all three, each by its own rules",
    )
    parser.add_argument("--skip", default="", help="comma-separated steps to leave out")
    parser.add_argument(
        "--min_words",
        type=int,
        default=20,
        help="shorter documents are removed, Chinese ones by characters (default: 20; Gopher takes 50, for web pages)",
    )
    parser.add_argument(
        "--min_sentences",
        type=int,
        default=2,
        help="English documents with fewer are removed (default: 2; C4 takes 5, for web pages)",
    )
    parser.add_argument(
        "--word_lists",
        default=str(WORD_LISTS),
        metavar="DIR",
        help="folder of .txt files, an entry a line (default: pretrain/data/word_lists)",
    )
    parser.add_argument(
        "--input_format", choices=["text", "json"], help="what a line is (default: what each file's first line is)"
    )
    parser.add_argument("--text_fields", default="", help="comma-separated JSON fields to join, if not the usual ones")
    parser.add_argument("--text_template", default="", help=r'or a text with fields in it: "{title}\n{content}"')
    add_executor_flags(parser, "parts to cut the input into (default: by its size)")
    args = parser.parse_args()
    args.skip = sorted(name.strip() for name in args.skip.split(",") if name.strip())
    if unknown := set(args.skip) - set(STEPS):
        parser.error(f"--skip {', '.join(sorted(unknown))}: no such step (choose from {', '.join(STEPS)})")
    if args.tasks and args.tasks > MOST_TASKS:
        parser.error(f"--tasks must be at most {MOST_TASKS}")
    if args.min_words < 1 or args.min_sentences < 1:
        parser.error("--min_words and --min_sentences must be at least 1")
    if args.text_fields and args.text_template:
        parser.error("--text_fields and --text_template exclude each other")
    check_executor_flags(parser, args)
    return args


def recipe_of(args: argparse.Namespace) -> Recipe:
    fields = [name.strip() for name in args.text_fields.split(",") if name.strip()]
    template = args.text_template.replace(r"\n", "\n").replace(r"\t", "\t")
    return Recipe(do_keep_newlines=True, text_fields=fields, text_template=template)


def settings_of(args: argparse.Namespace, sources: list[Source], tasks: int, harmful: HarmfulWords | None) -> dict:
    """What the result depends on."""
    files = [(source, Path(source.path).stat()) for source in sources]
    recipe = recipe_of(args)
    return {
        "file_path": [asdict(source) | {"bytes": stat.st_size, "changed": stat.st_mtime_ns} for source, stat in files],
        "language": args.language,
        "skip": args.skip,
        "min_words": args.min_words,
        "min_sentences": args.min_sentences,
        "word_lists": hashlib.sha256("\n".join(harmful.entries).encode()).hexdigest() if harmful else None,
        "text_fields": recipe.text_fields,
        "text_template": recipe.text_template,
        "tasks": tasks,
    }


def take_folder(folder: Path, settings: dict) -> None:
    """Note the settings in a new folder; refuse one of other settings, or of other things."""
    path = folder / "work" / "settings.json"
    if path.exists():
        old = read_json(path)
        if other := [name for name in settings if settings[name] != old.get(name)]:
            other = ["file_path, or changed files" if name == "file_path" else name for name in other]
            raise ValueError(
                f"{folder}: was begun with another {', '.join(other)}; repeat that command or name another --output_dir"
            )
    elif {found.name for found in folder.rglob("*")} - {"work", "work.lock", "settings.json.partial"}:
        require_new(folder)
    write_json(path, settings)


def stages_of(
    args: argparse.Namespace,
    folder: Path,
    sources: list[Source],
    tasks: int,
    harmful: HarmfulWords | None,
    settings: dict,
) -> list[Stage]:
    judge = [
        SourceReader(sources, plan_tasks(sources, tasks), recipe_of(args), folder),
        DocumentFilter(
            args.language,
            set(args.skip),
            LambdaFilter(harmful) if harmful else None,
            args.min_words,
            args.min_sentences,
            exclusion_writer=CountingWriter(folder, REMOVED, "alone"),
        ),
        CountingWriter(folder, "work/judged", "judged"),
    ]
    exact, near = "exact" not in args.skip, "near" not in args.skip
    return [
        Stage("1_judge", judge, tasks),
        *deduplication_stages(folder, sources, tasks, exact, near),
        Stage("8_report", [ReportWriter(folder, settings)]),
        Stage("9_tidy", [WorkRemover(folder / "work")]),
    ]


if __name__ == "__main__":
    run(main)
