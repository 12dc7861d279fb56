"""Datasets on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi

from lit_hf.errors import InputError, Problem
from lit_hf.hub import load_problem, message


def read_hub(
    path: str, name: str | None, revision: str | None, key: str = "data.source", *, streaming: bool = False
) -> Mapping[str, Any]:
    """Load all splits of a dataset on the Hub, as a `Dataset` each.

    Args:
        path: Its id.
        name: Its configuration; may be left out where there is only one.
        revision: Branch, tag or commit.
        key: The config key of the source that names it.
        streaming: Download nothing yet: each split is an `IterableDataset`.

    Raises:
        InputError: If it is not there or cannot be reached; names the cause.
    """
    try:
        return datasets.load_dataset(path, name, revision=revision, streaming=streaming)
    except Exception as error:
        if isinstance(error, ValueError) and "onfig" in str(error):
            cure = "Choose one of its configurations."
            raise InputError(Problem(f"{key}.name", f"{path}: {message(error)}", cure)) from error
        cause = _ask(path, revision) if isinstance(error, DatasetNotFoundError) else error
        raise InputError(load_problem(f"{key}.path", path, "dataset", cause or error)) from error


def _ask(path: str, revision: str | None) -> BaseException | None:
    """Ask the Hub for a dataset that `datasets` did not find, because it keeps the Hub's answer to itself."""
    try:
        HfApi().dataset_info(path, revision=revision)
    except Exception as error:
        return error
    return None
