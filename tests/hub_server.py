"""A small server that speaks as much of the hub's protocol as its clients use, from folders on disk.

``Hub().add("org/name", folder)`` serves the folder as a repository under ``hub.url``; a client is
pointed at it by ``HF_ENDPOINT`` in its environment. It listens on 127.0.0.1 only.

Switches of a repository: ``gated`` answers 401 or 403 for its files, ``cut`` breaks the first download
of a file off half-way, ``wrong`` serves other bytes than it lists.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LFS = (".safetensors", ".parquet", ".bin")  # the hub keeps these by SHA-256, other files by git's SHA-1


@dataclass
class Repository:
    id: str
    folder: Path
    kind: str = "model"
    gated: int = 0  # 401 or 403 for its files
    gated_info: bool = False  # the same for its listing
    cut: set[str] = field(default_factory=set)  # files whose next download stops half-way
    wrong: set[str] = field(default_factory=set)  # files that are sent with other content
    etags: dict[tuple[str, int, int], str] = field(default_factory=dict)

    def names(self) -> list[str]:
        paths = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return [path.relative_to(self.folder).as_posix() for path in paths]

    def commit(self) -> str:
        listing = "".join(name + self.etag(name) for name in self.names())
        return hashlib.sha1((self.id + listing).encode()).hexdigest()

    def etag(self, name: str) -> str:
        """The checksum that the hub lists; computed once for a file, until it changes."""
        path = self.folder / name
        stat = path.stat()
        key = (name, stat.st_size, stat.st_mtime_ns)
        if key not in self.etags:
            content = path.read_bytes()
            plain = hashlib.sha1(b"blob %d\0" % len(content) + content)
            self.etags[key] = (hashlib.sha256(content) if name.endswith(LFS) else plain).hexdigest()
        return self.etags[key]

    def entry(self, name: str) -> dict:
        """A file as the tree and the listing describe it."""
        size, etag = (self.folder / name).stat().st_size, self.etag(name)
        entry = {
            "type": "file",
            "path": name,
            "rfilename": name,
            "size": size,
            "oid": etag[:40],
            "blobId": etag[:40],
        }
        if name.endswith(LFS):
            entry["lfs"] = {"oid": etag, "sha256": etag, "size": size, "pointerSize": 134}
        return entry

    def info(self) -> dict:
        return {
            "_id": self.commit()[:24], "id": self.id, "modelId": self.id, "sha": self.commit(), "private": False,
            "disabled": False, "gated": "manual" if self.gated else False, "tags": [], "downloads": 0, "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": [self.entry(name) for name in self.names()],
        }  # fmt: skip


class Hub:
    """The server; use it as a context manager or call :meth:`close`."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[str] = []  # "METHOD /path range", in order
        self.tokens: list[str] = []  # authorization headers that were received
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, id: str, folder: Path, kind: str = "model", **switches) -> Repository:
        self.repositories[kind, id] = repository = Repository(id, Path(folder), kind, **switches)
        return repository

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode() if length else ""
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if "Authorization" in self.headers:
            self.hub.tokens.append(self.headers["Authorization"])
        parts = path.strip("/").split("/")
        if parts[:1] == ["api"] and len(parts) >= 4 and parts[1] in ("models", "datasets"):
            return self._api(parts[1][:-1], "/".join(parts[2:4]), parts[4:], body)
        kind, parts = ("dataset", parts[1:]) if parts[:1] == ["datasets"] else ("model", parts)
        if len(parts) >= 5 and parts[2] == "resolve":
            return self._file(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self._error(404, "EntryNotFound", "no such page")

    do_HEAD = do_POST = do_GET

    def _api(self, kind: str, id: str, rest: list[str], body: str) -> None:
        repository = self.hub.repositories.get((kind, id))
        if repository is None:
            return self._error(404, "RepoNotFound", "Repository not found")
        if repository.gated and repository.gated_info:
            return self._gated(repository)
        match rest:
            case [] | ["revision", _]:
                if rest and not self._has(repository, rest[1]):
                    return self._error(404, "RevisionNotFound", "Invalid rev id")
                return self._json(repository.info())
            case ["tree", revision, *folder]:
                if not self._has(repository, revision):
                    return self._error(404, "RevisionNotFound", "Invalid rev id")
                inside = "/".join(folder)
                names = [name for name in repository.names() if not inside or name.startswith(inside + "/")]
                if inside and not names:
                    return self._error(404, "EntryNotFound", "no such folder")
                return self._json(self._folders(names) + [repository.entry(name) for name in names])
            case ["paths-info", revision]:
                paths = self._asked_paths(body)
                names = [name for name in repository.names() if name in paths]
                folders = [entry for entry in self._folders(repository.names()) if entry["path"] in paths]
                return self._json(folders + [repository.entry(name) for name in names])
        return self._error(404, "EntryNotFound", "not served here")

    def _file(self, kind: str, id: str, revision: str, name: str) -> None:
        repository = self.hub.repositories.get((kind, id))
        if repository is None:
            return self._error(404, "RepoNotFound", "Repository not found")
        if repository.gated:
            return self._gated(repository)
        if not self._has(repository, revision):
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        if name not in repository.names():
            return self._error(
                404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repository.commit()}
            )
        content = (repository.folder / name).read_bytes()
        if name in repository.wrong:
            content = bytes(byte ^ 1 for byte in content)
        headers = {
            "ETag": f'"{repository.etag(name)}"',
            "X-Repo-Commit": repository.commit(),
            "Accept-Ranges": "bytes",
        }
        if name.endswith(LFS):
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": headers["ETag"]}
        status, start = 200, 0
        if self.command == "GET" and self.headers.get("Range", "").startswith("bytes="):
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            status, start = 206, int(first)
            end = min(int(last or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content = content[start : end + 1]
        self._send(status, content, headers, cut=self.command == "GET" and name in repository.cut)
        if self.command == "GET":
            repository.cut.discard(name)

    def _has(self, repository: Repository, revision: str) -> bool:
        return revision in ("main", repository.commit())

    def _folders(self, names: list[str]) -> list[dict]:
        parents = {str(parent) for name in names for parent in Path(name).parents if str(parent) != "."}
        return [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(parents)]

    def _asked_paths(self, body: str) -> list[str]:
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(body)["paths"]
            return [paths] if isinstance(paths, str) else paths
        pairs = (pair.split("=", 1) for pair in body.split("&") if "=" in pair)
        return [unquote(value.replace("+", " ")) for key, value in pairs if key == "paths"]

    def _gated(self, repository: Repository) -> None:
        message = (
            f"Access to model {repository.id} is restricted. You must have access to it and be authenticated."
        )
        self._error(repository.gated, "GatedRepo", message)

    def _error(self, status: int, code: str, message: str, headers: dict | None = None) -> None:
        facts = {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"}
        self._send(status, json.dumps({"error": message}).encode(), facts | (headers or {}))

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict, cut: bool = False) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.wfile.flush()
            self.close_connection = True
