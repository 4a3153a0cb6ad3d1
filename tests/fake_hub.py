"""A Hugging Face Hub of one process: what its client asks for to make repositories, upload, list and download, over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from maelift.tests.support import environment

WRITER, READER = "hf_writerwriterwriter", "hf_readerreaderreader"
"""Tokens that the fake knows: of ada, who may write to repositories of her own, and of one who may only read."""


@dataclass
class Repo:
    """A repository: its commits (hash, files), and the commit that each branch is at."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that a branch or a hash names, and its files."""
        commit = self.branches.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None

    def commit(self, branch: str, files: Mapping[str, bytes]) -> str:
        """Put a branch to a new commit of these files."""
        digest = hashlib.sha1(f"{len(self.commits)} {branch} {sorted(files)}".encode()).hexdigest()
        self.commits[digest], self.branches[branch] = dict(files), digest
        return digest


@dataclass
class FakeHub:
    """The state of the fake, and what went wrong on request.

    ``requests``: method and path of all that was asked; ``hang`` and ``fail``: paths (regular expressions) that are never
    answered, or with a status.
    """

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    hang: str | None = None
    fail: tuple[str, int] | None = None
    close: Callable[[], None] = lambda: None

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        found = self.repos[repo].files(revision)
        assert found is not None
        return found[1]

    def environment(self, cache: Path, token: str | None = WRITER) -> dict[str, str]:
        """The environment of a process that takes the fake for the Hub, and knows no other token."""
        kept = {name: value for name, value in environment().items() if not name.startswith(("HF_", "HUGGING"))}
        own = {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return {**kept, **own, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **({} if token is None else {"HF_TOKEN": token})}


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """The fake at work on a free port of this machine."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address, hub.close = f"http://127.0.0.1:{server.server_address[1]}", server.server_close
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """The Hub's interface, as far as the client uses it here."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self._chunks()
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.hang is not None and re.search(self.hub.hang, path):
            time.sleep(3600)
        if self.hub.fail is not None and re.search(self.hub.fail[0], path):
            return self._error(self.hub.fail[1], "made to fail")
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        if self.token not in (None, WRITER, READER) and not path.startswith("/lfs/"):
            return self._error(401, "Invalid credentials in Authorization header")
        for method, pattern, act in ROUTES:
            if self.command in method.split() and (found := re.fullmatch(pattern, path)):
                return act(self, *found.groups())
        return self._error(404, f"no such address: {path}")

    def _chunks(self) -> bytes:
        """The body of a request that is sent in chunks."""
        content = b""
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return content

    def _send(self, status: int, content: bytes, headers: Mapping[str, str], kind: str = "application/json") -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content: object, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {})

    def _error(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _may_write(self, repo: str) -> bool:
        if self.token == WRITER and repo.startswith("ada/"):
            return True
        self._error(403 if self.token else 401, "You don't have the rights to write here")
        return False

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.token != WRITER):
            self._error(404 if self.token else 401, "Repository not found", "RepoNotFound")
            return None
        return repo

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self._may_write(name):
            return
        if name in self.hub.repos:
            return self._error(409, "You already created this model repo")
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repos[name] = Repo(private)
        self.hub.repos[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self._json({"url": f"{self.hub.address}/{name}"})

    def info(self, name: str, revision: str | None = None) -> None:
        if (repo := self._repo(name)) is None:
            return
        found = repo.files(revision or "main")
        if found is None:
            return self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        commit, files = found
        siblings = [{"rfilename": file} for file in files]
        self._json(
            {"_id": "1", "id": name, "modelId": name, "sha": commit, "private": repo.private, "siblings": siblings}
        )

    def branch(self, name: str, branch: str) -> None:
        if not self._may_write(name) or (repo := self._repo(name)) is None:
            return
        if branch in repo.branches:
            return self._error(409, "Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        self._json({})

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        try:
            stated = yaml.safe_load(content.split("---")[1]).get("license", "mit")
            errors = [] if stated in ("mit", "other") else [f'"license" must be one of [mit, other], not {stated}']
        except (yaml.YAMLError, IndexError, AttributeError) as error:
            errors = [str(error)]
        self._json({"errors": [{"message": text} for text in errors], "warnings": []}, 400 if errors else 200)

    def preupload(self, name: str, revision: str) -> None:
        if not self._may_write(name) or (repo := self._repo(name)) is None:
            return
        if repo.files(revision) is None:
            return self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = [("lfs" if path.endswith(".safetensors") else "regular", path) for path in paths]
        self._json({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for mode, path in modes]})

    def lfs_batch(self, name: str) -> None:
        if not self._may_write(name):
            return
        objects = json.loads(self.body)["objects"]
        there = [one for one in objects if one["oid"] in self.hub.blobs]
        new = [
            {**one, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{one['oid']}"}}}
            for one in objects
            if one not in there
        ]
        self._json({"transfer": "basic", "objects": [*there, *new]})

    def lfs_upload(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.blobs[oid] = self.body
        self._send(200, b"", {})

    def commit(self, name: str, revision: str) -> None:
        if not self._may_write(name) or (repo := self._repo(name)) is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        head, files = dict(repo.branches), dict(repo.files(revision)[1])  # type: ignore[index]
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", head[revision]) != head[revision]:
                return self._error(412, "A commit has happened since. Please refresh and try again.")
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            if line["key"] == "deletedFile":
                del files[value["path"]]
        commit = repo.commit(revision, files)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.address}/{name}/commit/{commit}"})

    def resolve(self, name: str, revision: str, file: str) -> None:
        if (repo := self._repo(name)) is None:
            return
        found = repo.files(revision)
        if found is None:
            return self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        commit, files = found
        if file not in files:
            self.send_response(404)
            for header, value in {
                "X-Error-Code": "EntryNotFound",
                "X-Repo-Commit": commit,
                "Content-Length": "0",
            }.items():
                self.send_header(header, value)
            return self.end_headers()
        content = files[file]
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if part is None:
            return self._send(200, content, headers, "application/octet-stream")
        first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], headers, "application/octet-stream")


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: tuple[tuple[str, str, Callable[..., None]], ...] = (
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("GET", rf"/api/models/{_NAME}", _Handler.info),
    ("GET", rf"/api/models/{_NAME}/revision/(.+)", _Handler.info),
    ("POST", rf"/api/models/{_NAME}/branch/(.+)", _Handler.branch),
    ("POST", rf"/api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    ("POST", rf"/api/models/{_NAME}/commit/(.+)", _Handler.commit),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(\w+)", _Handler.lfs_upload),
    ("GET HEAD", rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
)

LOOP = """\
import io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout
import maelift, timm, torch
from maelift.cli import main

for line in sys.stdin:
    asked = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    os.environ.update(asked["environment"])
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        for handler in __import__("logging").getLogger("maelift").handlers[:]:
            __import__("logging").getLogger("maelift").removeHandler(handler)
        if asked["words"] is None:
            names = {}
            try:
                exec(asked["code"], names)
                code = 0
            except maelift.MaeliftError as error:
                code = 2
                print("maelift code:", error, file=sys.stderr)
        else:
            code = main(asked["words"])
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=sys.__stdout__, flush=True)
"""


class HubProcess:
    """A Python that took the fake for the Hub when it was started, as the client reads its address on import only.

    It runs one command after the other, so that torch is imported once.
    """

    def __init__(self, hub: FakeHub, cache: Path, **more: str) -> None:
        command = [sys.executable, "-c", LOOP]
        env = {**hub.environment(cache, None), **more}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True, cwd=cache.parent
        )

    def run(self, *words: object, token: str | None = WRITER) -> subprocess.CompletedProcess[str]:
        """Run ``maelift`` with these words."""
        return self._ask({"words": [str(word) for word in words]}, token)

    def python(self, code: str, token: str | None = WRITER) -> subprocess.CompletedProcess[str]:
        """Run Python."""
        return self._ask({"words": None, "code": code}, token)

    def _ask(self, request: dict[str, Any], token: str | None) -> subprocess.CompletedProcess[str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        own = {} if token is None else {"HF_TOKEN": token}
        self._process.stdin.write(json.dumps({**request, "environment": own}) + "\n")
        self._process.stdin.flush()
        code, out, err = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(["maelift"], code, out, err)

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.wait() not in (0, -13):
            raise AssertionError(os.strerror(self._process.returncode))
