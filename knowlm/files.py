"""Files that are whole or absent: write to a temporary name, fsync, rename; and one writer at a time."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

HALF = re.compile("[\ud800-\udfff]")  # of a character: a surrogate without its other half, which UTF-8 has none for


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes ``path``'s place, on failure it is removed.

    Raises ValueError where ``path`` is a folder or a device: a file must not take /dev/null's place.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is a folder or a device, a file is needed; name another output")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(path)  # a write that fails doesn't tell it
        raise


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield ``PATH.partial`` to fill; on success it becomes ``path``, so that a folder by that name is whole.

    A partial folder left by a killed run is removed first. Raises ValueError when
    ``path`` already holds something: nothing of a user's is overwritten.
    """
    path = Path(path).resolve()  # a link to an empty folder on another disk stays one
    require_new(path)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.rglob("*"):
            sync(file)
        if path.exists():
            path.rmdir()
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def locked(output: str | Path) -> Iterator[None]:
    """Keep every other process out of such a block for ``output``: it gets an OSError.

    Holds OUTPUT.lock, which the kernel frees when this process and all it forked are gone; after a kill the file stays,
    and doesn't matter. Where the disk knows no locks, nothing is kept out.
    """
    path = Path(f"{Path(output).absolute()}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(output)) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.fstat(file.fileno()).st_nlink > 0  # else its owner ended just now
        except BlockingIOError:
            is_ours = False
        except OSError:
            is_ours = True
        if not is_ours:
            raise OSError(f"{output}: another command is writing it; wait for its end, or name another output")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def require_new(folder: str | Path) -> None:
    """Raise ValueError if ``folder`` already holds something, or can't take its place once it is made."""
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder}: already exists; remove it, or name another output")
    if folder.is_mount():
        raise ValueError(f"{folder}: a disk is mounted here, so it can't be replaced; name a new folder in it")
    parent = nearest_parent(folder)
    if not parent.is_dir():
        raise ValueError(f"{folder}: {parent} is a file, so nothing can lie in it; name another output")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: you can't write to {parent}; name another output")


def nearest_parent(path: Path) -> Path:
    """The nearest of the folders that ``path`` is to lie in."""
    return next(parent for parent in path.resolve().parents if parent.exists())


def require_file(path: str | Path) -> Path:
    """Return ``path`` if it is a file; else raise ValueError naming the nearest file there."""
    path = Path(path)
    if path.is_file():
        return path
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, a file is needed")
    import difflib

    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [])
    hint = f"did you mean {path.parent / near[0]}?" if near else "check the path"
    raise ValueError(f"{path}: no such file; {hint}")


def inner_name(name: str, where: str) -> str:
    """``name`` in its plain form; ValueError if it may leave the folder, here or on Windows."""
    plain, windows = PurePosixPath(name), PureWindowsPath(name)
    if plain.is_absolute() or windows.drive or windows.root or ".." in windows.parts or plain == PurePosixPath("."):
        raise ValueError(f"{where}: {name} lies outside the folder; only files inside are checked")
    return plain.as_posix()


def require_space(folder: str | Path, needed: int) -> None:
    """Raise OSError if the disk under ``folder`` has fewer than ``needed`` bytes left."""
    free = shutil.disk_usage(folder if Path(folder).is_dir() else nearest_parent(Path(folder))).free
    if free < needed:
        unit, name = (1e9, "GB") if needed >= 1e9 else (1e6, "MB")
        raise OSError(
            f"{folder}: {needed / unit:.1f} {name} are needed and {free / unit:.1f} {name} are free on that disk; "
            "make room or choose an output on another disk"
        )


def sync(path: Path) -> None:
    """Force a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """As UTF-8; half a character (a lone surrogate, as a cut answer may end) as JSON writes it: ``\\ud83d``."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    with replacing(path) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_records(path: str | Path, rows: Iterable[dict]) -> int:
    """Write rows as they come, each on a line of its own: a JSON list where the name ends in .json, else JSONL.

    Returns how many there were.
    """
    before, between, after, end = ("[\n", ",\n", "", "\n]\n") if Path(path).suffix == ".json" else ("", "", "\n", "")
    count = 0
    with replacing(path) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as lines:
        lines.write(before)
        for count, row in enumerate(rows, 1):
            lines.write((between if count > 1 else "") + json.dumps(row, ensure_ascii=False) + after)
        lines.write(end)
    return count


def read_json(path: str | Path) -> Any:
    """Raises ValueError naming the file when it is missing or no JSON."""
    file = require_file(path)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); mend or regenerate it") from None


def read_records(path: str | Path) -> list[dict]:
    """``iterate_records`` as a list."""
    return list(iterate_records(path))


def iterate_records(path: str | Path) -> Iterator[dict]:
    """Objects of a JSON list, or one by one of a JSONL file, whatever its suffix.

    Raises ValueError naming file and line on anything else.
    """
    with require_file(path).open(encoding="utf-8-sig") as lines:
        try:
            begin = next((line for line in lines if line.strip()), "")
            lines.seek(0)
            is_list = begin.lstrip().startswith("[")
            for number, item in enumerate(_parsed(lines.read(), str(path)) if is_list else lines, 1):
                if not is_list and not item.strip():
                    continue
                record = item if is_list else _parsed(item, f"{path}, line {number}")
                if not isinstance(record, dict):
                    kind = type(record).__name__
                    raise ValueError(f"{path}, record {number}: an object is needed, found {kind}")
                yield record
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 ({error}); convert it first") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is none of the decoder's own errors
        raise ValueError(f"{where}: not valid JSON ({error}); mend or regenerate it") from None
