"""A stand-in of Hugging Face on this machine: a real HTTP server, with faults on request.

It has what loading and uploading use: creating a repository, its description, `preupload`, the LFS
batch, the upload of an object to another host, `verify`, `commit`, and `resolve`, which redirects
to the other host for large files. It refuses what the site would: writers without a token, large
files in a commit, objects that are not what their sha256 says, commits onto another parent.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_standinsecret"
#: Endings of the files that are stored as large ones, as in the site's own .gitattributes.
LARGE = (".safetensors", ".onnx", ".pth", ".pt", ".ckpt", ".bin", ".gz")

Headers = dict[str, str]
Answer = tuple[int, Headers, bytes]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Fault:
    """What happens to the next requests whose "METHOD /path" the pattern finds.

    Attributes:
        kind: "status" answers so; "cut" ends the body half-way; "flip" changes its last byte;
            "more" sends more than was said; "drip" sends a byte every `pause_s`.
    """

    pattern: str
    kind: Literal["status", "cut", "flip", "more", "drip"] = "status"
    status: int = 503
    headers: Headers = field(default_factory=dict)
    times: int = 1
    pause_s: float = 0.02


@dataclass
class Repository:
    """Files of each commit, oldest first."""

    private: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add a commit of exactly these files."""
        seed = json.dumps([len(self.commits), sorted((n, sha256(c)) for n, c in files.items())])
        self.commits.append((hashlib.sha1(seed.encode()).hexdigest(), dict(files)))
        return self.commits[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        revision = self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit[0] == revision), None)

    @property
    def files(self) -> dict[str, bytes]:
        """What its newest commit holds."""
        return self.commits[-1][1]


@dataclass
class Asked:
    """A request that came."""

    host: Literal["hub", "store"]
    line: str
    headers: Headers
    body: bytes


