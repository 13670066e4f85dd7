"""Write model folders in pieces, so that a killed run goes on where it was and no half folder looks whole."""

import json
import math
import os
import shutil
import sys
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from blake3 import blake3
from tqdm import tqdm

from knowlm import __version__
from knowlm.checkpoints import BEHIND, Spec, as_bytes
from knowlm.checksums import hash_file
from knowlm.dtypes import FLOATS, FP8, HELD
from knowlm.files import locked, read_json, require_new, require_space, sync, write_json, write_text
from knowlm.manifest import MANIFEST, write_manifest

SHARD_BYTES = 2 * 10**9
SETTINGS = (".bpe", ".jinja", ".json", ".model", ".py", ".tiktoken", ".txt", ".vocab")


class Shard:
    """A ``.safetensors`` file that takes its name when it is closed, and is as large as ``specs`` say."""

    def __init__(self, path: Path, specs: Mapping[str, Spec]):
        self.path, self._partial = path, path.with_name(path.name + ".partial")
        self._file, self._hasher, self._written = self._partial.open("wb", buffering=0), blake3(), 0
        head = header(specs)
        self.size = len(head) + sum(map(size_of, specs.values()))
        self.write(memoryview(head))

    def write(self, content: memoryview) -> None:
        self._hasher.update(content)
        try:
            while content:
                count = self._file.write(content)
                content, self._written = content[count:], self._written + count
        except OSError as error:
            raise self._told(error) from None

    def _told(self, error: OSError) -> OSError:
        return OSError(f"{self.path}: {error.strerror}; mend that, then repeat the command: it goes on")

    def abandon(self) -> None:
        self._file.close()

    def close(self) -> str:
        """The file's BLAKE3."""
        assert self._written == self.size, self.path
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._told(error) from None
        self._file.close()
        os.replace(self._partial, self.path)
        sync(self.path.parent)
        return self._hasher.hexdigest()


