"""A model hub on this machine: what is asked of the real one, and what goes wrong there."""

import hashlib
import json
import os
import re
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE_FILES = (".bin", ".safetensors")  # the hub names them by SHA-256 and sends them from another host
MODEL, WEIGHTS, SECOND = "someone/model", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
REVISION_NOT_FOUND, ENTRY_NOT_FOUND = {"X-Error-Code": "RevisionNotFound"}, {"X-Error-Code": "EntryNotFound"}


class LocalHub:
    """Serves ``{"owner/name": {filename: content}}`` in a ``with`` block; ``"owner/name@v1"`` holds a revision.

    url: for HF_ENDPOINT. requests: (method, path, Range header or None) of all so far. gated: names of repositories
    whose files ask for a log-in. sizes: whether the list of files tells sizes and checksums.
    """

    def __init__(self, repos: dict[str, dict[str, bytes]]):
        self.repos = repos
        self.requests: list[tuple[str, str, str | None]] = []
        self.gated: set[str] = set()
        self.sizes = True
        self.released = threading.Event()  # ends what `spoil(name, "stall")` holds up
        self._spoiled: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "LocalHub":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": self}))
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def spoil(self, name: str, *ways: str) -> None:
        """What befalls the next answers that carry the file ``name`` (or, for "api", the list of files), in order.

        "close": the connection ends half-way, as by a server that stops; "reset": as by a network that fails.
        "stall": it stops half-way until ``released``. "wrong": right size, wrong bytes. "short": the last byte is
        missing, with a header to match. "whole": a Range is ignored. A number: that status.
        """
        self._spoiled[name] = list(ways)

    def next_way(self, name: str) -> str:
        with self._lock:
            ways = self._spoiled.get(name)
            return ways.pop(0) if ways else ""

    def fetched(self) -> list[str]:
        """Paths of the files sent by GET, in order."""
        return [path for method, path, _ in self.requests if method == "GET" and not path.startswith("/api/")]

    def ranges(self, name: str) -> list[str | None]:
        """Range headers of the requests for a large file, in order."""
        return [wanted for method, path, wanted in self.requests if method == "GET" and path.endswith(f"cdn/{name}")]

    def find(self, repo: str, revision: str | None) -> dict[str, bytes] | None:
        for name, files in self.repos.items():
            if name.partition("@")[0] == repo and revision in (name.partition("@")[2] or "main", commit(files)):
                return files
        return None


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/(?:resolve/([^/]+)|([0-9a-f]+)/cdn)/(.+)", path)
        repo = api[1] if api else file[1] if file else ""
        files = self.hub.find(repo, (api[2] if api else file[2] or file[3]) or "main") if repo else None
        if repo not in self.hub.repos:  # the hub's answer to whom it does not know
            self.send_whole(401, b"{}", {"X-Error-Message": "Invalid username or password."})
        elif files is None:
            self.send_whole(404, b"{}", REVISION_NOT_FOUND)
        elif api:
            way = self.hub.next_way("api")
            self.send_whole(int(way or 200), json.dumps(describe(repo, files, self.hub.sizes)).encode())
        elif repo in self.hub.gated:
            self.send_whole(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif file[4] not in files:
            self.send_whole(404, b"{}", ENTRY_NOT_FOUND)
        elif file[4].endswith(LARGE_FILES) and not file[3]:
            self.send_redirect(repo, files, file[4])
        else:
            self.send_file(files, file[4])

    do_HEAD = do_GET

    def log_message(self, *_) -> None:
        pass

    def send_whole(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_redirect(self, repo: str, files: dict[str, bytes], name: str) -> None:
        linked = {"X-Linked-Etag": f'"{etag(name, files[name])}"', "X-Linked-Size": str(len(files[name]))}
        elsewhere = {"Location": f"http://localhost:{self.hub.port}/{repo}/{commit(files)}/cdn/{name}"}
        self.send_whole(302, b"", linked | elsewhere | {"X-Repo-Commit": commit(files)})

    def send_file(self, files: dict[str, bytes], name: str) -> None:
        content = files[name]
        way = self.hub.next_way(name) if self.command == "GET" else ""
        if way.isdigit():
            self.send_whole(int(way), b"")
            return
        if way == "wrong":
            content = bytes(len(content))
        if way == "short":
            content = content[:-1]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if way != "whole" else None
        start = int(wanted[1]) if wanted else 0
        if start and start >= len(content):
            self.send_whole(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        headers = {"ETag": f'"{etag(name, files[name])}"', "X-Repo-Commit": commit(files), "Accept-Ranges": "bytes"}
        headers |= {"Content-Length": str(len(content) - start)}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        is_cut = way in ("close", "reset", "stall")
        body = content[start : start + (len(content) - start) // 2] if is_cut else content[start:]
        self.send_whole(206 if wanted else 200, body, headers)
        self.close_connection |= is_cut
        if way == "stall":
            self.wfile.flush()
            self.hub.released.wait()
        if way == "reset":  # linger for 0 s: what is under way is dropped, and the other side told so
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())


def commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(json.dumps([etag(name, files[name]) for name in sorted(files)]).encode()).hexdigest()


def etag(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if name.endswith(LARGE_FILES) else git_id(content)


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def describe(repo: str, files: dict[str, bytes], with_sizes: bool) -> dict:
    siblings = []
    for name, content in files.items():
        entry: dict = {"rfilename": name}
        if with_sizes:
            entry |= {"size": len(content), "blobId": git_id(content)}
            if name.endswith(LARGE_FILES):
                entry["lfs"] = {"sha256": etag(name, content), "size": len(content), "pointerSize": 134}
        siblings.append(entry)
    facts = {"private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
    return {"id": repo, "modelId": repo, "sha": commit(files), "siblings": siblings} | facts


def make_files(seed: str) -> dict[str, bytes]:
    return {
        "config.json": f'{{"model_type": "llama", "seed": "{seed}"}}'.encode(),
        WEIGHTS: seed.encode() * 5000,
        SECOND: seed.encode()[::-1] * 3000,
        "docs/read me.md": b"",
    }


def read_files(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and ".cache" not in file.parts)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
