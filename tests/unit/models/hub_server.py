"""A server on this machine that plays the hub: models and data sets by their published names, in commits, some models gated."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import huggingface_hub.constants
import pytest


@dataclass
class Repository:
    """One model or data set.

    Attributes:
        commits: commit -> folder with its files, the newest last.
        gated: whether it has a license to accept.
        granted: whether this account has accepted it.
    """

    commits: dict[str, Path] = field(default_factory=dict)
    gated: bool = False
    granted: bool = False

    def commit(self, folder: Path) -> str:
        """Makes the folder's present files the newest commit."""
        name = hashlib.sha1(f"{folder}{len(self.commits)}".encode(), usedforsecurity=False).hexdigest()
        self.commits[name] = folder
        return name

    def find(self, revision: str) -> tuple[str, Path] | None:
        commit = next(reversed(self.commits)) if revision == "main" else revision
        return (commit, self.commits[commit]) if commit in self.commits else None


@dataclass
class Hub:
    """What the server has, data sets under `datasets/OWNER/NAME`, and the paths that it was asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, name: str, folder: Path, *, gated: bool = False) -> str:
        """A repository, or a new commit of one; returns the commit."""
        repository = self.repositories.setdefault(name, Repository(gated=gated))
        return repository.commit(folder)


def _sizes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def _entries(folder: Path, inner: str, deep: bool, itself: bool) -> list[dict[str, Any]]:
    """What a hub tells of a path, or of what lies in a folder."""
    place = folder / inner
    paths = [place] if itself else sorted(place.rglob("*") if deep else place.iterdir() if place.is_dir() else [])
    about = []
    for path in paths:
        if path.exists():
            size = path.stat().st_size if path.is_file() else 0
            kind = "file" if path.is_file() else "directory"
            about.append({"type": kind, "path": path.relative_to(folder).as_posix(), "size": size, "oid": f"{size:040x}"})
    return about


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer(send=True)

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self._answer(send=True, form=parse_qs(body) if not body.startswith("{") else json.loads(body))

    def _answer(self, *, send: bool, form: dict[str, Any] | None = None) -> None:
        path = self.path.split("?")[0]
        self.hub.asked.append(path)
        parts = path.strip("/").split("/")
        api = parts[0] == "api"
        kind = ["datasets"] if "datasets" in (parts[0], parts[1] if api else "") else []
        parts = parts[2:] if api else parts[len(kind) :]
        name, rest = "/".join([*kind, *parts[:2]]), parts[2:]
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._refuse(404, "RepoNotFound")
        if api and (not rest or rest[0] == "revision"):
            found = repository.find(rest[1] if rest else "main")
            if found is None:
                return self._refuse(404, "RevisionNotFound")
            files = [{"rfilename": file, "size": size} for file, size in _sizes(found[1]).items()]
            about = {
                "id": name,
                "sha": found[0],
                "private": False,
                "siblings": files,
                "gated": "manual" if repository.gated else False,
            }
            return self._json(about | {"cardData": {"license": "mit"}})
        if repository.gated and not repository.granted:
            return self._refuse(403, "GatedRepo")
        if api and rest[0] == "auth-check":
            return self._json({})
        found = repository.find(rest[1])
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        if api and rest[0] in ("tree", "paths-info"):
            asked = (form or {}).get("paths", ["/".join(rest[2:])])
            deep = rest[0] == "tree" and "recursive=true" in self.path.lower()
            return self._json([entry for path in asked for entry in _entries(found[1], path, deep, itself=form is not None)])
        file = found[1] / "/".join(rest[2:])
        if not file.is_file():
            return self._refuse(404, "EntryNotFound")
        body = file.read_bytes()
        tag = hashlib.sha256(body).hexdigest()
        return self._send(200, body, {"ETag": f'"{tag}"', "X-Repo-Commit": found[0]}, send)

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"}, True)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code}, self.command == "GET")

    def _send(self, status: int, body: bytes, headers: dict[str, str], send: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub of this process asks instead of its own, with a cache that is empty."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_ENDPOINT", address)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
