"""What the Hub on loopback takes: new repositories, branches, large files (LFS) and commits, as the real one does."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import yaml

LARGE = 1000
"""Bytes from which on a file goes by LFS. The real Hub's limit is 10 MB; so small, a tiny export has several."""

PATHS = {
    "validate": re.compile(r"/api/validate-yaml"),
    "create": re.compile(r"/api/repos/create"),
    "branch": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<branch>.+)"),
    "preupload": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<branch>.+)"),
    "batch": re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    "xet": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/xet-write-token/(?P<branch>.+)"),
    "put": re.compile(r"/storage/(?P<repo>[^/]+/[^/]+)/(?P<oid>\w+)"),
    "commit": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<branch>.+)"),
}


class Answer(NamedTuple):
    """What a request is answered with; without a status, the connection is cut."""

    status: int | None
    value: Any = None
    headers: dict[str, str] = {}


class Commit(NamedTuple):
    """One commit, as it was sent.

    Attributes:
        branch: Where to.
        message: What it says.
        added: SHA-256 of the added files, by path.
        deleted: The deleted files.
    """

    branch: str
    message: str
    added: dict[str, str]
    deleted: list[str]


@dataclass
class Pushed:
    """A repository that was made by a client.

    Attributes:
        folder: A folder for each branch.
        private: Whether it is.
        objects: Large files that were received whole, by SHA-256.
        puts: SHA-256 of each that was received whole, as often as it was.
        commits: All commits.
    """

    folder: Path
    private: bool
    objects: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)

    def files(self, branch: str = "main") -> dict[str, str]:
        """Return the SHA-256 of all files, by path."""
        root = self.folder / branch
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): _sha256(path.read_bytes()) for path in paths}


