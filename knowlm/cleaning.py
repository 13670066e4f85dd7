"""Steps of a cleaning run: cut the input into tasks, read it, look at single documents, write what stays and what not.

OUTPUT_DIR/documents/00000.jsonl         what stays, a file for each task, in input order
OUTPUT_DIR/removed/REASON/00000.jsonl    what doesn't
OUTPUT_DIR/rejected/00000.jsonl          lines that can't be read
OUTPUT_DIR/report.md .json .png
OUTPUT_DIR/work/                         settings, logs, counts; while it runs, signatures and unfinished documents
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.pipeline.writers import JsonlWriter

from knowlm.corpus_builder import Recipe, read_documents
from knowlm.files import write_json
from knowlm.quality import WORD, Verdict, language_filter, quality_filters
from knowlm.sentences import guess_language
from knowlm.sources import CHUNK_BYTES, Chunk, looks_like_json, read_chunks

WHOLE_ONLY = {".gz", ".zst", ".parquet"}  # can't be entered in their middle
TASK_BYTES = 64 << 20
DEFAULT_MOST_TASKS = 500  # the search for duplicates opens a file of each task at once
FIELDS = ("file", "line", "language", "filter_reason", "duplicate_of")  # of a document, beside text and id
REMOVED = "removed/${filter_reason}"


@dataclass
class Source:
    name: str  # as the user wrote it
    path: str  # absolute: workers may have another working folder
    is_json: bool


@dataclass
class Part:
    """Whole lines of a source, to bytes ``start`` to ``stop`` of its text."""

    source: int  # its number
    first_line: int = 1
    start: int = 0
    stop: int | None = None  # to its end


def find_formats(paths: list[Path], input_format: str | None) -> list[Source]:
    return [
        Source(str(path), str(path.absolute()), input_format == "json" if input_format else looks_like_json(path))
        for path in paths
    ]


def count_tasks(sources: list[Source]) -> int:
    """A number of tasks that suits the input, whatever the machines."""
    size = sum(Path(source.path).stat().st_size for source in sources)
    return min(-(-size // TASK_BYTES) or 1, DEFAULT_MOST_TASKS)


def plan_tasks(sources: list[Source], tasks: int) -> list[list[Part]]:
    """What each task reads, in order: about the same number of bytes; a compressed file goes to one task."""
    sizes = [Path(source.path).stat().st_size for source in sources]
    share = max(sum(sizes) / tasks, 1)
    plan: list[list[Part]] = [[] for _ in range(tasks)]
    begin = 0
    for number, (source, size) in enumerate(zip(sources, sizes, strict=True)):
        first, last = (min(int(place / share), tasks - 1) for place in (begin, begin + max(size - 1, 0)))
        cuts = [int((task + 1) * share) - begin for task in range(first, last)]
        parts = cut_lines(source.path, number, [] if Path(source.path).suffix in WHOLE_ONLY else cuts)
        for task, part in zip(range(first, last + 1), parts, strict=False):
            plan[task].append(part)
        begin += size
    return plan


def cut_lines(path: str, source: int, cuts: list[int]) -> Iterator[Part]:
    """The file's parts between the first line starts behind each cut; a part may be empty."""
    line = 1
    with open(path, "rb") as text:
        place = 0
        for cut in cuts:
            start, first_line = place, line
            while place < cut and (data := text.read(min(CHUNK_BYTES, cut - place))):
                place, line = place + len(data), line + data.count(b"\n")
            if place > start and not data.endswith(b"\n"):
                rest = text.readline()
                place, line = place + len(rest), line + rest.endswith(b"\n")
            yield Part(source, first_line, start, place)
        yield Part(source, line, place)


class SourceReader(PipelineStep):
    """Documents of any input that pretrain/preprocess.py takes; datatrove's readers stop at a line that isn't UTF-8.

    recipe: only the fields of the text matter.
    """

    type, name = "📖 - READER", "knowlm sources"

    def __init__(self, sources: list[Source], plan: list[list[Part]], recipe: Recipe, folder: Path):
        super().__init__()
        self.sources, self.plan, self.recipe, self.folder = sources, plan, recipe, folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        documents = size = 0
        rejected: list[dict] = []
        for part in self.plan[rank]:
            source = self.sources[part.source]
            for chunk in read_part(source, part):
                bad: list[dict] = []
                for number, text in read_documents(chunk, self.recipe, bad):
                    documents, size = documents + 1, size + len(text.encode())
                    yield Document(text, f"{source.name}:{number}", metadata={"file": source.name, "line": number})
                rejected += [{"file": source.name, **row} for row in bad]
        if rejected:
            path = self.folder / "rejected" / f"{rank:05d}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected), encoding="utf-8")
        write_json(counts_path(self.folder, "read", rank), {"read": [documents, size], "rejected": [len(rejected), 0]})


