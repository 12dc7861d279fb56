"""Compressed files: text that is read without being unpacked first, as `datasets` does."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from pathlib import Path
from typing import IO, Any

OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a damaged file raises."""


def is_compressed(path: Path) -> bool:
    """Say whether a file's extension is that of a compressed one."""
    return path.suffix.lower() in OPENERS


def extension(path: Path) -> str:
    """Return the extension that tells a file's format: that below a compressed one's (`rows.jsonl.gz`)."""
    return (Path(path.stem) if is_compressed(path) else path).suffix.lower()


def open_text(path: Path, encoding: str = "utf-8", newline: str | None = None) -> IO[str]:
    """Open a file for reading, compressed or not."""
    opened: IO[str] = OPENERS.get(path.suffix.lower(), open)(path, "rt", encoding=encoding, newline=newline)
    return opened


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading bytes, compressed or not."""
    opened: IO[bytes] = OPENERS.get(path.suffix.lower(), open)(path, "rb")
    return opened


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Return all text of a file, compressed or not."""
    with open_text(path, encoding) as file:
        return file.read()
