"""Checkpoints on disk: there whole or not at all, each with a manifest by which it is verified."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lit_hf.writing import flush, flush_one

STATE = "state.ckpt"
"""What the trainer saved: a file, or a folder of shards."""

MANIFEST = "manifest.json"
"""Written last: a folder without one is no checkpoint."""

_PARTIAL, _REPLACED = ".partial", ".replaced"

_NAME = re.compile(r"step-(\d+)")


class Damaged(Exception):
    """A checkpoint that cannot be used; the message says why."""


class Best(NamedTuple):
    """The best checkpoint so far.

    Attributes:
        name: Its folder's name.
        value: What was monitored there; None where nothing is, and the newest counts as the best.
    """

    name: str
    value: float | None


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        step: Optimizer steps done.
        epoch: The epoch that the steps lead into, or to the end of, from 1.
        world_size: Processes that trained.
        best: The best checkpoint when this one was written, which may be this one.
        versions: Of the packages that wrote it.
        files: Size in bytes and SHA-256 of each file, by its path in the folder.
    """

    step: int
    epoch: int
    world_size: int
    best: Best
    versions: Mapping[str, str | None] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def folder_name(step: int) -> str:
    """Return the name of the folder of a step's checkpoint; sorted by name is sorted by step."""
    return f"step-{step:08d}"


def partial_folder(folder: Path) -> Path:
    """Return where a checkpoint is written, on the same file system, before it is published as `folder`."""
    return folder.with_name(f".{folder.name}{_PARTIAL}")


def publish(folder: Path, manifest: Manifest) -> None:
    """Give a checkpoint that lies in `partial_folder(folder)` its manifest, flush it to disk, and its name.

    After a crash at any moment the folder is there whole, or not at all.

    Args:
        folder: Where the checkpoint is to be; one that is there already, of the same step, is replaced.
        manifest: What it holds; its files are filled in here.
    """
    partial = partial_folder(folder)
    if not (partial / STATE).exists():
        raise FileNotFoundError(f"{folder.name} has no {STATE}")
    files = {str(path.relative_to(partial)): _describe(path) for path in _files(partial)}
    whole = {**asdict(manifest), "best": manifest.best._asdict(), "files": files}
    (partial / MANIFEST).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    flush(partial)
    replaced = partial.with_suffix(_REPLACED)
    if folder.exists():  # a folder cannot be renamed over another one that has files
        folder.rename(replaced)
    partial.rename(folder)
    flush_one(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def verify(folder: Path, contents: bool = True) -> Manifest:
    """Return a checkpoint's manifest if all its files are there, of the size and content that it names.

    Args:
        folder: The checkpoint.
        contents: Read the files, which takes long with large ones; else their sizes have to do.

    Raises:
        Damaged: If they are not, or there is no manifest.
    """
    manifest = read_manifest(folder)
    for name, wanted in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        if (size := path.stat().st_size) != wanted["size"]:
            raise Damaged(f"{name} has {size:,} bytes instead of {wanted['size']:,}: it was cut off")
        if contents and _describe(path) != wanted:
            raise Damaged(f"{name} is not what was written: its SHA-256 differs")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Return a checkpoint's manifest; its files are not looked at.

    Raises:
        Damaged: If there is none, or it cannot be read.
    """
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest = Manifest(**{**values, "best": Best(**values["best"])})
    except FileNotFoundError as error:
        raise Damaged(f"it has no {MANIFEST}: it was never finished") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Damaged(f"its {MANIFEST} cannot be read ({error})") from error
    if not any(name == STATE or name.startswith(f"{STATE}/") for name in manifest.files):
        raise Damaged(f"its {MANIFEST} names no {STATE}")
    if outside := [name for name in manifest.files if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise Damaged(f"its {MANIFEST} names a file that leads out of it: {outside[0]}")
    if not _NAME.fullmatch(manifest.best.name):
        raise Damaged(f"its {MANIFEST} names no checkpoint as the best: {manifest.best.name}")
    return manifest


def found(checkpoints: Path) -> list[Path]:
    """Return the checkpoints in a run's folder of checkpoints, the newest first, valid or not."""
    folders = [path for path in checkpoints.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def size_of_all(checkpoints: Path) -> int:
    """Return the bytes of the checkpoints in a run's folder of checkpoints, valid or not."""
    return sum(path.stat().st_size for folder in found(checkpoints) for path in _files(folder))


class Newest(NamedTuple):
    """The newest valid checkpoint.

    Attributes:
        folder: Where it is; None if none is valid.
        skipped: The newer ones, and why each cannot be used.
    """

    folder: Path | None
    skipped: list[tuple[Path, str]]


def newest_valid(checkpoints: Path, contents: bool = True) -> Newest:
    """Find the newest checkpoint whose files all are as its manifest says; without `contents`, by their sizes."""
    skipped = []
    for folder in found(checkpoints):
        try:
            verify(folder, contents)
        except Damaged as reason:
            skipped.append((folder, str(reason)))
        else:
            return Newest(folder, skipped)
    return Newest(None, skipped)


def best_name(checkpoints: Path) -> str | None:
    """Return the best checkpoint's name, by the newest manifest that can be read; no other file is looked at."""
    for folder in found(checkpoints):
        with suppress(Damaged):
            return read_manifest(folder).best.name
    return None


def remove_leftovers(checkpoints: Path) -> None:
    """Remove what a crash left of checkpoints that were never published; bring back one that was being replaced."""
    for path in checkpoints.glob(f".step-*{_REPLACED}"):
        folder = path.with_name(path.name.removeprefix(".").removesuffix(_REPLACED))
        if folder.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(folder)
    for path in checkpoints.glob(f".step-*{_PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
