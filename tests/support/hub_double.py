"""A stand-in for the Hugging Face hub on loopback: the part of its HTTP API that downloads use.

Stricter than the hub: what it does not know is an error, and it counts what it was asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

LARGE = 100_000  # bytes; from there on the hub has a file in its large store


@dataclass
class Hub:
    """Models by their names, each with its commits: what it is asked for, and how it fails.

    Attributes
    ----------
    models : name to commit to folder; the last commit is `main`.
    gated : names of which the terms are to be accepted.
    asked : files that were sent to their ends, and how often.
    cut : files, and how often a connection breaks off before all is sent.
    ranges : what was asked for of files from a byte on.
    down : every answer is that there is none such, but of a kind that is not tried again.
    """

    url: str = ""
    models: dict[str, dict[str, Path]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    ranges: list[tuple[str, int]] = field(default_factory=list)
    down: bool = False

    def add(self, name: str, folder: Path) -> str:
        """A commit of a model; its hash."""
        commits = self.models.setdefault(name, {})
        commit = hashlib.sha1(f"{name}{len(commits)}".encode()).hexdigest()
        commits[commit] = folder
        return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: pytest has the errors."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.hub.down:
            return self._error(501, "", "the hub is down")
        if found := re.fullmatch("/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            name, what, revision = found.groups()
            if (at := self._commit(name, revision)) is None:
                return None
            commit, folder = at
            entries = [self._entry(file, folder) for file in _files(folder)]
            listed = [{"rfilename": entry["path"]} for entry in entries]
            info = {"id": name, "modelId": name, "sha": commit, "siblings": listed}
            return self._send(200, json.dumps(entries if what == "tree" else info).encode())
        if found := re.fullmatch("/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, revision, file = found.groups()
            if (at := self._commit(name, revision)) is not None:
                self._file(*at, file, with_body)
            return None
        return self._error(500, "", f"not a path of the hub: {path}")

    def _commit(self, name: str, revision: str) -> tuple[str, Path] | None:
        commits = self.hub.models.get(name)
        if commits is None:
            self._error(401, "RepoNotFound", "Invalid username or password.")
        elif name in self.hub.gated:
            self._error(403, "GatedRepo", "Access to this model is restricted.")
        elif revision == "main":
            return list(commits.items())[-1]
        elif revision not in commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return revision, commits[revision]
        return None

    def _entry(self, file: str, folder: Path) -> dict[str, Any]:
        content = (folder / file).read_bytes()
        entry: dict[str, Any] = {
            "type": "file", "path": file, "size": len(content),
            "oid": hashlib.sha1(content).hexdigest(),
        }  # fmt: skip
        if len(content) >= LARGE:
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        return entry

    def _file(self, commit: str, folder: Path, file: str, with_body: bool) -> None:
        if file not in _files(folder):
            return self._error(404, "EntryNotFound", "Entry not found", commit)
        content = (folder / file).read_bytes()
        large = len(content) >= LARGE
        digest = (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        status = 200
        if with_body and (asked := self.headers.get("Range")):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.hub.ranges.append((file, start))
            status, content = 206, content[start:]
        cut = with_body and self.hub.cut[file] > 0
        self._send(status, content if with_body else b"", headers, len(content), cut)
        if cut:
            self.hub.cut[file] -= 1
        elif with_body:
            self.hub.asked[file] += 1
        return None

    def _error(self, status: int, code: str, text: str, commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": text}
        if commit:
            headers["X-Repo-Commit"] = commit
        self._send(status, b"" if self.command == "HEAD" else b"{}", headers)

    def _send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None,
        size: int | None = None, cut: bool = False,
    ) -> None:  # fmt: skip
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if size is None else size))
        self.end_headers()
        self.wfile.write(content[: len(content) * 3 // 4] if cut else content)
        if cut:
            self.close_connection = True


def _files(folder: Path) -> list[str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in paths]


@contextmanager
def hub_of_this_machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that `huggingface_hub` asks in this process, with a cache of its own."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
