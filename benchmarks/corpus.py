"""How fast corpora are built: pretrain/preprocess.py against other builders and against the tokenizer alone.

    python benchmarks/corpus.py --tokenizer_path tokenizer.model
    python benchmarks/corpus.py --tokenizer_path tokenizer.model --english docs.jsonl --chinese texts.jsonl

The builders compared are described in benchmarks/peers.py. Those that cut at ends of sentences are compared with
--do_split_sentences, those that take whole documents with the same command without it. CPU seconds count start-up and
all processes, so ratios hold on a busy machine; MB are bytes of the JSONL files. Megatron-LM is measured if its package
is installed: pip install megatron-core.
"""

import os
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from peers import NO_MEGATRON, has_megatron, write_tokenizer_json
from texts import LANGUAGES, ROOT, write_texts

from knowlm.cli import ArgumentParser, run


def main() -> None:
    args = parse_args()
    files = {language: Path(path) for language in LANGUAGES if (path := getattr(args, language))}
    missing = [language for language in LANGUAGES if language not in files]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with get_context("spawn").Pool(1) as apart:  # its memory would count as that of every process begun later
            apart.apply(write_tokenizer_json, (args.tokenizer_path, folder / "tokenizer.json"))
            files |= apart.apply(write_texts, (folder, args.megabytes, missing))
        print("| texts | builder | CPU s | MB per CPU s | wall s | peak MB | CPU time against ours |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for language in LANGUAGES:
            measure(language, files[language], args.tokenizer_path, folder)


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--tokenizer_path", required=True, help="SentencePiece tokenizer.model")
    for language in LANGUAGES:
        parser.add_argument(f"--{language}", help='JSONL of {"text"} (default: see benchmarks/texts.py)')
    parser.add_argument("--megabytes", type=int, default=30, help="size of the default texts (default: 30)")
    return parser.parse_args()


def measure(language: str, file: Path, tokenizer: str, folder: Path) -> None:
    megabytes = file.stat().st_size / 1e6
    for commands in (by_sentences(language, file, tokenizer, folder), of_documents(language, file, tokenizer, folder)):
        base = 0.0  # CPU seconds of the first, ours
        for name, command in commands.items():
            if "megatron" in command and not has_megatron():
                print(f"| {language}, {megabytes:.0f} MB | {name} | {NO_MEGATRON} | | | | |", flush=True)
                continue
            cpu, wall, peak = measure_command(command)
            base = base or cpu
            figures = f"{cpu:.1f} | {megabytes / cpu:.1f} | {wall:.1f} | {peak / 1e6:.0f} | {cpu / base:.1f} ×"
            print(f"| {language}, {megabytes:.0f} MB | {name} | {figures} |", flush=True)


def by_sentences(language: str, file: Path, tokenizer: str, folder: Path) -> dict[str, list]:
    ours = [*our_command(language, file, tokenizer, folder), "--do_split_sentences"]
    return {
        "ours, 2 workers": [*ours, "--num_workers", 2, "--save_prefix", "two"],
        "ours, 1 worker": [*ours, "--save_prefix", "one"],
        "ours, as in 2023, 2 workers": [*ours, "--tokenize", "sentence", "--num_workers", 2, "--save_prefix", "2023"],
        "plain, 2 workers": peer_command("plain", language, file, tokenizer, folder),
    }


def of_documents(language: str, file: Path, tokenizer: str, folder: Path) -> dict[str, list]:
    ours = our_command(language, file, tokenizer, folder)
    return {
        "ours, whole documents, 2 workers": [*ours, "--num_workers", 2, "--save_prefix", "whole-two"],
        "ours, whole documents, 1 worker": [*ours, "--save_prefix", "whole-one"],
        "Megatron, 2 workers": peer_command("megatron", language, file, tokenizer, folder),
        "datatrove, 1 task": peer_command("datatrove", language, file, folder / "tokenizer.json", folder),
        "SentencePiece alone": peer_command("sentencepiece", language, file, tokenizer, folder),
    }


def our_command(language: str, file: Path, tokenizer: str, folder: Path) -> list:
    command = [ROOT / "pretrain/preprocess.py", "--mode", "write", "--file_path", file, "--language", language]
    return [*command, "--do_keep_newlines", "--tokenizer_path", tokenizer, "--save_path", folder]


def peer_command(builder: str, language: str, file: Path, tokenizer: str | Path, folder: Path) -> list:
    command = [ROOT / "benchmarks/peers.py", builder, "--language", language, "--file", file]
    return [*command, "--tokenizer", tokenizer, "--out", folder / f"{builder}-{language}"]


def measure_command(command: list) -> tuple[float, float, int]:
    """CPU seconds of the command and the processes it waited for, wall seconds, peak bytes of its largest process."""
    before = os.times()
    with tempfile.TemporaryFile() as log:  # peers tell a lot
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            told = log.read().decode(errors="replace")[-2000:]
            raise ValueError(f"{' '.join(map(str, command))} ended with code {process.returncode}: {told}")
    return usage.ru_utime + usage.ru_stime, os.times().elapsed - before.elapsed, usage.ru_maxrss * 1024


if __name__ == "__main__":
    run(main)
