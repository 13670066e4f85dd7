"""Fetch a repository of the model hub; what breaks is gone on with, in the same run or after a kill.

huggingface_hub's own download starts a file anew after a kill, and a shard of 10 GB is long. So only its names for
things are used here: the listing, the log-in, and the notes and partial files in a folder's .cache/huggingface.
"""

import errno
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from httpx2 import ConnectError, HTTPError, InvalidURL, RemoteProtocolError, TransportError, UnsupportedProtocol
from huggingface_hub import HfApi, ModelInfo, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub._local_folder import get_local_download_paths, read_download_metadata, write_download_metadata
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session, hf_raise_for_status
from tqdm import tqdm

from knowlm.checksums import Checksum, hash_file
from knowlm.files import require_space, sync

THREADS = 4  # files at a time: a far hub gives one connection little
PAUSES = (1, 2, 4, 8)  # seconds before the second to the fifth try
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that may be another one in a while
Result = TypeVar("Result")


@dataclass(frozen=True)
class HubFile:
    name: str
    size: int
    etag: str  # SHA-256 of a large file, git's SHA-1 of a small one

    def checksum(self) -> Checksum | None:
        algorithm = {40: "git", 64: "sha256"}.get(len(self.etag))
        return Checksum(algorithm, self.etag) if algorithm else None


