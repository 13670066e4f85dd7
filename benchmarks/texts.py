"""Texts to measure with: what is installed, and this repository's Chinese articles over and over."""

import inspect
import json
import random
import sysconfig
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ("english", "code", "chinese")


def write_texts(folder: Path, megabytes: int, languages: Sequence[str] = LANGUAGES) -> dict[str, Path]:
    """A JSONL file {"text"} of about ``megabytes`` for each of ``languages``; english are docstrings."""
    files = {}
    for language in languages:
        files[language] = folder / f"{language}.jsonl"
        with files[language].open("w", encoding="utf-8") as lines:
            for text in {"english": docstrings, "code": sources, "chinese": articles}[language]():
                lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                if lines.tell() > megabytes * 1_000_000:
                    break
    return files


def sources() -> Iterator[str]:
    """The installed Python modules, in random order."""
    modules = sorted(path for key in ("purelib", "stdlib") for path in Path(sysconfig.get_path(key)).rglob("*.py"))
    random.Random(0).shuffle(modules)
    for path in modules:
        if path.is_file() and (text := path.read_text(encoding="utf-8", errors="ignore")).strip():
            yield text


def docstrings() -> Iterator[str]:
    """Of each module the strings in triple quotes that begin a line; parsing it would take long."""
    for source in sources():
        parts = source.split('"""')  # code, string, code, ...
        found = [text for code, text in zip(parts[::2], parts[1::2], strict=False) if begins_line(code)]
        if text := "\n\n".join(inspect.cleandoc(doc) for doc in found if len(doc) > 80):
            yield text


def begins_line(code: str) -> bool:
    return code.rpartition("\n")[2].strip() in ("", "r")


def articles() -> Iterator[str]:
    """Ten Chinese articles a document, drawn at random without end."""
    lines = (ROOT / "finetune/data/encyclopedia/chinese.jsonl").read_text(encoding="utf-8").splitlines()
    texts, generator = [json.loads(line)["text"] for line in lines], random.Random(0)
    for _ in cycle([0]):
        yield "\n".join(generator.sample(texts, 10))
