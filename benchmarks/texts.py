"""Texts to measure with: what is installed, and this repository's Chinese articles over and over."""

import ast
import json
import random
import sysconfig
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def write_texts(folder: Path, megabytes: int) -> dict[str, Path]:
    """A JSONL file {"text"} of about ``megabytes`` for each of english (docstrings), code and chinese."""
    modules = sorted(
        path for key in ("purelib", "stdlib") for path in Path(sysconfig.get_path(key)).rglob("*.py") if path.is_file()
    )
    random.Random(0).shuffle(modules)
    sources = [text for path in modules if (text := path.read_text(encoding="utf-8", errors="ignore")).strip()]
    files = {}
    for language, texts in (("english", docstrings(sources)), ("code", iter(sources)), ("chinese", articles())):
        files[language] = folder / f"{language}.jsonl"
        with files[language].open("w", encoding="utf-8") as lines:
            for text in texts:
                lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                if lines.tell() > megabytes * 1_000_000:
                    break
    return files


def docstrings(sources: list[str]) -> Iterator[str]:
    for source in sources:
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except (SyntaxError, ValueError, RecursionError):
            continue
        found = [ast.get_docstring(n) for n in nodes if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
        if text := "\n\n".join(doc for doc in found if doc and len(doc) > 80):
            yield text


def articles() -> Iterator[str]:
    """Ten Chinese articles a document, drawn at random without end."""
    lines = (ROOT / "finetune/data/encyclopedia/chinese.jsonl").read_text(encoding="utf-8").splitlines()
    texts, generator = [json.loads(line)["text"] for line in lines], random.Random(0)
    for _ in cycle([0]):
        yield "\n".join(generator.sample(texts, 10))
