"""The builders that benchmarks/corpus.py compares with, each run as a process of its own.

    python benchmarks/peers.py datatrove --file docs.jsonl --tokenizer tokenizer.json --out ./out

plain          what is known of the release of 2023: two workers encode sentence by sentence with SentencePiece and pack
               Python lists, which all come back to the main process before it writes
megatron       whole documents as Megatron-LM's tools/preprocess_data.py handles them, which its package doesn't hold: a
               pool of two encodes a JSON line at a time, in chunks of 32, and the main process hands the lists of ids,
               each with EOS, to Megatron's own IndexedDatasetBuilder. SentencePiece is called directly, without
               Megatron's tokenizer class, and the arguments of its training aren't imported: both save it time
datatrove      whole documents: its JsonlReader and DocumentTokenizer with EOS, one task, not shuffled. It takes a
               tokenizer.json, and encodes with as many threads as there are cores
sentencepiece  whole documents, encoded and thrown away: what the tokenizer alone takes
"""

import importlib.util
import json
import sys
from functools import partial
from itertools import chain
from multiprocessing import Pool
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import ArgumentParser, run
from knowlm.files import write_json

NO_MEGATRON = "not installed (pip install megatron-core)"
worker: Any = None  # what each process of a pool holds


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("builder", choices=["plain", "megatron", "datatrove", "sentencepiece"])
    parser.add_argument("--file", type=Path, required=True, help='JSONL of {"text"}')
    parser.add_argument("--tokenizer", required=True, help="tokenizer.model; for datatrove the same as tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--language", default="english", help="how plain splits sentences (default: english)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.builder == "plain":
        build_plainly(args.language, args.file, args.tokenizer, args.out)
    else:
        builders = {"megatron": build_with_megatron, "datatrove": build_with_datatrove, "sentencepiece": encode_only}
        builders[args.builder](args.file, args.tokenizer, args.out)


def has_megatron() -> bool:
    try:
        return importlib.util.find_spec("megatron.core") is not None
    except ModuleNotFoundError:  # no megatron at all
        return False


def build_plainly(language: str, file: Path, tokenizer: str, out: Path) -> None:
    """Every sentence on its own, everything in memory, as one would write it first."""
    import numpy as np

    with Pool(2, start_worker, (partial(PlainEncoder, language, tokenizer),)) as pool:
        documents = list(pool.imap(work, file.open(encoding="utf-8"), 25))
        pool.close()  # to its end: leaving it would terminate it, and that once hung
        pool.join()
    with (out / "plain.bin").open("wb") as tokens:
        for sample in chain.from_iterable(documents):
            tokens.write(np.array(sample, np.uint16).tobytes())


def start_worker(make: Any) -> None:
    global worker
    worker = make()


def work(line: str) -> list:
    return worker(line)


class PlainEncoder:
    def __init__(self, language: str, tokenizer: str):
        import re

        import sentencepiece
        from nltk.tokenize.punkt import PunktLanguageVars, PunktSentenceTokenizer

        from knowlm.packing import pack_sentences
        from knowlm.sentences import load_punkt

        class KeepSpace(PunktLanguageVars):
            _period_context_fmt = r"\S* %(SentEndChars)s \s* (?=(?P<after_tok> %(NonWord)s | (?P<next_tok>\S+) ))"

        self.pack, self.encode = pack_sentences, sentencepiece.SentencePieceProcessor(tokenizer).encode
        self.split = PunktSentenceTokenizer(load_punkt()._params, lang_vars=KeepSpace()).tokenize
        if language == "chinese":
            self.split = re.compile("(?<=[;!?；。！？\\n])").split

    def __call__(self, line: str) -> list[list[int]]:
        sentences = [self.encode(sentence)[:1022] for sentence in self.split(json.loads(line)["text"])]
        spans = self.pack([len(ids) for ids in sentences], 1022)
        return [[1, *chain.from_iterable(sentences[first:stop]), 2] for first, stop in spans]


def build_with_megatron(file: Path, tokenizer: str, out: Path) -> None:
    import sentencepiece
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    pieces = sentencepiece.SentencePieceProcessor(tokenizer)
    builder = IndexedDatasetBuilder(str(out / "megatron.bin"), dtype=DType.optimal_dtype(pieces.vocab_size()))
    with file.open(encoding="utf-8") as lines, Pool(2, start_worker, (partial(DocumentEncoder, tokenizer),)) as pool:
        for ids in pool.imap(work, lines, 32):
            builder.add_document(ids, [len(ids)])
        pool.close()
        pool.join()
    builder.finalize(str(out / "megatron.idx"))


class DocumentEncoder:
    def __init__(self, tokenizer: str):
        import sentencepiece

        self.pieces = sentencepiece.SentencePieceProcessor(tokenizer)

    def __call__(self, line: str) -> list[int]:
        ids = self.pieces.encode(json.loads(line)["text"])
        ids.append(self.pieces.eos_id())
        return ids


def build_with_datatrove(file: Path, tokenizer: str, out: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    paths = out / "paths"  # a bare name as a glob would also match names that end so
    paths.write_text(f"{file.name}\n", encoding="utf-8")
    steps = [
        JsonlReader(str(file.absolute().parent), paths_file=str(paths)),
        DocumentTokenizer(str(out), tokenizer, eos_token="</s>", shuffle_documents=False),
    ]
    LocalPipelineExecutor(steps, tasks=1, workers=1, logging_dir=str(out / "logs"), skip_completed=False).run()


def write_tokenizer_json(model: str, path: Path) -> None:
    """A tokenizer.model as a tokenizer.json that gives the same ids: merges in the order of their scores, unlike in
    transformers' conversion, and a special token written in the text stays text.
    """
    from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

    settings = json.loads(sentencepiece_to_tokenizer_json(Path(model).read_bytes()))
    write_json(path, {**settings, "added_tokens": []})


def encode_only(file: Path, tokenizer: str, out: Path) -> None:
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(tokenizer)
    for line in file.open(encoding="utf-8"):
        pieces.encode(json.loads(line)["text"])


if __name__ == "__main__":
    run(main)
