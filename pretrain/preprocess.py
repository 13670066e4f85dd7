"""Turn raw text into a packed corpus, join corpora, look into one.

    python pretrain/preprocess.py --mode write --file_path pretrain/data/chinese_poems.jsonl --language chinese \\
        --do_split_sentences --do_keep_newlines --seq_length 1024 --tokenizer_path ./converted \\
        --save_path ./data --save_prefix poems
    python pretrain/preprocess.py --mode merge --merge_path_prefix "['data/poems','data/code']" \\
        --merge_path_type "[0,1]" --new_path_prefix data/merged
    python pretrain/preprocess.py --mode read --read_path_prefix data/merged --tokenizer_path ./converted
    python pretrain/preprocess.py --mode stats --read_path_prefix data/merged
    python pretrain/preprocess.py --mode remove --read_path_prefix data/merged --new_path_prefix data/without \\
        --remove_documents pretrain/data/chinese_poems.jsonl:3

Input: one document a line, plain text or JSON, also .gz, .zst and .parquet. Output: PREFIX.bin .idx .dis .tmp .json
.ledger (see knowlm/corpus.py) and PREFIX.rejected.jsonl, if lines had to be left out. A document is encoded as a whole,
cut at ends of sentences, and packed greedily into samples of --seq_length tokens. A killed run goes on when its command
is repeated; the result is the same, whatever the number of workers. --tasks N builds so many parts and joins them;
--executor spreads them over a cluster: again the same corpus.
"""

import argparse
import ast
import glob
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

import numpy as np

from knowlm.cli import ArgumentParser, run
from knowlm.corpus import LENGTH, REJECTED, Corpus, merge_corpora
from knowlm.corpus_builder import Recipe
from knowlm.corpus_removal import remove_samples, samples_of_numbers
from knowlm.corpus_tasks import Work, build_corpus, stages_of
from knowlm.executor_flags import add_executor_flags, check_executor_flags
from knowlm.files import locked, replacing
from knowlm.sources import KNOWN_FIELDS, find_sources
from knowlm.tokenization import CorpusTokenizer


def main() -> None:
    args = parse_args()
    {"write": write, "merge": merge, "read": read, "stats": stats, "remove": remove}[args.mode](args)


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    usual = ", or ".join("+".join(fields) for fields in KNOWN_FIELDS)
    parser.add_argument("--mode", choices=["write", "merge", "read", "stats", "remove"], required=True)
    group = parser.add_argument_group("write")
    group.add_argument("--file_path", nargs="+", help="text files or globs, one document a line, plain or JSON")
    group.add_argument(
        "--input_format", choices=["text", "json"], help="what a line is (default: what each file's first line is)"
    )
    group.add_argument(
        "--language",
        choices=["english", "chinese", "code", "auto"],
        default="english",
        help="how sentences end; chinese also suits mixed text, auto looks at each document (default: english)",
    )
    group.add_argument("--do_split_sentences", action="store_true", help="cut at ends of sentences, not anywhere")
    group.add_argument(
        "--do_keep_newlines", action="store_true", help="keep line breaks; else a space, in Chinese nothing"
    )
    group.add_argument(
        "--tokenize",
        choices=["document", "sentence"],
        default="document",
        help="encode documents as wholes, or each sentence on its own as in 2023, to add to corpora of that time: the "
        "same bytes (default: document)",
    )
    group.add_argument("--seq_length", type=int, default=1024, help="most tokens in a sample (default: 1024)")
    group.add_argument(
        "--overlap",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let a short last sample of a document reach back over sentences that were used (default: yes)",
    )
    group.add_argument(
        "--min_sample_tokens", type=int, default=20, help="samples of so many tokens or fewer are dropped (default: 20)"
    )
    group.add_argument("--tokenizer_path", help="tokenizer.model, tokenizer.json, or the folder of a model")
    group.add_argument(
        "--text_fields", default="", help=f"comma-separated JSON fields to join, if not the usual ones: {usual}"
    )
    group.add_argument("--text_template", default="", help=r'or a text with fields in it: "{title}\n{content}"')
    group.add_argument("--save_path", default=".", help="folder for the corpus (default: .)")
    group.add_argument("--save_prefix", help="name of the corpus in that folder")
    group.add_argument("--num_per_doc", type=int, default=-1, help="most samples from one document; -1: all")
    group.add_argument("--strict", action="store_true", help="stop at a line that can't be read")
    group.add_argument("--no-ledger", action="store_true", help="don't keep where samples come from, 28 bytes each")
    add_executor_flags(parser, "parts to share the files out to; a file isn't cut (default: one for each file)")
    group = parser.add_argument_group("merge")
    group.add_argument("--merge_path_prefix", help="list of corpus prefixes: \"['a','b']\"")
    group.add_argument("--merge_path_type", help='list of type numbers, equal for one type of data: "[0,1]"')
    group.add_argument("--new_path_prefix", help="prefix of the new corpus")
    group = parser.add_argument_group("remove")
    group.add_argument(
        "--remove_samples", nargs="+", default=[], metavar="N", help="numbers, ranges, @FILE of them: 7 10-20"
    )
    group.add_argument(
        "--remove_documents",
        nargs="+",
        default=[],
        metavar="FILE:LINE",
        help="documents: a.jsonl:7-9",
    )
    group.add_argument(
        "--proof_tokens", type=int, default=50, help="a run of so many removed tokens must not be left (default: 50)"
    )
    group.add_argument("--remove_copies", action="store_true", help="remove samples that hold such a run, too")
    group = parser.add_argument_group("read, stats, remove")
    group.add_argument("--read_path_prefix", help="prefix of a corpus")
    group.add_argument("--sample", type=int, default=0, help="first sample to show (default: 0)")
    group.add_argument(
        "--num_samples",
        type=int,
        default=3,
        help="samples to show (default: 3); with --tokenizer_path as text, else as ids",
    )
    args = parser.parse_args()
    needed = {
        "write": ["file_path", "tokenizer_path", "save_prefix"],
        "merge": ["merge_path_prefix", "new_path_prefix"],
        "read": ["read_path_prefix"],
        "stats": ["read_path_prefix"],
        "remove": ["read_path_prefix", "new_path_prefix"],
    }[args.mode]
    missing = [name for name in needed if getattr(args, name) is None]
    if missing:
        parser.error(f"--mode {args.mode} needs {', '.join('--' + name for name in missing)}")
    if args.mode == "remove" and not (args.remove_samples or args.remove_documents):
        parser.error("--mode remove needs --remove_samples, --remove_documents or both")
    if args.proof_tokens < 1:
        parser.error("--proof_tokens must be at least 1")
    if not 2 < args.seq_length <= np.iinfo(LENGTH).max:
        parser.error("--seq_length must be 3 to 65535")
    if args.mode == "write" and args.seq_length <= args.min_sample_tokens:
        parser.error("--seq_length must be more than --min_sample_tokens: no sample would be kept")
    if args.num_per_doc == 0:
        parser.error("--num_per_doc must be 1 or more, or -1 for all")
    if args.text_template and not re.search(r"\{\w+\}", args.text_template):
        parser.error(f"--text_template {args.text_template}: names no field, as {{title}} does")
    if args.tokenize == "sentence" and not args.overlap:
        parser.error("--tokenize sentence packs as in 2023, which overlaps; leave out --no-overlap")
    check_executor_flags(parser, args)
    if args.text_fields and args.text_template:
        parser.error("--text_fields and --text_template exclude each other")
    return args


