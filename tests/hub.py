"""A Hugging Face Hub on loopback, so that loading by id, and its failures, are tested on the real client code."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from tests.uploads import Answer, Uploads

ERROR_CODES = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}
API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<rest>.+)")
FILE = re.compile(r"/(?P<datasets>datasets/)?(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class Request(NamedTuple):
    """One request, as it was answered."""

    method: str
    path: str
    status: int


class Revision:
    """A commit of a repository: a folder under a name."""

    def __init__(self, repo: str, name: str, folder: Path, private: bool = False) -> None:
        self.repo = repo
        self.name = name
        self.folder = folder
        self.private = private

    @cached_property
    def files(self) -> dict[str, Path]:
        """The files by their path in the repository."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in paths}

    @cached_property
    def sha(self) -> str:
        """The commit's hash: other contents, other hash, so that no client's cache is ever stale."""
        contents = [f"{name} {_sha1(path.read_bytes())}" for name, path in self.files.items()]
        return _sha1("\n".join([self.repo, self.name, *contents]).encode())

    def info(self) -> dict[str, object]:
        """Return what the Hub says of the commit."""
        siblings = [{"rfilename": name} for name in self.files]
        return {
            "id": self.repo,
            "sha": self.sha,
            "private": self.private,
            "gated": False,
            "tags": [],
            "siblings": siblings,
        }

    def entries(self) -> list[dict[str, object]]:
        """Return all files and folders as the Hub lists them."""
        folders = {parent.as_posix() for name in self.files for parent in Path(name).parents} - {"."}
        return [
            *({"type": "directory", "path": name, "oid": _sha1(name.encode()), "size": 0} for name in sorted(folders)),
            *(
                {"type": "file", "path": name, "oid": _sha1(path.read_bytes()), "size": path.stat().st_size}
                for name, path in self.files.items()
            ),
        ]


