"""Texts to find facts in: JSON lines, plain lines, whole files; cleaned and cut into pieces."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import orjson

from knowlm.files import require_file
from knowlm.packing import pack_sentences
from knowlm.sentences import language_of, sentence_ends
from knowlm.sources import known_fields, looks_like_json
from knowlm.supervision.graph_readers import lines_of
from knowlm.supervision.names import clean

LONGEST_SENTENCE = 512  # words or characters; a longer one is cut
PART = re.compile(r"[^;]+;?")  # of an English sentence; Chinese ones end there
BREAKS = " \t\n,;:，、；："


@dataclass
class Link:
    """``text[start:stop]`` names ``target``: an entity's id or name."""

    start: int
    stop: int
    target: str


@dataclass
class Document:
    """A text, its language (``english`` or ``chinese``), and what its source says of it."""

    text: str
    language: str
    title: str = ""
    links: list[Link] = field(default_factory=list)


class Unread(NamedTuple):
    """A document as its file has it; ``read`` does the work, in the process that needs it."""

    content: str
    path: Path
    line: int
    is_json: bool
    language: str
    fields: Sequence[str]

    def read(self) -> Document:
        if self.is_json:
            return json_document(self.content, self.language, self.fields, f"{self.path}, line {self.line}")
        return document_of(self.content, self.language)


def unread_documents(
    path: str | Path, language: str = "auto", fields: Sequence[str] = (), whole_files: bool = False
) -> Iterator[Unread]:
    """Documents of a file of any size, one in memory at a time.

    JSON lines: the fields named, joined by line breaks, else ``text`` (or another of the published sources' fields)
    without its title; ``title`` names what the text is about; ``links`` ``[{"start", "end", "target"}]`` are mentions
    that the source knows. Else a document is a line, or the file.

    Raises ValueError naming the line that can't be read, some of it not before ``read``.
    """
    path = require_file(path)
    if whole_files:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 ({error.reason}); convert the file") from None
        yield Unread(text, path, 1, False, language, fields)
        return
    is_json = looks_like_json(path)
    for number, line in lines_of(path):
        yield Unread(line, path, number, is_json, language, fields)


def document_of(text: str, language: str, title: str = "", links: Sequence[Link] = ()) -> Document:
    text = text if links else unicodedata.normalize("NFC", text)  # links tell places
    language = language_of(text) if language == "auto" else language
    return Document(clean(text), language, clean(title).strip(), list(links))


def json_document(line: str, language: str, fields: Sequence[str], where: str) -> Document:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: an object is needed, found {type(row).__name__}")
    title = str(row["title"]) if isinstance(row.get("title"), str) else ""
    names = list(fields) or next((names for names in known_fields(tuple(row)) if names), [])
    if not fields:
        names = [name for name in names if name != "title"]
    if not names or not all(isinstance(row.get(name), str) for name in names):
        missing = f"no text under {', '.join(names)}" if names else 'no "text"'
        raise ValueError(f"{where}: {missing}, it has {', '.join(row)}; name the fields with --text_fields")
    text = "\n".join(row[name] for name in names)
    try:
        links = [Link(int(link["start"]), int(link["end"]), str(link["target"])) for link in row.get("links") or []]
        fits = all(0 <= link.start < link.stop <= len(text) for link in links)
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f'{where}: "links" must be {{"start", "end", "target"}} within the text')
    return document_of(text, language, title, links)


def split_text(text: str, language: str, length: int) -> list[str]:
    """Whole sentences, together at most ``length`` characters or words; a longer one stays alone, cut at 512.

    >>> split_text("你好。再见！", "chinese", 3)
    ['你好。', '再见！']
    """
    return [text[start:stop] for start, stop in split_spans(text, language, length)]


def split_spans(text: str, language: str, length: int, found: Iterable[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """(start, stop) of the pieces, without white space around them; ``found``: the sentences, if known."""
    spans = [cut for span in found or sentences(text, language) for cut in cut_long(text, *span, language)]
    sizes = [min(size_of(text[start:stop], language), length) for start, stop in spans]
    pieces, covered = [], 0
    for _, last in pack_sentences(sizes, length):  # without the packing's look back
        start, stop = spans[covered][0], spans[last - 1][1]
        covered = last
        start += len(text[start:stop]) - len(text[start:stop].lstrip())
        stop -= len(text[start:stop]) - len(text[start:stop].rstrip())
        if start < stop:
            pieces.append((start, stop))
    return pieces


def sentences(text: str, language: str) -> Iterator[tuple[int, int]]:
    return pairwise([0, *sentence_ends(text, language)])


def sentence_parts(text: str, language: str) -> Iterator[tuple[int, int]]:
    """Sentences, in English also between semicolons, as in Chinese anyway."""
    for start, stop in sentences(text, language):
        yield from (part.span() for part in PART.finditer(text, start, stop))


def size_of(text: str, language: str) -> int:
    return len(text) if language == "chinese" else len(text.split())


def cut_long(text: str, start: int, stop: int, language: str) -> Iterator[tuple[int, int]]:
    """A sentence in parts of at most LONGEST_SENTENCE, cut behind a comma or a space where there is one."""
    most = LONGEST_SENTENCE * (1 if language == "chinese" else 12)  # characters; few words are longer
    while stop - start > most or size_of(text[start:stop], language) > LONGEST_SENTENCE:
        limit = min(start + most, stop - 1)
        if language != "chinese":
            words = text[start:limit].split(" ")[: LONGEST_SENTENCE - 1]
            limit = min(limit, start + len(" ".join(words)) + 1)
        cut = max(text.rfind(mark, start + (limit - start) // 2, limit) for mark in BREAKS) + 1 or limit
        yield start, cut
        start = cut
    yield start, stop
