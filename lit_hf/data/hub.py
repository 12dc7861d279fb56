"""Datasets on the Hugging Face Hub, and what their failures mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import datasets
from datasets import Dataset

from lit_hf.errors import InputError, Problem


def is_local(path: str) -> bool:
    """Say whether a path means a local folder rather than a dataset on the Hub (`owner/name`)."""
    return Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") > 1


def read_hub(path: str, name: str | None, revision: str | None) -> Mapping[str, Dataset]:
    """Load all splits of a dataset on the Hub.

    Raises:
        InputError: If it is not there or cannot be reached; names the cause.
    """
    try:
        return datasets.load_dataset(path, name, revision=revision)
    except Exception as error:
        raise InputError(Problem("data.source.path", f"{path}: {error}")) from error
