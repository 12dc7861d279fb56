"""Fingerprints of data files: of what is in them, wherever they lie and whatever they are called."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from lit_hf.data.cache import cache_folder
from lit_hf.writing import write_atomically

SETTLED = 2 * 10**9
"""Nanoseconds after which a file that is written once more has another time: what is younger is read again."""


def fingerprint_of(rows: Dataset, paths: Sequence[Path], reading: Mapping[str, Any]) -> str:
    """Return what identifies rows that were read from files.

    `datasets` would take the files' paths and times. This takes the SHA-256 of each file, in their order, how they were
    read, and the features and the number of rows that came of it. A file is read for it once, at the speed of the disk
    (some two seconds a gigabyte at most where it is in memory); its hash is kept in the cache until its size, inode or
    times change.

    Args:
        rows: The rows.
        paths: The files, in the order of their rows.
        reading: The format, and settings of its reader.
    """
    parts = [[sha256(path) for path in paths], dict(reading), str(rows.features), len(rows)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, from the cache if the file is as it was."""
    stat = path.stat()
    changed = max(stat.st_mtime_ns, stat.st_ctime_ns)
    state = [str(path.resolve()), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
    kept = cache_folder("sha256") / hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - changed > SETTLED:
        write_atomically(kept, digest)
    return digest