def write(args: argparse.Namespace) -> None:
    sources, prefix = find_sources(args.file_path), str(Path(args.save_path) / args.save_prefix)
    tokenizer, recipe = CorpusTokenizer(args.tokenizer_path), recipe_of(args)
    work = Work(sources, args.input_format, args.tokenizer_path, recipe, args.strict, not args.no_ledger)
    with locked(prefix):
        if recipe.language == "code" and not recipe.do_keep_newlines:
            print("without --do_keep_newlines code loses its line breaks", file=sys.stderr)
        if Path(f"{prefix}.bin").is_file():
            print(f"{prefix}: replacing the corpus of that name", file=sys.stderr)
        if args.executor == "local" and args.tasks is None:
            counts = build_corpus(work, prefix, tokenizer, args.num_workers or 1)
        elif (counts := build_in_tasks(work, prefix, args)) is None:
            print(
                f"{prefix}: jobs are submitted, squeue shows them; this command, repeated, goes on or tells the result"
            )
            return
    of_all: Counter[str] = sum(counts.values(), Counter())
    rejected = f", see {prefix}{REJECTED}" if of_all["rejected lines"] else ""
    print(f"{prefix}: {summary(of_all)}{rejected}; encoded by {tokenizer.engine}")


def build_in_tasks(work: Work, prefix: str, args: argparse.Namespace) -> dict[str, Counter] | None:
    """Counts by source, or None while it is only handed to Slurm."""
    from knowlm.executors import run_stages

    folder = Path(f"{prefix}.tasks-{work.digest(args.tasks)}").absolute()
    if not run_stages(stages_of(work, prefix, folder, args.tasks), args, folder / "logs"):
        return None
    counts = {path: Counter(found) for path, found in Corpus(prefix).settings["counts"].items()}
    shutil.rmtree(folder / "logs" / "build")  # first: it tells of parts that must be there
    shutil.rmtree(folder)
    for earlier in folder.parent.glob(f"{glob.escape(Path(prefix).name)}.tasks-*"):
        shutil.rmtree(earlier)  # an interrupted run's with other settings
    return counts


def recipe_of(args: argparse.Namespace) -> Recipe:
    settings = {name: getattr(args, name) for name in Recipe.__dataclass_fields__}
    settings["text_fields"] = [name.strip() for name in args.text_fields.split(",") if name.strip()]
    settings["text_template"] = args.text_template.replace(r"\n", "\n").replace(r"\t", "\t")
    return Recipe(**settings)


