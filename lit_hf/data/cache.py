"""The folder in which the data room keeps what it would otherwise make again in every run."""

from __future__ import annotations

from pathlib import Path

import datasets

from lit_hf.errors import InputError, Problem


def cache_folder(kind: str) -> Path:
    """Return the folder for one kind of things, inside the cache of `datasets`; it is made where it is missing.

    Raises:
        InputError: If it cannot be made.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE, "lit_hf", kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            Problem(
                str(folder),
                f"the cache cannot be written: {error.strerror}.",
                "Set HF_DATASETS_CACHE to a folder that you may write to.",
            )
        ) from error
    return folder