class Hub:
    """The site, and the host that stores its large files.

    Attributes:
        url, store: addresses of the two.
        repositories: by "model OWNER/NAME" or "dataset OWNER/NAME".
        objects: large files by sha256.
        asked: all requests, oldest first.
    """

    def __init__(self) -> None:
        self.url = self.store = ""
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.faults: list[Fault] = []
        self.names: dict[str, str] = {}  # where it lies about a file's name
        self.sizes: dict[str, int] = {}  # or its size

    def add(self, name: str, files: dict[str, bytes], kind: str = "model") -> Repository:
        """Make a public repository of these files."""
        repository = self.repositories[f"{kind} {name}"] = Repository()
        repository.commit(files)
        return repository

    def lines(self, pattern: str = "") -> list[str]:
        """Give the requests that came, as "METHOD /path", those that the pattern finds."""
        return [asked.line for asked in self.asked if re.search(pattern, asked.line)]

    def fail(self, pattern: str, **fault: Any) -> None:
        self.faults.append(Fault(pattern, **fault))

    # --- answers ---------------------------------------------------------------------------------

    def answer(self, asked: Asked, query: dict[str, list[str]]) -> Answer:
        method, path = asked.line.split(" ", 1)
        if asked.host == "store":
            return self._stored(method, path, asked, query)
        writer = asked.headers.get("authorization") == f"Bearer {TOKEN}"
        if not writer and "authorization" in asked.headers:
            return said(401, {"error": "Invalid credentials in Authorization header"})
        if method == "POST" and not writer:
            return said(401, {"error": "Unauthorized"})
        for pattern, answer in self._routes().items():
            if match := re.fullmatch(pattern, asked.line):
                found: Answer = answer(asked, writer, *map(unquote, match.groups()))
                return found
        return said(404, {"error": "not found"})

    def _routes(self) -> dict[str, Any]:
        name = r"([\w.-]+/[\w.-]+)"
        return {
            "POST /api/repos/create": self._create,
            "POST /api/validate-yaml": self._validate,
            rf"GET /api/(model|dataset)s/{name}": self._described,
            rf"GET /api/(model|dataset)s/{name}/revision/([^/]+)": self._described,
            rf"POST /api/(model|dataset)s/{name}/preupload/main": self._preupload,
            rf"POST /api/(model|dataset)s/{name}/commit/main": self._commit,
            rf"POST /(datasets/|){name}\.git/info/lfs/objects/batch": self._batch,
            r"POST /verify": self._verify,
            rf"(?:GET|HEAD) /(datasets/|){name}/resolve/([^/]+)/(.+)": self._resolve,
        }

    def _found(self, kind: str, name: str, writer: bool) -> Repository | None:
        kind = "dataset" if kind.startswith("dataset") else "model"
        found = self.repositories.get(f"{kind} {name}")
        return found if found and (writer or not found.private) else None

    def _create(self, asked: Asked, writer: bool) -> Answer:
        wish = json.loads(asked.body)
        kind, name = wish.get("type") or "model", f"{wish['organization']}/{wish['name']}"
        path = f"datasets/{name}" if kind == "dataset" else name
        if f"{kind} {name}" in self.repositories:
            return said(409, {"error": "You already created it", "url": f"{self.url}/{path}"})
        private = wish.get("visibility") == "private" or bool(wish.get("private"))
        self.add(name, {".gitattributes": b""}, kind).private = private
        return said(200, {"url": f"{self.url}/{path}", "name": name})

    def _validate(self, asked: Asked, writer: bool) -> Answer:
        import yaml

        try:
            front = yaml.safe_load(json.loads(asked.body)["content"].split("---\n")[1])
            errors = [] if isinstance(front, dict) else [{"message": "no mapping"}]
        except (yaml.YAMLError, IndexError) as exc:
            errors = [{"message": str(exc)}]
        return said(400 if errors else 200, {"errors": errors, "warnings": []})

    def _described(
        self, asked: Asked, writer: bool, kind: str, name: str, revision: str = "main"
    ) -> Answer:
        repository = self._found(kind, name, writer)
        if repository is None:
            return _no_repository(writer)
        found = repository.at(revision)
        if found is None:
            return said(404, {"error": "no"}, {"X-Error-Code": "RevisionNotFound"})
        siblings = [self._sibling(name, content) for name, content in found[1].items()]
        about = {"id": name, "sha": found[0], "private": repository.private, "siblings": siblings}
        return said(200, {**about, "modelId": name, "tags": [], "downloads": 0, "likes": 0})

    def _sibling(self, name: str, content: bytes) -> dict[str, Any]:
        size = self.sizes.get(name, len(content))
        about = {"rfilename": self.names.get(name, name), "size": size, "blobId": git_sha1(content)}
        if not name.endswith(LARGE):
            return about
        pointer = f"version 1\noid sha256:{sha256(content)}\nsize {len(content)}\n".encode()
        lfs = {"sha256": sha256(content), "size": size, "pointerSize": len(pointer)}
        return {**about, "blobId": git_sha1(pointer), "lfs": lfs}

    def _preupload(self, asked: Asked, writer: bool, kind: str, name: str) -> Answer:
        repository = self._found(kind, name, writer)
        if repository is None:
            return _no_repository(writer)
        files = []
        for file in json.loads(asked.body)["files"]:
            old = repository.files.get(file["path"])
            large = file["path"].endswith(LARGE)
            oid = None if old is None else sha256(old) if large else git_sha1(old)
            mode = "lfs" if large else "regular"
            files.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        return said(200, {"files": files})

    def _batch(self, asked: Asked, writer: bool, kind: str, name: str) -> Answer:
        if self._found(kind, name, writer) is None:
            return _no_repository(writer)
        objects = []
        for wish in json.loads(asked.body)["objects"]:
            upload = {"href": f"{self.store}/{wish['oid']}?size={wish['size']}"}
            verify = {"href": f"{self.url}/verify"}
            new = wish["oid"] not in self.objects
            objects.append(
                wish | ({"actions": {"upload": upload, "verify": verify}} if new else {})
            )
        return said(200, {"transfer": "basic", "objects": objects})

    def _verify(self, asked: Asked, writer: bool) -> Answer:
        wish = json.loads(asked.body)
        there = len(self.objects.get(wish["oid"], b"")) == wish["size"]
        return said(200 if there else 404, {})

    def _commit(self, asked: Asked, writer: bool, kind: str, name: str) -> Answer:
        repository = self._found(kind, name, writer)
        if repository is None:
            return _no_repository(writer)
        files = dict(repository.files)
        for line in map(json.loads, asked.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                if value.get("parentCommit") not in (None, repository.commits[-1][0]):
                    return said(412, {"error": "A commit has happened since"})
            elif line["key"] == "file":
                if value["path"].endswith(LARGE):
                    return said(400, {"error": f"{value['path']} must be stored as a large file"})
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return said(400, {"error": f"{value['path']} was not uploaded"})
                files[value["path"]] = self.objects[value["oid"]]
            else:
                return said(400, {"error": f"unknown {line['key']}"})
        oid = repository.commit(files)
        return said(200, {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid})

    def _resolve(
        self, asked: Asked, writer: bool, kind: str, name: str, revision: str, file: str
    ) -> Answer:
        repository = self._found(kind, name, writer)
        if repository is None:
            return _no_repository(writer)
        found = repository.at(revision)
        if found is None:
            return said(404, {}, {"X-Error-Code": "RevisionNotFound"})
        if file not in found[1]:
            return said(404, {}, {"X-Error-Code": "EntryNotFound"})
        content = found[1][file]
        headers = {"X-Repo-Commit": found[0], "ETag": f'"{git_sha1(content)}"'}
        if not file.endswith(LARGE):
            return 200, headers, content
        self.objects[sha256(content)] = content
        linked = {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
        location = f"{self.store}/{sha256(content)}?signature=presigned"
        return 302, {**headers, **linked, "Location": location}, b"Found"

    def _stored(self, method: str, path: str, asked: Asked, query: dict[str, list[str]]) -> Answer:
        """Answer for the host of large files, which wants no token: its addresses are signed."""
        if "authorization" in asked.headers:
            return said(400, {"error": "Only one auth mechanism allowed"})
        oid = path.removeprefix("/")
        if method == "PUT":
            if sha256(asked.body) != oid or query["size"] != [str(len(asked.body))]:
                return said(400, {"error": "BadDigest"})
            self.objects[oid] = asked.body
            return 200, {}, b""
        if method == "GET" and oid in self.objects:
            return 200, {}, self.objects[oid]
        return said(404, {})


def said(status: int, value: Any, headers: Headers | None = None) -> Answer:
    return (
        status,
        {"Content-Type": "application/json", **(headers or {})},
        json.dumps(value).encode(),
    )


def _no_repository(writer: bool) -> Answer:
    """As the site answers: a stranger is not told whether there is one."""
    status = 404 if writer else 401
    return said(status, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})


# --- the servers ---------------------------------------------------------------------------------


def _handler(hub: Hub, host: Literal["hub", "store"]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self._body()
            parts = urlsplit(self.path)
            headers = {key.lower(): value for key, value in self.headers.items()}
            asked = Asked(host, f"{self.command} {parts.path}", headers, body)
            hub.asked.append(asked)
            fault = next(
                (f for f in hub.faults if f.times and re.search(f.pattern, asked.line)), None
            )
            if fault is not None:
                fault.times -= 1
            if fault is not None and fault.kind == "status":
                self._send(*said(fault.status, {"error": "a fault"}, fault.headers))
            else:
                self._send(*hub.answer(asked, parse_qs(parts.query)), fault)

        do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _send(
            self, status: int, headers: Headers, content: bytes, fault: Fault | None = None
        ) -> None:
            self.send_response(status)
            chunked = fault is not None and fault.kind == "more"
            length = {"Transfer-Encoding": "chunked"} if chunked else {
                "Content-Length": str(len(content))
            }  # fmt: skip
            for key, value in {**length, **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault is None:
                self.wfile.write(content)
                return
            self.close_connection = True
            self._spoilt(content, fault)

        def _spoilt(self, content: bytes, fault: Fault) -> None:
            try:
                if fault.kind == "cut":
                    self.wfile.write(content[: len(content) // 2])
                elif fault.kind == "flip":
                    self.wfile.write(content[:-1] + bytes([content[-1] ^ 1]))
                elif fault.kind == "more":
                    for _ in range(1000):
                        self.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
                elif fault.kind == "drip":
                    for byte in content:
                        self.wfile.write(bytes([byte]))
                        Event().wait(fault.pause_s)
            except OSError:
                pass  # who asked has left

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@contextmanager
def served(hub: Hub, host: Literal["hub", "store"], address: str) -> Iterator[str]:
    server = ThreadingHTTPServer((address, 0), _handler(hub, host))
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://{address}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


#: What would lead elsewhere.
_VARIABLES = (
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
)  # fmt: skip


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch, home: str) -> Iterator[Hub]:
    """Run a hub, and let HF_ENDPOINT and HF_HOME name it and an empty folder, without a token."""
    hub = Hub()
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with served(hub, "hub", "127.0.0.1") as hub.url, served(hub, "store", "127.0.0.2") as hub.store:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", home)
        yield hub