class HubDownload:
    """One repository on its way into a folder.

    checksums: published ones by file name, to be checked before the hub's own; None checks sizes alone.
    """

    def __init__(
        self,
        repo: str,
        folder: Path,
        endpoint: str | None = None,
        revision: str | None = None,
        checksums: Mapping[str, Checksum] | None = None,
    ):
        self.repo, self.folder, self.revision, self.checksums = repo, folder, revision, checksums
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.stopped = threading.Event()

    def fetch(self) -> list[HubFile]:
        """Bring every file into the folder; return them when all are there.

        Raises OSError or ValueError in one line: what failed, and the way out.
        """
        with self.explained(self.repo):
            self.commit, files = self.list_files()
            if not files:
                raise OSError(f"{self.repo}: {self.endpoint} lists no files of it; check the name, or try a mirror")
            missing = self.missing(files)
            have = sum(size_of(self.partial(file)) for file in missing)
            freed = sum(size_of(self.folder / file.name) for file in missing)  # wrong ones, to be replaced
            require_space(self.folder, sum(file.size for file in missing) - have - freed)
            with self.progress("fetch", missing, have) as self.bar:
                self.in_threads(self.fetch_file, missing)
        return files

    def list_files(self) -> tuple[str, list[HubFile]]:
        """The commit that the revision stands for, and its files."""
        info = self.patiently(self.ask_hub, self.repo, lost=ConnectError)  # no network or no such host: no hiccup
        commit = info.sha or self.revision or constants.DEFAULT_REVISION
        files = []
        for sibling in info.siblings or []:
            size, etag = sibling.size, sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
            if size is None or etag is None:  # a mirror that lists names alone
                url = hf_hub_url(self.repo, sibling.rfilename, revision=commit, endpoint=self.endpoint)
                metadata = self.patiently(lambda: get_hf_file_metadata(url, endpoint=self.endpoint), sibling.rfilename)
                size, etag = metadata.size, metadata.etag
            if size is None or etag is None:
                raise OSError(f"{self.repo}: {self.endpoint} tells no size of {sibling.rfilename}; try another mirror")
            if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag):  # it becomes part of a file name
                etag = hashlib.md5(etag.encode()).hexdigest()
            files.append(HubFile(sibling.rfilename, size, etag))
        return commit, files

    def ask_hub(self) -> ModelInfo:
        try:
            return HfApi(self.endpoint).model_info(
                self.repo, revision=self.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):  # a web page, or another service
            raise OSError(
                f"{self.repo}: {self.endpoint} doesn't answer as a hub; check the URL, or log in to the network"
            ) from None

    def missing(self, files: list[HubFile]) -> list[HubFile]:
        """The files that the folder lacks, or holds in another size or with other content."""

        def is_noted(file: HubFile) -> bool:  # known to be the hub's, and not written to since
            note = read_download_metadata(self.folder, file.name)
            return self.checksums is None and note is not None and note.etag == file.etag

        present = [file for file in files if (self.folder / file.name).is_file()]
        unknown = [file for file in present if size_of(self.folder / file.name) == file.size and not is_noted(file)]
        wrong = {
            file: f"{size_of(self.folder / file.name)} bytes, {file.size} on the hub"
            for file in present
            if size_of(self.folder / file.name) != file.size
        }

        def check(file: HubFile) -> None:
            if fault := self.fault(file, self.folder / file.name, bar.update):
                wrong[file] = fault
            else:
                self.write_note(file)

        with self.progress("check", unknown) as bar:
            self.in_threads(check, unknown)
        for file, fault in wrong.items():
            tell(f"{self.folder / file.name}: {fault}; fetching it anew")
        return [file for file in files if file not in present or file in wrong]

    def fetch_file(self, file: HubFile) -> None:
        """Fetch one file; it gets its name when it is whole and, if that is asked for, has the right checksum."""
        paths, partial = get_local_download_paths(self.folder, file.name), self.partial(file)
        with self.explained(f"{self.repo}, {file.name}"), WeakFileLock(paths.lock_path):
            paths.file_path.unlink(missing_ok=True)  # what is there is wrong: nobody should load it meanwhile
            for again in (True, False):
                self.patiently(lambda: self.receive(file, partial), file.name, lambda: size_of(partial))
                fault = self.fault(file, partial) if self.checksums is not None else ""
                if not fault:
                    break
                partial.unlink()
                self.bar.update(-file.size)
                if again:
                    tell(f"{file.name}: {fault}; fetching it once more")
            else:
                raise ValueError(
                    f"{paths.file_path}: {fault}, fetched twice; it was not kept. Try another --endpoint, "
                    "or go without --verify if the repository has changed on purpose"
                )
            sync(partial)
            os.replace(partial, paths.file_path)
        self.write_note(file)

    def receive(self, file: HubFile, partial: Path) -> None:
        """Append to ``partial`` what it lacks of the file. Raises TransportError when the connection ends early."""
        start = size_of(partial)
        if start == file.size and partial.exists():
            return
        url = hf_hub_url(self.repo, file.name, revision=self.commit, endpoint=self.endpoint)
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # bytes as they are, so that ranges fit
        if start:
            headers["Range"] = f"bytes={start}-"
        with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
            if response.status_code == 416:  # there is no more
                raise self.wrong_size(file, partial)
            hf_raise_for_status(response)
            if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                self.bar.update(-start)  # the server begins anew
                start = 0
            with partial.open("ab" if start else "wb") as output:
                for chunk in response.iter_bytes():
                    if self.stopped.is_set():
                        raise InterruptedError(f"{file.name}: stopped")
                    output.write(chunk)
                    self.bar.update(len(chunk))
        size = size_of(partial)
        if size < file.size:
            raise RemoteProtocolError(f"{size} of {file.size} bytes came")
        if size > file.size:
            raise self.wrong_size(file, partial)

    def wrong_size(self, file: HubFile, partial: Path) -> OSError:
        size = size_of(partial)
        partial.unlink()
        return OSError(
            f"{self.repo}: {self.endpoint} lists {file.name} with {file.size} bytes and sends {size}; "
            "repeat the command later, or name another --endpoint"
        )

    def fault(self, file: HubFile, path: Path, advance: Callable[[int], object] = int) -> str:
        """Which checksum of the file at ``path`` is wrong; "" if none is, or none is known."""
        wanted = (self.checksums or {}).get(file.name) or file.checksum()
        if wanted is None:
            return ""
        found = hash_file(path, wanted.algorithm, advance)
        label = {"git": "git's SHA-1", "md5": "MD5", "sha256": "SHA-256"}.get(wanted.algorithm, wanted.algorithm)
        return "" if found == wanted.hex else f"{label} is {found}, not {wanted.hex}"

    def patiently(
        self,
        attempt: Callable[[], Result],
        what: str,
        had: Callable[[], int] = int,
        lost: type[Exception] | tuple[()] = (),
    ) -> Result:
        """What ``attempt`` returns; a failure that may pass is tried again, after growing pauses.

        had: bytes so far; a try that added some starts the count anew. lost: failures that won't pass.
        """
        tries, before = 0, had()
        while True:
            try:
                return attempt()
            except (TransportError, HfHubHTTPError) as error:
                tries, before = 0 if had() > before else tries, had()
                if isinstance(error, lost) or not may_pass(error) or tries == len(PAUSES):
                    raise
                pause = max(PAUSES[tries], asked_pause(error))
                tries += 1
                tell(f"{what}: {describe(error)}; try {tries + 1} of {len(PAUSES) + 1} in {pause} s")
                if self.stopped.wait(pause):
                    raise

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Turn the library's errors into one line that tells the way out."""
        login = f"ask for access at {self.endpoint}/{self.repo}, or log in with `hf auth login`"
        try:
            yield
        except HFValidationError:
            raise ValueError(f"--repo_name {self.repo}: not a name of the hub; it looks like owner/name") from None
        except GatedRepoError:
            raise OSError(f"{what}: gated, and you aren't known to have access; {login}") from None
        except RevisionNotFoundError:
            raise OSError(
                f"{what}: has no revision {self.revision}; {self.endpoint}/{self.repo}/commits/main lists them, "
                "and without --revision the newest is fetched"
            ) from None
        except OfflineModeIsEnabled:
            raise OSError(f"{what}: HF_HUB_OFFLINE forbids to ask the hub; unset it and repeat the command") from None
        except (HTTPError, InvalidURL) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
                raise OSError(
                    f"{what}: unknown to {self.endpoint}, private or gated; check the name, {login}"
                ) from None
            raise OSError(
                f"{what}: {self.endpoint} {describe(error)}; check the network, or name a mirror with --endpoint or "
                "HF_ENDPOINT, then repeat the command"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                f"{self.folder}: the disk is full; make room and repeat the command: it goes on where it stopped"
            ) from None

    def in_threads(self, work: Callable[[HubFile], None], files: list[HubFile]) -> None:
        """Do ``work`` on every file; the first failure stops the others."""
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                for job in as_completed([pool.submit(work, file) for file in files]):
                    job.result()
            except BaseException:
                self.stopped.set()
                pool.shutdown(cancel_futures=True)
                raise

    def progress(self, verb: str, files: list[HubFile], done: int = 0) -> tqdm:
        total, desc = sum(file.size for file in files), f"{verb} {self.folder.name}"
        return tqdm(total=total, initial=done, desc=desc, unit="B", unit_scale=True, disable=None if total else True)

    def partial(self, file: HubFile) -> Path:
        """Where the file grows: by its checksum, so that no other version's bytes are taken up."""
        return get_local_download_paths(self.folder, file.name).incomplete_path(file.etag)

    def write_note(self, file: HubFile) -> None:
        write_download_metadata(self.folder, file.name, self.commit, file.etag)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    return not isinstance(error, UnsupportedProtocol)


def asked_pause(error: Exception) -> int:
    """Seconds that the server asks to wait, at most a minute."""
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(int(asked), 60) if asked.isdigit() else 0


def describe(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"answers {error.response.status_code}"
    name = type(error).__name__
    return f"can't be reached ({name})" if name.startswith("Connect") else f"breaks the connection ({name})"


def tell(message: str) -> None:
    tqdm.write(message, file=sys.stderr)
