"""Turn raw text into a packed corpus, join corpora, look into one.

    python pretrain/preprocess.py --mode write --file_path pretrain/data/chinese_poems.jsonl --language chinese \\
        --do_split_sentences --do_keep_newlines --seq_length 1024 --tokenizer_path ./converted \\
        --save_path ./data --save_prefix poems
    python pretrain/preprocess.py --mode merge --merge_path_prefix "['data/poems','data/code']" \\
        --merge_path_type "[0,1]" --new_path_prefix data/merged
    python pretrain/preprocess.py --mode read --read_path_prefix data/merged

Input: one document a line, plain text or JSON. Output: PREFIX.bin .idx .dis .tmp .json (see knowlm/corpus.py).
A document is encoded as a whole, cut at ends of sentences, and packed greedily into samples of --seq_length tokens.
"""

import argparse
import ast
import re
import sys
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

import numpy as np
from tqdm import tqdm

from knowlm.cli import ArgumentParser, run
from knowlm.corpus import LENGTH, Corpus, CorpusWriter, merge_corpora
from knowlm.files import require_file
from knowlm.packing import pack_sentences, sentence_ends, token_lengths
from knowlm.tokenization import CorpusTokenizer, parse_document


def main() -> None:
    args = parse_args()
    {"write": write, "merge": merge, "read": read}[args.mode](args)


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--mode", choices=["write", "merge", "read"], required=True)
    group = parser.add_argument_group("write")
    group.add_argument("--file_path", help="text file, one document a line, plain or JSON")
    group.add_argument(
        "--language",
        choices=["english", "chinese", "code"],
        default="english",
        help="how sentences end; chinese also suits mixed text (default: english)",
    )
    group.add_argument("--do_split_sentences", action="store_true", help="cut at ends of sentences, not anywhere")
    group.add_argument("--do_keep_newlines", action="store_true", help="keep line breaks; else they become one space")
    group.add_argument("--seq_length", type=int, default=1024, help="most tokens in a sample (default: 1024)")
    group.add_argument(
        "--min_sample_tokens", type=int, default=20, help="samples of so many tokens or fewer are dropped (default: 20)"
    )
    group.add_argument("--num_workers", type=int, default=1, help="processes (default: 1); the result is the same")
    group.add_argument("--tokenizer_path", help="tokenizer.model, tokenizer.json, or the folder of a model")
    group.add_argument("--text_fields", help="comma-separated JSON fields to join, if not the usual ones")
    group.add_argument("--save_path", default=".", help="folder for the corpus (default: .)")
    group.add_argument("--save_prefix", help="name of the corpus in that folder")
    group.add_argument("--num_per_doc", type=int, default=-1, help="most samples from one document; -1: all")
    group = parser.add_argument_group("merge")
    group.add_argument("--merge_path_prefix", help="list of corpus prefixes: \"['a','b']\"")
    group.add_argument("--merge_path_type", help='list of type numbers, equal for one type of data: "[0,1]"')
    group.add_argument("--new_path_prefix", help="prefix of the joined corpus")
    group = parser.add_argument_group("read")
    group.add_argument("--read_path_prefix", help="prefix of a corpus")
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
    }[args.mode]
    missing = [name for name in needed if getattr(args, name) is None]
    if missing:
        parser.error(f"--mode {args.mode} needs {', '.join('--' + name for name in missing)}")
    if not 2 <= args.seq_length <= np.iinfo(LENGTH).max or args.num_workers < 1:
        parser.error("--seq_length must be 2 to 65535 and --num_workers at least 1")
    return args


def write(args: argparse.Namespace) -> None:
    source, prefix = require_file(args.file_path), str(Path(args.save_path) / args.save_prefix)
    tokenizer = CorpusTokenizer(args.tokenizer_path)
    settings = {
        name: getattr(args, name)
        for name in (
            "language",
            "do_split_sentences",
            "do_keep_newlines",
            "seq_length",
            "min_sample_tokens",
            "num_per_doc",
        )
    }
    settings |= {
        "source": source.name,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
        "bos": tokenizer.bos,
        "eos": tokenizer.eos,
    }
    counts: Counter[str] = Counter()
    # The start method is spawn: workers share nothing with this process but the arguments.
    with (
        get_context("spawn").Pool(args.num_workers, _start_worker, (args,)) as pool,
        source.open("rb") as lines,
        CorpusWriter(prefix, settings) as corpus,
        tqdm(total=source.stat().st_size, unit="B", unit_scale=True, desc=source.name, disable=None) as bar,
    ):
        for size, samples, dropped, problem in pool.imap(_encode_line, enumerate(lines, 1), chunksize=16):
            bar.update(size)
            if problem:
                counts["bad lines"] += 1
                if counts["bad lines"] <= 5:  # the last line of output tells how many there were
                    bar.write(f"{source}: {problem}; skipped", file=sys.stderr)
            for sample in samples:
                corpus.add(sample, tokenizer.bos, tokenizer.eos)
            counts["documents"] += bool(samples)
            counts["short samples"] += dropped
    print(
        f"{prefix}: {len(corpus.lengths)} samples, {corpus.num_tokens} tokens from {counts['documents']} documents; "
        f"{counts['short samples']} short samples dropped, {counts['bad lines']} bad lines skipped"
    )


def _start_worker(args: argparse.Namespace) -> None:
    global _args, _tokenizer
    _args, _tokenizer = args, CorpusTokenizer(args.tokenizer_path)


def _encode_line(numbered: tuple[int, bytes]) -> tuple[int, list[np.ndarray], int, str]:
    """Bytes read, samples, number of samples dropped as short, and what was wrong with the line."""
    number, line = numbered
    try:
        text = parse_document(line.decode("utf-8"), _args.text_fields and _args.text_fields.split(","))
    except ValueError as error:  # json and unicode errors are ValueErrors
        return len(line), [], 0, f"line {number}: {error}"
    if not _args.do_keep_newlines:
        text = re.sub(r"\s*\n\s*", " " if _args.language == "english" else "", text)
    if not text.strip():
        return len(line), [], 0, ""
    ids, starts = _tokenizer.encode(text)
    ends = sentence_ends(text, _args.language) if _args.do_split_sentences else [len(text)]
    lengths = token_lengths(ends, starts, _args.seq_length - 2)  # BOS and EOS take a place each
    lengths[0] += 1
    lengths[-1] += 1
    ids = np.array([_tokenizer.bos, *ids, _tokenizer.eos])
    edges = np.concatenate([[0], np.cumsum(lengths)])
    spans = pack_sentences(lengths, _args.seq_length)
    samples = [ids[edges[first] : edges[stop]] for first, stop in spans]
    if _args.num_per_doc >= 0:
        samples = samples[: _args.num_per_doc]
    kept = [sample for sample in samples if len(sample) > _args.min_sample_tokens]
    return len(line), kept, len(samples) - len(kept), ""


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
    print(
        f"{args.read_path_prefix}: {len(corpus)} samples, {len(corpus.tokens)} tokens, "
        f"{corpus.lengths.min()}–{corpus.lengths.max()} a sample; samples per type {corpus.type_counts}"
    )
    for number in range(min(args.num_samples, len(corpus))):
        ids = corpus[number].tolist()
        print(f"--- sample {number}: {len(ids)} tokens\n{tokenizer.decode(ids) if tokenizer else ids}")


if __name__ == "__main__":
    run(main)
