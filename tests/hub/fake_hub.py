"""A Hugging Face hub on this machine: repositories with branches and commits, closed and gated ones, no network."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_the_owner"


@dataclass
class Repository:
    """Files by commit, and commits by branch."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        before = self.commits.get(self.branches.get(branch, ""), {})
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = before | files, sha
        return sha

    def resolve(self, revision: str) -> str | None:
        found = self.branches.get(revision, revision)
        return found if found in self.commits else None


@dataclass
class FakeHub:
    """The state of the server.

    Attributes
    ----------
    repositories
        By ``owner/name``.
    asked
        Method and path of every request.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def fetched(self) -> list[str]:
        """Names of the files that were downloaded."""
        return [a.split("/")[-1] for a in self.asked if a.startswith("GET") and "/resolve/" in a]


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *args: Any) -> None:
        pass

    def _send(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _open(self, name: str) -> Repository | None:
        """Return a repository that the request may see, else answer as the hub does."""
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not known):
            self._send(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif found.gated and not known and "/resolve/" in self.path:
            self._send(403, {"error": "gated"}, X_Error_Code="GatedRepo")
        else:
            return found
        return None

    def do_GET(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        parts = [unquote(p) for p in urlsplit(self.path).path.strip("/").split("/")]
        api = parts[0] == "api"
        name = "/".join(parts[2:4] if api else parts[:2])
        if (repository := self._open(name)) is None:
            return
        kind, revision = parts[4:6] if len(parts) > 5 else ("revision", "main")
        if not api:
            kind, revision = parts[2:4]
        if (sha := repository.resolve(revision)) is None:
            self._send(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            return
        files = repository.commits[sha]
        if kind == "revision":
            siblings = [{"rfilename": f} for f in files]
            self._send(200, {"id": name, "sha": sha, "private": repository.private, "tags": [], "siblings": siblings})
        elif kind == "tree":
            self._send(200, [{"type": "file", "path": f, "size": len(c), "oid": _oid(c)} for f, c in files.items()])
        elif (content := files.get("/".join(parts[4:]))) is None:
            self._send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        else:
            self._send(200, content, X_Repo_Commit=sha, ETag=f'"{_oid(content)}"')

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = [unquote(p) for p in urlsplit(self.path).path.strip("/").split("/")]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid username or password."})
        elif parts[1:] == ["repos", "create"]:
            self._create(json.loads(body))
        elif parts[1:] == ["validate-yaml"]:
            text = json.loads(body)["content"]
            header = yaml.safe_load(text.split("---\n")[1])
            errors = [] if isinstance(header, dict) else [{"message": "not a mapping"}]
            self._send(200 if not errors else 400, {"errors": errors, "warnings": []})
        elif (repository := self._open("/".join(parts[2:4]))) is not None:
            self._write(repository, parts[4], "/".join(parts[5:]), body)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
            return
        closed = asked.get("private") is True or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private=closed)
        self.hub.repositories[name].commit({".gitattributes": b""})
        self._send(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def _write(self, repository: Repository, what: str, revision: str, body: bytes) -> None:
        if what == "branch":
            taken = revision in repository.branches
            if not taken:
                repository.branches[revision] = repository.branches["main"]
            self._send(409 if taken else 200, {})
        elif what == "preupload":
            names = [f["path"] for f in json.loads(body)["files"]]
            self._send(200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        else:
            lines = [json.loads(line) for line in body.decode().splitlines() if line]
            sent = [line["value"] for line in lines if line["key"] == "file"]
            files = {f["path"]: base64.b64decode(f["content"]) for f in sent}
            sha = repository.commit(files, revision)
            self._send(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/a/b/commit/{sha}"})


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Run a hub of no repositories on a free port of this machine."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