class CheckpointWriter:
    """A model folder of ``.safetensors`` shards, an index, the settings and tokenizer of another folder, a manifest.

    ``with`` it, ``add`` the rows of the tensors in ``missing`` in this order, ``finish`` each. What is added is written
    by another thread. ``PATH.partial`` holds all until it is whole. After a kill or a full disk its finished shards
    stay: if ``job`` (a JSON object) is the same, they are compared with their BLAKE3 and not written again.

    specs: type and shape of every tensor. settings: the folder whose small files are copied. dtype: what its config is
    to say instead, if anything. kind: what the manifest calls the result.
    Raises ValueError if ``path`` already holds something, OSError if the disk is too small.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Path,
        specs: Mapping[str, Spec],
        job: dict,
        kind: str = "model",
        dtype: str | None = None,
    ):
        self.path, self.settings, self.specs = Path(path).resolve(), settings, dict(specs)
        self.kind, self.dtype = kind, dtype
        self.job = json.loads(json.dumps({**job, "knowlm": __version__}))
        self._work = self.path.with_name(self.path.name + ".partial")
        self._job, self._journal, self.partial = (self._work / name for name in ("job.json", "shards.jsonl", "model"))
        self.shards = self._plan()
        self._file_of = {name: file for file, names in self.shards.items() for name in names}
        self.tensors: dict[str, dict] = {}  # what the manifest tells of each
        self.files: dict[str, dict] = {}

    def _plan(self) -> dict[str, list[str]]:
        """Tensors by shard."""
        shards: list[list[str]] = [[]]
        size = 0
        for name, spec in self.specs.items():
            if shards[-1] and size + size_of(spec) > SHARD_BYTES:
                shards.append([])
                size = 0
            shards[-1].append(name)
            size += size_of(spec)
        if len(shards) == 1:
            return {"model.safetensors": shards[0]}
        return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}

    def __enter__(self) -> "CheckpointWriter":
        with ExitStack() as stack:
            stack.enter_context(locked(self.path))
            self._begin()
            self._stack = stack.pop_all()  # until the end of the ``with`` block
        return self

    def _begin(self) -> None:
        require_new(self.path)
        self._recall()
        self.missing = [name for file, names in self.shards.items() if file not in self.files for name in names]
        needed = sum(size_of(self.specs[name]) for name in self.missing)
        try:
            require_space(self.path, needed)
        except OSError:
            if not self.files:
                shutil.rmtree(self._work)
            raise
        self._waiting: deque[Future] = deque()
        self._thread, self._disk = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._kept: list[Future] = []  # shards on their way to the disk
        self._bar = tqdm(total=needed, unit="B", unit_scale=True, desc=self.path.name, disable=None)
        self._open: dict[str, Shard] = {}  # one at most
        self._hashers: dict[str, blake3] = {}  # of the tensor that is being added
        self._infinite: Counter[str] = Counter()

    def _recall(self) -> None:
        """Take up the shards that a run of the same job finished."""
        self._make_room()
        lines = self._journal.read_bytes().splitlines() if self._journal.is_file() else []
        records = [record for line in lines if (record := self._checked(line))]
        for record in records:
            self.files[record["file"]] = {name: record[name] for name in ("bytes", "blake3")}
            self.tensors |= record["tensors"]
        write_text(self._journal, "".join(json.dumps(record) + "\n" for record in records))
        if self.files:
            print(f"{self.path}: going on behind {len(self.files)} of {len(self.shards)} shards", file=sys.stderr)

    def _make_room(self) -> None:
        """Begin a folder for this job's work; what is there of another job goes."""
        theirs = {found.name for found in self._work.iterdir()} if self._work.is_dir() else set()
        if theirs - {path.name + end for path in (self._job, self._journal, self.partial) for end in ("", ".partial")}:
            raise ValueError(f"{self._work}: is needed for unfinished work and holds other things; move it away")
        try:
            is_ours = read_json(self._job) == self.job
        except ValueError:  # a kill left none
            is_ours = False
        if not is_ours:
            if self._journal.is_file():
                print(f"{self.path}: beginning anew; what was unfinished had other settings or input", file=sys.stderr)
            shutil.rmtree(self._work, ignore_errors=True)
            self.partial.mkdir(parents=True)
            write_json(self._job, self.job)
        for file in self.partial.glob("*.partial"):
            file.unlink()

    def _checked(self, line: bytes) -> dict | None:
        """A line of the journal, if its shard is there and whole."""
        try:
            record = json.loads(line)
            file, is_whole = record["file"], list(record["tensors"]) == self.shards[record["file"]]
            is_whole = is_whole and hash_file(self.partial / file, "blake3") == record["blake3"]
        except (ValueError, KeyError, TypeError, OSError):  # cut off by the kill, or the file is gone
            return None
        return record if is_whole else None

    def add(self, name: str, rows: np.ndarray, infinite: int = 0) -> None:
        """Append rows to a tensor; they must stay as they are until ``BEHIND`` more were added.

        infinite: how many of their numbers only became so (see ``dtypes.fit``).
        """
        assert rows.dtype == HELD[self.specs[name][0]], name
        content = as_bytes(np.ascontiguousarray(rows))
        self._hashers.setdefault(name, blake3()).update(content)
        self._infinite[name] += infinite
        self._do(self._append, self._file_of[name], content)

    def finish(self, name: str, facts: dict | None = None) -> None:
        """All rows of a tensor were added; ``facts`` go into the manifest with its own type, shape and BLAKE3."""
        dtype, shape = self.specs[name]
        self.tensors[name] = {"file": self._file_of[name], "shape": list(shape), "dtype": dtype}
        self.tensors[name] |= {"blake3": self._hashers.pop(name).hexdigest()} | (facts or {})
        if infinite := self._infinite.pop(name):
            self.tensors[name]["infinite"] = infinite
        self._do(self._close, name)

    def _do(self, *call) -> None:
        self._waiting.append(self._thread.submit(*call))
        while len(self._waiting) > BEHIND:
            self._waiting.popleft().result()

    def wait(self) -> None:
        """Return when everything added is written."""
        while self._waiting:
            self._waiting.popleft().result()
        for kept in self._kept:
            kept.result()

    def _append(self, file: str, content: memoryview) -> None:
        if file not in self._open:
            self._open[file] = Shard(self.partial / file, {name: self.specs[name] for name in self.shards[file]})
        self._open[file].write(content)
        self._bar.update(content.nbytes)

    def _close(self, name: str) -> None:
        file = self._file_of[name]
        if name == self.shards[file][-1]:  # the next shard begins while this one goes to the disk
            self._kept.append(self._disk.submit(self._keep, file, self._open.pop(file)))

    def _keep(self, file: str, shard: Shard) -> None:
        facts = {"bytes": shard.size, "blake3": shard.close()}
        record = {"file": file, **facts, "tensors": {name: self.tensors[name] for name in self.shards[file]}}
        with self._journal.open("ab") as journal:
            journal.write(json.dumps(record).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
        self.files[file] = facts

    def tell_infinite(self, way_out: str) -> None:
        """One line on stderr if numbers became infinite."""
        counts = {name: self.tensors[name].get("infinite", 0) for name in self.specs}
        if total := sum(counts.values()):
            first = next(name for name in counts if counts[name])
            fact = f"{total} number(s) too large for fp16 became infinite, the first in {first}"
            print(f"{self.path}: {fact}; {way_out}", file=sys.stderr)

    def __exit__(self, error_type, *_) -> None:
        with self._stack:
            try:
                if not error_type:
                    self.wait()
            finally:
                self._thread.shutdown(cancel_futures=True)
                self._disk.shutdown()
                self._bar.close()
                for shard in self._open.values():
                    shard.abandon()
            if not error_type:
                self._publish()
            elif issubclass(error_type, ValueError):  # what is there came of the wrong input
                shutil.rmtree(self._work, ignore_errors=True)

    def _publish(self) -> None:
        for left in self._beside():
            left.unlink()  # of a kill amid what follows
        if len(self.shards) > 1:
            write_json(
                self.partial / "model.safetensors.index.json",
                {"metadata": {"total_size": sum(map(size_of, self.specs.values()))}, "weight_map": self._file_of},
            )
        copy_settings(self.settings, self.partial)
        if self.dtype:
            config = {**read_json(self.partial / "config.json"), "dtype": self.dtype}
            config.pop("torch_dtype", None)
            write_json(self.partial / "config.json", config)
        for file in self._beside():
            sync(file)
            name = file.relative_to(self.partial).as_posix()
            self.files[name] = {"bytes": file.stat().st_size, "blake3": hash_file(file, "blake3")}
            sync(file.parent)
        files = {name: self.files[name] for name in sorted(self.files)}
        tensors = {name: self.tensors[name] for name in self.specs}
        write_manifest(self.partial, {"knowlm": __version__, "kind": self.kind, "files": files, "tensors": tensors})
        if self.path.exists():
            self.path.rmdir()
        os.replace(self.partial, self.path)
        sync(self.path.parent)
        shutil.rmtree(self._work)

    def _beside(self) -> list[Path]:
        """The files that are no shards."""
        return sorted(it for it in self.partial.rglob("*") if it.is_file() and it.name not in self.shards)


def size_of(spec: Spec) -> int:
    """Bytes of a tensor."""
    return HELD[spec[0]].itemsize * math.prod(spec[1])


def header(specs: Mapping[str, Spec]) -> bytes:
    """How a safetensors file begins: 8 bytes of length, then JSON padded to 8 bytes."""
    entries: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in specs.items():
        stop = offset + size_of((dtype, shape))
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def in_fp16(specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """The same tensors, those of floats in fp16; fp8 stays, as its numbers mean nothing without their scales."""
    return {name: ("F16" if dtype in FLOATS and dtype not in FP8 else dtype, it) for name, (dtype, it) in specs.items()}


def copy_settings(source: Path, target: Path) -> None:
    """Copy configs, tokenizer, chat templates and the model's own code, which isn't run: all but weights and prose."""
    for file in sorted([*source.iterdir(), *source.glob("additional_chat_templates/*")]):
        name = file.name
        is_setting = file.suffix in SETTINGS or name.startswith("tokenizer.")  # tokenizer.model.v3
        is_of_weights = name.endswith(".index.json") or name in ("adapter_config.json", "trainer_state.json", MANIFEST)
        if file.is_file() and is_setting and not is_of_weights:
            copy = target / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
