"""How fast corpora are built: pretrain/preprocess.py against a plain builder and against the tokenizer alone.

    python benchmarks/corpus.py --tokenizer_path tokenizer.model
    python benchmarks/corpus.py --tokenizer_path tokenizer.model --english docs.jsonl --chinese texts.jsonl

The plain builder does what is known of the release of 2023: two workers encode sentence by sentence with SentencePiece
and pack Python lists, which all come back to the main process before it writes. The tokenizer alone encodes whole
documents with SentencePiece and writes nothing. CPU seconds count start-up and all processes, so ratios hold on a busy
machine; MB are bytes of the JSONL files.
"""

import json
import os
import subprocess
import sys
import tempfile
from multiprocessing import Pool, get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

import numpy as np
from texts import ROOT, write_texts

from knowlm.cli import ArgumentParser, run
from knowlm.packing import pack_sentences

LANGUAGES = ("english", "code", "chinese")


def main() -> None:
    args = parse_args()
    if args.only:
        kind, language, file, tokenizer, out = args.only
        {"plain": build_plainly, "tokenizer": encode_only}[kind](language, Path(file), tokenizer, Path(out))
        return
    print("| texts | builder | CPU s | MB per CPU s | wall s | peak MB | CPU time against ours |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        with get_context("spawn").Pool(1) as apart:  # its memory would count as that of every process begun later
            files = apart.apply(write_texts, (Path(folder), args.megabytes))
        for language in LANGUAGES:
            measure(language, Path(getattr(args, language) or files[language]), args.tokenizer_path, Path(folder))


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--tokenizer_path", help="SentencePiece tokenizer.model")
    for language in LANGUAGES:
        parser.add_argument(f"--{language}", help='JSONL of {"text"} (default: see benchmarks/texts.py)')
    parser.add_argument("--megabytes", type=int, default=30, help="size of the default texts (default: 30)")
    parser.add_argument("--only", nargs=5, metavar="X", help="for this script itself: one run of a compared builder")
    return parser.parse_args()


def measure(language: str, file: Path, tokenizer: str, folder: Path) -> None:
    flags = ["--do_split_sentences", "--do_keep_newlines", "--tokenizer_path", tokenizer, "--save_path", folder]
    ours = [ROOT / "pretrain/preprocess.py", "--mode", "write", "--file_path", file, "--language", language, *flags]
    compared = [[__file__, "--only", kind, language, file, tokenizer, folder / kind] for kind in ("plain", "tokenizer")]
    commands = {
        "ours, 2 workers": [*ours, "--num_workers", 2, "--save_prefix", "two"],
        "ours, 1 worker": [*ours, "--save_prefix", "one"],
        "ours, as in 2023, 2 workers": [*ours, "--tokenize", "sentence", "--num_workers", 2, "--save_prefix", "2023"],
        "plain, 2 workers": compared[0],
        "SentencePiece alone": compared[1],
    }
    megabytes, base = file.stat().st_size / 1e6, 0.0
    for name, command in commands.items():
        cpu, wall, peak = measure_command(command)
        base = base or cpu
        figures = f"{cpu:.1f} | {megabytes / cpu:.1f} | {wall:.1f} | {peak / 1e6:.0f} | {cpu / base:.1f} ×"
        print(f"| {language}, {megabytes:.0f} MB | {name} | {figures} |", flush=True)


def measure_command(command: list) -> tuple[float, float, int]:
    """CPU seconds of the command and the processes it waited for, wall seconds, peak bytes of its largest process."""
    before = os.times()
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(f"{command[0]} ended with code {process.returncode}")
    return usage.ru_utime + usage.ru_stime, os.times().elapsed - before.elapsed, usage.ru_maxrss * 1024


def build_plainly(language: str, file: Path, tokenizer: str, out: Path) -> None:
    """Every sentence on its own, everything in memory, as one would write it first."""
    with Pool(2, start_plain_worker, (language, tokenizer)) as pool:
        documents = list(pool.imap(plain_samples, file.open(encoding="utf-8"), 25))
        pool.close()  # to its end: leaving it would terminate it, and that once hung
        pool.join()
    with out.open("wb") as tokens:
        for samples in documents:
            for sample in samples:
                tokens.write(np.array(sample, np.uint16).tobytes())


def start_plain_worker(language: str, tokenizer: str) -> None:
    global split, pieces
    import re

    import sentencepiece
    from nltk.tokenize.punkt import PunktLanguageVars, PunktSentenceTokenizer

    from knowlm.sentences import load_punkt

    class KeepSpace(PunktLanguageVars):
        _period_context_fmt = r"\S* %(SentEndChars)s \s* (?=(?P<after_tok> %(NonWord)s | (?P<next_tok>\S+) ))"

    pieces = sentencepiece.SentencePieceProcessor(tokenizer)
    split = PunktSentenceTokenizer(load_punkt()._params, lang_vars=KeepSpace()).tokenize
    if language == "chinese":
        split = re.compile("(?<=[;!?；。！？\\n])").split


def plain_samples(line: str) -> list[list[int]]:
    sentences = [pieces.encode(sentence)[:1022] for sentence in split(json.loads(line)["text"])]
    spans = pack_sentences([len(ids) for ids in sentences], 1022)
    return [[1, *(i for ids in sentences[first:stop] for i in ids), 2] for first, stop in spans]


def encode_only(language: str, file: Path, tokenizer: str, out: Path) -> None:
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(tokenizer)
    for line in file.open(encoding="utf-8"):
        pieces.encode(json.loads(line)["text"])


if __name__ == "__main__":
    run(main)