def summary(counts: Counter) -> str:
    repeated = counts["repeated tokens"] / max(counts["tokens of documents"], 1)
    return (
        f"{counts['samples']} samples, {counts['tokens']} tokens ({repeated:.1%} repeated) "
        f"from {counts['documents']} documents; {counts['short samples']} short samples dropped, "
        f"{counts['rejected lines']} bad lines skipped"
    )


def merge(args: argparse.Namespace) -> None:
    prefixes = _literal_list(args.merge_path_prefix, str, "--merge_path_prefix")
    types = (
        _literal_list(args.merge_path_type, int, "--merge_path_type") if args.merge_path_type else [0] * len(prefixes)
    )
    corpus = merge_corpora(prefixes, types, args.new_path_prefix)
    print(
        f"{args.new_path_prefix}: {len(corpus)} samples, {len(corpus.tokens)} tokens; "
        f"samples per type {corpus.type_counts}"
    )


def _literal_list(text: str, kind: type, flag: str) -> list:
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        values = None
    if not isinstance(values, list) or not values or not all(type(value) is kind for value in values):
        raise ValueError(f"{flag} {text}: a list of {kind.__name__} is needed, as in the --help")
    return values


def read(args: argparse.Namespace) -> None:
    corpus = Corpus(args.read_path_prefix)
    tokenizer = CorpusTokenizer(args.tokenizer_path) if args.tokenizer_path else None
    if tokenizer and corpus.settings.get("tokenizer_sha256", tokenizer.sha256) != tokenizer.sha256:
        raise ValueError(
            f"{args.read_path_prefix} was made with another tokenizer than {args.tokenizer_path}; name that one"
        )
    if not 0 <= args.sample < len(corpus):
        raise ValueError(f"--sample {args.sample}: {args.read_path_prefix} has samples 0 to {len(corpus) - 1}")
    print(overview(corpus))
    for number in range(args.sample, min(args.sample + args.num_samples, len(corpus))):
        ids, origin = corpus[number].tolist(), corpus.origin(number)
        where = f", {origin[0]} line {origin[1]}, bytes {origin[2]}–{origin[3]} of its text" if origin else ""
        print(f"--- sample {number}: {len(ids)} tokens{where}\n{tokenizer.decode(ids) if tokenizer else ids}")


def overview(corpus: Corpus) -> str:
    return (
        f"{corpus.prefix}: {len(corpus)} samples, {len(corpus.tokens)} tokens, "
        f"{corpus.lengths.min()}–{corpus.lengths.max()} a sample; samples per type {corpus.type_counts}"
    )


def stats(args: argparse.Namespace) -> None:
    """Counts by source, and a picture of the samples' lengths."""
    corpus = Corpus(args.read_path_prefix)
    print(overview(corpus))
    for path, counts in corpus.settings.get("counts", {}).items():
        print(f"{path}: {summary(Counter(counts))}")
    for path, samples, tokens in counts_by_source(corpus):
        print(f"{path}: {samples} samples, {tokens} tokens")
    for part in corpus.settings.get("parts", []):
        print(f"{part['prefix']}: type {part['type']}, {part['samples']} samples")
    picture = Path(f"{args.read_path_prefix}.lengths.png")
    draw_lengths(corpus.lengths, picture)
    print(f"{picture}: histogram of the samples' lengths")


def counts_by_source(corpus: Corpus) -> Iterator[tuple[str, int, int]]:
    """(path, samples, tokens) where the counts of building are gone but the ledger is there: joined and cut corpora."""
    if corpus.ledger is not None and "counts" not in corpus.settings:
        sources = corpus.settings["sources"]
        samples = np.bincount(corpus.ledger["source"], minlength=len(sources))
        tokens = np.bincount(corpus.ledger["source"], weights=corpus.lengths, minlength=len(sources))
        for source, *counts in zip(sources, samples.tolist(), tokens.astype(int).tolist(), strict=True):
            yield source["path"], *counts


def draw_lengths(lengths: np.ndarray, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.hist(lengths, bins=min(64, int(lengths.max())))
    axes.set(xlabel="tokens of a sample", ylabel="samples")
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    pyplot.close(figure)


def remove(args: argparse.Namespace) -> None:
    """A new corpus without some samples, that is written if nothing of them is left in it."""
    old = Corpus(args.read_path_prefix)
    if Path(args.new_path_prefix).absolute() == Path(args.read_path_prefix).absolute():
        raise ValueError(f"--new_path_prefix {args.new_path_prefix}: is the corpus itself; name another")
    numbers = samples_of_numbers(old, args.remove_samples, "--remove_samples")
    with locked(args.new_path_prefix):
        new, copies = remove_samples(
            old, numbers, args.remove_documents, args.new_path_prefix, args.proof_tokens, args.remove_copies
        )
    also = f" ({len(copies)} of them for holding text of the others)" if len(copies) else ""
    print(
        f"{args.new_path_prefix}: {len(new)} samples, {len(new.tokens)} tokens; removed {len(old) - len(new)} samples"
        f"{also}, {len(old.tokens) - len(new.tokens)} tokens; no run of {args.proof_tokens} tokens of "
        f"{'the others' if also else 'them'} is left, nor a whole sample of fewer"
    )


if __name__ == "__main__":
    run(main)
