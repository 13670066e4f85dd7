"""A model hub on this machine: what ``huggingface_hub`` asks of the real one, and connections that break."""

import hashlib
import json
import os
import re
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE_FILES = (".bin", ".safetensors")  # the hub names them by SHA-256 and sends them from another host


class LocalHub:
    """Serves ``{"owner/name": {filename: content}}`` in a ``with`` block.

    url: for HF_ENDPOINT. requests: (method, path, Range header or None) of all so far.
    """

    def __init__(self, repos: dict[str, dict[str, bytes]]):
        self.repos = repos
        self.requests: list[tuple[str, str, str | None]] = []
        self._cuts: dict[str, tuple[int, bool]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "LocalHub":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": self}))
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()

    def cut(self, filename: str, times: int, reset: bool = False) -> None:
        """Break the connection half-way through the next ``times`` answers that carry ``filename``.

        It is closed as by a server that stops or, with ``reset``, as by a network that fails.
        """
        self._cuts[filename] = (times, reset)

    def next_cut(self, filename: str) -> str | None:
        """How to break the answer now being sent: "close", "reset", or None for not at all."""
        with self._lock:
            times, reset = self._cuts.get(filename, (0, False))
            self._cuts[filename] = (max(times - 1, 0), reset)
        return ("reset" if reset else "close") if times else None

    def fetched(self) -> list[str]:
        """Paths of the files sent by GET, in order."""
        return [path for method, path, _ in self.requests if method == "GET" and not path.startswith("/api/")]


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/tree/.*|/revision/.*)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/(resolve/[^/]+|cdn)/(.+)", path)
        repo = api[1] if api else file[1] if file else ""
        if repo not in self.hub.repos:  # the hub's answer to whom it does not know
            self.send_whole(401, b"{}", {"X-Error-Message": "Invalid username or password."})
        elif api:
            files = self.hub.repos[repo]
            is_tree = (api[2] or "").startswith("/tree/")
            answer = list_tree(files) if is_tree else describe(repo, files, with_sizes="blobs=" in self.path)
            self.send_whole(200, json.dumps(answer).encode())
        elif file[3] not in self.hub.repos[repo]:
            self.send_whole(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        elif file[3].endswith(LARGE_FILES) and file[2] != "cdn":
            self.send_redirect(repo, file[3])
        else:
            self.send_file(repo, file[3])

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

    def send_redirect(self, repo: str, name: str) -> None:
        content = self.hub.repos[repo][name]
        linked = {"X-Linked-Etag": f'"{etag(name, content)}"', "X-Linked-Size": str(len(content))}
        elsewhere = {"Location": f"http://localhost:{self.hub.port}/{repo}/cdn/{name}"}
        self.send_whole(302, b"", linked | elsewhere | {"X-Repo-Commit": commit(self.hub.repos[repo])})

    def send_file(self, repo: str, name: str) -> None:
        content = self.hub.repos[repo][name]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        headers = {"ETag": f'"{etag(name, content)}"', "X-Repo-Commit": commit(self.hub.repos[repo])}
        headers |= {"Accept-Ranges": "bytes", "Content-Length": str(len(content) - start)}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.hub.next_cut(name) if self.command == "GET" else None
        body = content[start : start + (len(content) - start) // 2] if cut else content[start:]
        self.send_whole(206 if wanted else 200, body, headers)
        if cut:
            self.close_connection = True
        if cut == "reset":  # linger for 0 s: what is under way is dropped, and the other side told so
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())


def commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(json.dumps([etag(name, files[name]) for name in sorted(files)]).encode()).hexdigest()


def etag(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if name.endswith(LARGE_FILES) else git_id(content)


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def describe(repo: str, files: dict[str, bytes], with_sizes: bool) -> dict:
    siblings = [{"rfilename": name} | ({"size": len(files[name])} if with_sizes else {}) for name in files]
    facts = {"private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
    return {"id": repo, "modelId": repo, "sha": commit(files), "siblings": siblings} | facts


def list_tree(files: dict[str, bytes]) -> list[dict]:
    entries = []
    for name, content in files.items():
        entry = {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
        if name.endswith(LARGE_FILES):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        entries.append(entry)
    return entries