class Uploads:
    """The part of the Hub that is written to.

    Args:
        url: The Hub's address.
        published: Called with a repository, a branch, its folder, and whether it is private, after each commit.

    Attributes:
        token: The token of the only user.
        owners: Where that user may write.
        repositories: What was pushed, by id.
        faults: What to answer in place of what is asked for, by the names of `PATHS`.
        puts: How many large files are received before all others meet `fault_of_puts`.
        fault_of_puts: What is done with them then.
        xet: Folder for the chunks of large files, where a client sends them by Xet and not by LFS.
    """

    def __init__(self, url: str, published: Callable[[str, str, Path, bool], None]) -> None:
        self.token = "hf_TokenOfTheTestsHub1234567890"
        self.owners = {"user"}
        self.repositories: dict[str, Pushed] = {}
        self.faults: dict[str, Answer] = {}
        self.puts: int | None = None
        self.fault_of_puts: Callable[[], Answer] = lambda: Answer(500)
        self.xet: Path | None = None
        self._url = url
        self._published = published
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="lit-hf-pushed-", ignore_cleanup_errors=True)

    def answer(self, path: str, body: bytes, headers: Any) -> Answer | None:
        """Return the answer to a request; None where it is not about an upload."""
        for name, pattern in PATHS.items():
            if match := pattern.fullmatch(path):
                if name in self.faults:
                    return self.faults[name]
                if name != "put" and headers.get("Authorization") != f"Bearer {self.token}":
                    return Answer(401, {"error": "Invalid username or password."})
                with self._lock:
                    answer = getattr(self, f"_{name}")(body, *map(unquote, match.groups()))
                return answer or self.fault_of_puts()
        return None

    def _validate(self, body: bytes) -> Answer:
        try:
            header = json.loads(body)["content"].split("---\n")[1]
            assert isinstance(yaml.safe_load(header), dict)
        except (yaml.YAMLError, IndexError, AssertionError):
            return Answer(400, {"errors": [{"message": "the metadata is no YAML"}], "warnings": []})
        return Answer(200, {"errors": [], "warnings": []})

    def _create(self, body: bytes) -> Answer:
        wanted = json.loads(body)
        repo = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] not in self.owners:
            return Answer(403, {"error": f'You don\'t have the rights to create a model under "{repo}"'})
        url = {"url": f"{self._url}/{repo}"}
        if repo in self.repositories:
            return Answer(409, {**url, "error": "You already created this model repo"})
        private = bool(wanted.get("private") or wanted.get("visibility") == "private")
        self.repositories[repo] = Pushed(Path(self._folder.name) / repo, private)
        self._write(repo, "main", {".gitattributes": b"*.safetensors filter=lfs\n"}, [])
        return Answer(200, url)

    def _branch(self, body: bytes, repo: str, branch: str) -> Answer:
        folder = self.repositories[repo].folder
        if (folder / branch).exists():
            return Answer(409, {"error": f"Reference already exists: {branch}"})
        shutil.copytree(folder / "main", folder / branch)
        self._published(repo, branch, folder / branch, self.repositories[repo].private)
        return Answer(200)

    def _preupload(self, body: bytes, repo: str, branch: str) -> Answer:
        there = self.repositories[repo].folder / branch
        if not there.exists():
            return Answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        files = []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith(".safetensors") or (file["size"] >= LARGE and file["path"] != "README.md")
            content = (there / file["path"]).read_bytes() if (there / file["path"]).is_file() else None
            oid = None if content is None else _sha256(content) if large else _git_hash(content)
            mode = {"uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            files.append({"path": file["path"], **mode})
        return Answer(200, {"files": files})

    def _batch(self, body: bytes, repo: str) -> Answer:
        there = self.repositories[repo].objects
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in json.loads(body)["objects"]]
        for one in objects:
            if one["oid"] not in there:
                one["actions"] = {"upload": {"href": f"{self._url}/storage/{repo}/{one['oid']}"}}
        return Answer(200, {"transfer": "basic", "objects": objects})

    def _xet(self, body: bytes, repo: str, branch: str) -> Answer:
        url, end = f"local://{self.xet}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "x", "X-Xet-Token-Expiration": str(end)}
        return Answer(200, {"casUrl": url, "accessToken": "x", "exp": end}, headers)

    def _put(self, body: bytes, repo: str, oid: str) -> Answer | None:
        repository = self.repositories[repo]
        if self.puts is not None and len(repository.puts) >= self.puts:
            return None
        if _sha256(body) != oid:
            return Answer(400, {"error": "the content is not what was announced"})
        repository.objects[oid] = body
        repository.puts.append(oid)
        return Answer(200)

    def _commit(self, body: bytes, repo: str, branch: str) -> Answer:
        repository = self.repositories[repo]
        header, *operations = map(json.loads, body.splitlines())
        added: dict[str, bytes] = {}
        hashes: dict[str, str] = {}
        deleted: list[str] = []
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
                hashes[value["path"]] = _sha256(added[value["path"]])
            elif operation["key"] == "lfsFile":
                if self.xet is not None:
                    repository.objects[value["oid"]] = b"in chunks, by Xet"
                if value["oid"] not in repository.objects:
                    return Answer(400, {"error": f"LFS pointer points to a file that does not exist: {value['path']}"})
                added[value["path"]] = repository.objects[value["oid"]]
                hashes[value["path"]] = value["oid"]
            else:
                deleted.append(value["path"])
        repository.commits.append(Commit(branch, header["value"]["summary"], hashes, deleted))
        self._write(repo, branch, added, deleted)
        oid = _sha256(body)[:40]
        return Answer(200, {"commitUrl": f"{self._url}/{repo}/commit/{oid}", "commitOid": oid})

    def _write(self, repo: str, branch: str, added: dict[str, bytes], deleted: list[str]) -> None:
        root = self.repositories[repo].folder / branch
        for path in deleted:
            (root / path).unlink()
        for path, content in added.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
        self._published(repo, branch, root, self.repositories[repo].private)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()
