from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from lit_hf.data import fingerprints
from lit_hf.data.files import find_files
from lit_hf.data.sources import Source, load_splits


def fingerprint(*names: str | Path, **settings: str) -> str:
    return find_files([str(name) for name in names], "data.source.train", **settings).read()._fingerprint


@pytest.fixture
def rows(write_jsonl) -> Path:
    return Path(write_jsonl("rows.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": 1}]))


def test_a_file_that_is_moved_touched_or_compressed_again_is_the_same(rows: Path, tmp_path: Path) -> None:
    before = fingerprint(rows)

    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.copy(rows, tmp_path / "elsewhere" / "other.jsonl"))
    assert fingerprint(moved) == before
    os.utime(rows, (1, 1))
    assert fingerprint(rows) == before


def test_other_content_order_or_reading_is_another_one(rows: Path, write_jsonl, tmp_path: Path) -> None:
    other = write_jsonl("other.jsonl", [{"text": "a", "label": 0}, {"text": "c", "label": 1}])
    texts = tmp_path / "texts.txt"
    texts.write_text("a\n\nb\n")
    (tmp_path / "texts").mkdir()

    found = [fingerprint(rows), fingerprint(other), fingerprint(rows, other), fingerprint(other, rows)]
    found += [fingerprint(texts), fingerprint(texts, sample_by="paragraph")]
    assert len(set(found)) == len(found)


def test_what_is_made_of_the_rows_is_the_same_wherever_they_lie(rows: Path, tmp_path: Path) -> None:
    moved = shutil.copy(rows, tmp_path / "other.jsonl")
    settings = {"columns": {"sentence": "text"}, "limit": 1, "validation_share": 0.0}

    one, two = (load_splits(Source(train=str(file), **settings))["train"].rows for file in (rows, moved))

    assert one._fingerprint == two._fingerprint
    assert (
        one._fingerprint != load_splits(Source(train=str(rows), **settings | {"limit": 2}))["train"].rows._fingerprint
    )


def test_a_file_is_hashed_once_as_long_as_it_is_the_same(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    kept = tmp_path / "cache" / "lit_hf" / "sha256"
    first = fingerprints.sha256(rows)
    assert list(kept.iterdir()) == []  # it may be written once more within the same tick of the clock
    monkeypatch.setattr(time, "time_ns", lambda: rows.stat().st_ctime_ns + 3 * 10**9)
    assert fingerprints.sha256(rows) == first
    (file,) = kept.iterdir()
    file.write_text("kept")
    assert fingerprints.sha256(rows) == "kept"

    time.sleep(0.02)
    rows.write_text(rows.read_text().replace("a", "d"))
    os.utime(rows, (1, 1))

    assert fingerprints.sha256(rows) not in ("kept", first)
