"""A hub on this machine: a server of the few routes of the Hugging Face hub that pushing and pulling a model take."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import yaml

TOKEN = "hf_of_the_tests"
LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "other", "unknown"}
"""A few of those that the hub knows; it refuses a card with any other."""


@dataclass
class Repository:
    """A repository's commits, oldest first: the files of each, by name."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add files to those of the last commit."""
        everything = {**(self.commits[-1][1] if self.commits else {}), **files}
        oid = hashlib.sha1(repr((len(self.commits), sorted(everything.items()))).encode()).hexdigest()
        self.commits.append((oid, everything))
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1] if self.commits else None
        return next((commit for commit in self.commits if commit[0] == revision), None)


@dataclass
class Hub:
    """What the server holds, and what it was asked."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and asked range of each request."""
    stalls_in: str | None = None
    """The file whose download stops in the middle; `go_on` lets it end."""
    stalled: Event = field(default_factory=Event)
    go_on: Event = field(default_factory=Event)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that takes this server for the hub; without Xet, a storage of another protocol."""
        return {"HF_ENDPOINT": self.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"} | {
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }


@contextmanager
def local_hub() -> Iterator[Hub]:
    """Serve a hub without repositories within the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfThisHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._get(body=False)

    def do_GET(self) -> None:
        self._get(body=True)

    def do_PUT(self) -> None:
        self._note()
        data = self._body()
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(data).hexdigest() != oid:
            return self._send(400, b"")
        self.hub.blobs[oid] = data
        return self._send(200, b"")

    def do_POST(self) -> None:
        self._note()
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if re.fullmatch(r"/[\w.-]+/[\w.-]+\.git/info/lfs/objects/batch", self.path):
            objects = [
                one | {"actions": {"upload": {"href": f"{self.hub.address}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(preupload|commit)/main", self.path):
            repository = self.hub.repositories.get(found[1])
            if repository is None:
                return self._missing("RepoNotFound")
            return self._preupload(body) if found[2] == "preupload" else self._commit(found[1], repository, body)
        return self._send(404, b"")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization')}/{asked['name']}"
        there = name in self.hub.repositories
        self.hub.repositories.setdefault(
            name, Repository(asked.get("visibility") == "private" or bool(asked.get("private")))
        )
        answer = {"url": f"{self.hub.address}/{name}", "name": name, "id": "1"}
        self._json(
            {"error": "You already created this model repo"} | answer if there else answer, 409 if there else 200
        )

    def _validate(self, card: str) -> None:
        head = yaml.safe_load(card.split("---\n")[1])
        if head["license"] not in LICENCES:
            return self._json(
                {"errors": [{"message": '"license" must be one of [apache-2.0, …]'}], "warnings": []}, 400
            )
        return self._json({"errors": [], "warnings": []})

    def _preupload(self, body: bytes) -> None:
        modes = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
            for file in json.loads(body)["files"]
        ]
        self._json({"files": [mode | {"shouldIgnore": False} for mode in modes]})

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        files: dict[str, bytes] = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        oid = repository.commit(files)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.address}/{name}/commit/{oid}"})

    def _get(self, body: bool) -> None:
        self._note()
        if self.path == "/":
            return self._send(200, b"")
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/([\w.-]+))?", self.path):
            name, revision, file = found[1], found[2] or "main", None
        elif found := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/([\w.-]+)", self.path):
            name, revision, file = found.groups()
        else:
            return self._send(404, b"")
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            return self._missing("RepoNotFound")
        commit = repository.at(revision)
        if commit is None:
            return self._missing("RevisionNotFound")
        oid, files = commit
        if file is None:
            siblings = [{"rfilename": one} for one in files]
            return self._json(
                {"id": name, "modelId": name, "sha": oid, "private": repository.private, "siblings": siblings}
            )
        return self._file(oid, file, files[file], body) if file in files else self._missing("EntryNotFound")

    def _file(self, commit: str, name: str, content: bytes, body: bool) -> None:
        """Send a file, or the part of it that is asked for; stop in the middle of the one that stalls."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        for key, value in (headers | {"Content-Length": str(len(content) - start)}).items():
            self.send_header(key, value)
        self.end_headers()
        if body and self.hub.stalls_in == name:
            middle = (start + len(content)) // 2
            self.wfile.write(content[start:middle])
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.go_on.wait()
            start = middle
        if body:
            self.wfile.write(content[start:])

    def _note(self) -> None:
        self.path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            return b"".join(iter(self._chunk, b""))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def _missing(self, code: str) -> None:
        self._send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": f"{code} says the hub"})

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode())

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        ).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