class Hub:
    """The server, to be used as a context manager.

    Attributes:
        requests: All requests since the last `reset`.
        uploads: What is pushed to it.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._revisions: dict[tuple[str, str], list[Revision]] = {}
        self._failures: dict[str, int] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.uploads = Uploads(self.url, self._publish)

    @property
    def url(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add_model(self, repo: str, folder: str | Path, revision: str = "main") -> None:
        """Serve a folder as a model repository, or as one more revision of it."""
        self._revisions.setdefault(("models", repo), []).append(Revision(repo, revision, Path(folder)))

    def add_dataset(self, repo: str, folder: str | Path, revision: str = "main") -> None:
        """Serve a folder as a dataset repository, or as one more revision of it."""
        self._revisions.setdefault(("datasets", repo), []).append(Revision(repo, revision, Path(folder)))

    def _publish(self, repo: str, revision: str, folder: Path, private: bool) -> None:
        """Serve what was pushed, with a hash of its own after each commit."""
        others = [known for known in self._revisions.get(("models", repo), []) if known.name != revision]
        self._revisions["models", repo] = [*others, Revision(repo, revision, folder, private)]

    def fail(self, repo: str, status: int) -> None:
        """Answer everything about a repository, known or not, with this status."""
        self._failures[repo] = status

    def reset(self) -> None:
        """Forget repositories, failures and requests."""
        self._revisions.clear()
        self._failures.clear()
        self.requests.clear()
        self.uploads = Uploads(self.url, self._publish)

    def failure(self, path: str) -> int | None:
        """Return the status that requests to this path are to fail with, if any."""
        return next((status for repo, status in self._failures.items() if f"/{repo}/" in f"{path}/"), None)

    def revision(self, kind: str, repo: str, name: str) -> Revision | None:
        """Return a revision by its name or hash; None where the repository has no such revision.

        Raises:
            KeyError: If there is no such repository.
        """
        revisions = self._revisions[kind, repo]
        return next((revision for revision in revisions if name in (revision.name, revision.sha)), None)

    def split_api_path(self, kind: str, rest: str) -> tuple[str, str, str, str]:
        """Split what follows `/api/<kind>/` into repository, action, revision and path in the repository.

        Raises:
            KeyError: If there is no such repository.
        """
        parts = rest.split("/")
        for length in (2, 1):
            repo = "/".join(parts[:length])
            if (kind, repo) in self._revisions:
                action, revision, *path = [*parts[length:], *("", "main")[len(parts) - length :]]
                return repo, action, unquote(revision), unquote("/".join(path))
        raise KeyError(rest)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        if status := self.hub.failure(path) or self.hub.failure(self._new_repo(path)):
            self._error(status, ERROR_CODES.get(status, ""))
            return
        if (answer := self.hub.uploads.answer(path, self._body, self.headers)) is not None:
            self._upload(answer)
            return
        try:
            if match := API.fullmatch(path):
                self._api(match["kind"], match["rest"])
            elif match := FILE.fullmatch(path):
                kind = "datasets" if match["datasets"] else "models"
                self._file(kind, match["repo"], unquote(match["revision"]), unquote(match["path"]))
            else:
                self._error(404, "")
        except KeyError:
            self._error(404, "RepoNotFound")

    do_HEAD = do_POST = do_PUT = do_GET

    def _upload(self, answer: Answer) -> None:
        if answer.status is None:
            self.close_connection = True
            return
        content = b"" if answer.value is None else json.dumps(answer.value).encode()
        self._answer(answer.status, content, None, {"Content-Type": "application/json", **answer.headers})

    def _new_repo(self, path: str) -> str:
        """Return the path of the repository that is to be made, if one is."""
        if path != "/api/repos/create":
            return ""
        wanted = json.loads(self._body)
        return f"/{wanted['organization']}/{wanted['name']}"

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def _api(self, kind: str, rest: str) -> None:
        repo, action, name, path = self.hub.split_api_path(kind, rest)
        revision = self.hub.revision(kind, repo, name)
        if revision is None:
            self._error(404, "RevisionNotFound")
        elif action in ("", "revision"):
            self._json(revision.info(), revision)
        elif action == "tree":
            self._tree(revision, path)
        elif action == "paths-info":
            wanted = self._paths()
            self._json([entry for entry in revision.entries() if entry["path"] in wanted], revision)
        else:
            self._error(404, "")

    def _paths(self) -> list[str]:
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(self._body)["paths"]
            return [paths] if isinstance(paths, str) else paths
        return parse_qs(self._body.decode()).get("paths", [])

    def _tree(self, revision: Revision, folder: str) -> None:
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        below = f"{folder}/" if folder else ""
        entries = [entry for entry in revision.entries() if str(entry["path"]).startswith(below)]
        if not recursive:
            entries = [entry for entry in entries if "/" not in str(entry["path"])[len(below) :]]
        if folder and not entries:
            self._error(404, "EntryNotFound")
        else:
            self._json(entries, revision)

    def _file(self, kind: str, repo: str, name: str, path: str) -> None:
        revision = self.hub.revision(kind, repo, name)
        if revision is None:
            self._error(404, "RevisionNotFound")
        elif path not in revision.files:
            self._error(404, "EntryNotFound", revision)
        else:
            content = revision.files[path].read_bytes()
            self._answer(200, content, revision, {"ETag": f'"{_sha1(content)}"'})

    def _json(self, value: object, revision: Revision) -> None:
        self._answer(200, json.dumps(value).encode(), revision, {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, revision: Revision | None = None) -> None:
        headers = {"X-Error-Message": f"status {status}", **({"X-Error-Code": code} if code else {})}
        self._answer(status, b"", revision, headers)

    def _answer(self, status: int, content: bytes, revision: Revision | None, headers: dict[str, str]) -> None:
        self.hub.requests.append(Request(self.command, self.path, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if revision is not None:
            self.send_header("X-Repo-Commit", revision.sha)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
