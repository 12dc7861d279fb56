from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from lit_hf.data.cache import cache_folder
from lit_hf.errors import InputError


def test_the_folder_is_made_inside_the_cache_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    assert cache_folder("encoded") == tmp_path / "cache" / "lit_hf" / "encoded"
    assert cache_folder("encoded").is_dir()


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file, no folder")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    with pytest.raises(InputError, match="the cache cannot be written"):
        cache_folder("encoded")