def read_part(source: Source, part: Part) -> Iterator[Chunk]:
    if part.start == part.stop:
        return
    for chunk in read_chunks(Path(source.path), part.source, source.is_json, part.start, part.first_line):
        if part.stop is not None and chunk.stop >= part.stop:
            chunk.data = chunk.data[: len(chunk.data) - (chunk.stop - part.stop)]
            yield chunk
            return
        yield chunk


def counts_path(folder: Path, stage: str, rank: int) -> Path:
    return folder / "work" / "counts" / stage / f"{rank:05d}.json"


class DocumentFilter(BaseFilter):
    """What one document alone can be removed for; the first filter that refuses it gives the reason.

    language: chinese, english, code, or auto: by document.
    harmful: judges the words of a document, if given.
    """

    name = "single documents"

    def __init__(
        self, language: str, skip: set[str], harmful: BaseFilter | None, min_words: int, min_sentences: int, **settings
    ):
        super().__init__(**settings)
        self.language, self.harmful = language, harmful
        self.identify = None if language == "code" or "language" in skip else language_filter(language)
        self.quality = {
            name: [step for step in quality_filters(name, min_words, min_sentences) if step[0] not in skip]
            for name in (["chinese", "english", "code"] if language == "auto" else [language])
        }

    def filter(self, doc: Document) -> Verdict:
        if not WORD.search(doc.text):
            return False, "empty"
        language = guess_language(doc.text) if self.language == "auto" else self.language
        if self.identify and language != "code" and not self.identify.filter(doc):
            found = doc.metadata["language"]
            return False, f"language.{'unsure' if found in self.identify.languages else found}"
        doc.metadata["language"] = language
        harmful = [("harmful", self.harmful)] if self.harmful else []
        for name, step in harmful + self.quality[language]:
            kept, why = get_filter_result(step.filter(doc))
            if not kept:
                return False, f"{name}.{why.removeprefix('gopher_')}"
        return True


class CountingWriter(JsonlWriter):
    """datatrove's, that also counts documents and bytes of text by reason."""

    def __init__(self, folder: Path, place: str, stage: str, reason: str = ""):
        """folder: of the run; place: in it, may hold the document's ${filter_reason}; reason: where no filter gave one.

        The counts go to work/counts/STAGE; those of documents without a reason are called "kept".
        """
        super().__init__(str(folder), f"{place}/${{rank}}.jsonl", compression=None)
        self.folder, self.stage, self.reason = folder, stage, reason
        self.counts: dict[str, list[int]] = {}

    def write(self, document: Document, rank: int = 0, **kwargs) -> None:
        if self.reason:
            document.metadata["filter_reason"] = self.reason
        count = self.counts.setdefault(document.metadata.get("filter_reason", "kept"), [0, 0])
        count[0] += 1
        count[1] += len(document.text.encode())
        self.rank = rank
        super().write(document, rank, **kwargs)

    def _default_adapter(self, document: Document) -> dict:
        fields = {name: document.metadata[name] for name in FIELDS if name in document.metadata}
        return {"text": document.text, "id": document.id, **fields}

    def close(self) -> None:
        super().close()
        if self.counts:
            write_json(counts_path(self.folder, self.stage, self.rank), self.counts)


class TaskReader(BaseDiskReader):
    """The documents that the task of this number wrote at the stage before."""

    name = "task"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        file = f"{rank:05d}.jsonl"
        for document in self.read_files_shard([file] if self.data_folder.isfile(file) else []):
            document.metadata["task"] = rank
            yield document

    def read_file(self, filepath: str) -> Iterator[Document]:
        with self.data_folder.open(filepath, "rb") as lines:
            for number, line in enumerate(lines):
                yield self.get_document_from_dict(orjson.loads(line), filepath, number)


class WorkRemover(PipelineStep):
    """Frees the room that only an unfinished run needs: all but settings, logs and counts."""

    type, name = "🧹 - TIDY", "work"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        for path in sorted(self.folder.iterdir()):
            if path.is_dir() and path.name not in ("logs", "counts"):
                shutil.rmtree(path)
