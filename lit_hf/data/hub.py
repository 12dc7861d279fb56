"""The Hugging Face Hub: datasets on it, and what its failures mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import datasets
import huggingface_hub.constants
from datasets import Dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi

from lit_hf.errors import InputError, Problem

_STATUS = {
    401: ("there is no such {kind} on the Hub, or it needs a login", "Check the spelling, or log in: hf auth login."),
    403: ("the Hub refuses access; it may be gated", "Accept its terms on the Hub, then log in: hf auth login."),
    404: ("there is no such {kind} or revision on the Hub", "Check the spelling of the id and the revision."),
    429: ("the Hub refuses so many requests", "Wait some minutes, or log in: hf auth login."),
}


def is_local(path: str) -> bool:
    """Say whether a path means a local folder rather than a repository on the Hub (`owner/name`)."""
    return Path(path).expanduser().exists() or path.startswith((".", "/", "~")) or path.count("/") > 1


def read_hub(path: str, name: str | None, revision: str | None, key: str = "data.source") -> Mapping[str, Dataset]:
    """Load all splits of a dataset on the Hub.

    Args:
        path: Its id.
        name: Its configuration; may be left out where there is only one.
        revision: Branch, tag or commit.
        key: The config key of the source that names it.

    Raises:
        InputError: If it is not there or cannot be reached; names the cause.
    """
    try:
        return datasets.load_dataset(path, name, revision=revision)
    except Exception as error:
        if isinstance(error, ValueError) and "onfig" in str(error):
            cure = "Choose one of its configurations."
            raise InputError(Problem(f"{key}.name", f"{path}: {_message(error)}", cure)) from error
        cause = _ask(path, revision) if isinstance(error, DatasetNotFoundError) else error
        raise InputError(hub_problem(f"{key}.path", path, "dataset", cause or error)) from error


def _ask(path: str, revision: str | None) -> BaseException | None:
    """Ask the Hub for a dataset that `datasets` did not find, because it keeps the Hub's answer to itself."""
    try:
        HfApi().dataset_info(path, revision=revision)
    except Exception as error:
        return error
    return None


def hub_problem(key: str, path: str, kind: str, error: BaseException) -> Problem:
    """Say why something on the Hub, or in a local folder, cannot be loaded.

    Args:
        key: The config key that names it.
        path: Its id or folder.
        kind: What it is: `dataset` or `tokenizer`.
        error: What the library raised.
    """
    message = _message(error)
    if is_local(path):
        if not Path(path).is_dir():
            return Problem(key, f"there is no folder {path} (from {Path.cwd()}).", "Check the path.")
        return Problem(key, f"no {kind} can be loaded from {path}: {message}", "Check what the folder holds.")
    if (status := _status(error)) is not None:
        what, cure = _STATUS.get(status, ("the Hub fails", "Try again later."))
        return Problem(key, f"{path}: {what.format(kind=kind)} (status {status}).", cure)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        what = f"{path}: it is not in the cache, and HF_HUB_OFFLINE keeps us from asking the Hub."
        return Problem(key, what, "Unset HF_HUB_OFFLINE, or give a local folder.")
    if any(isinstance(cause, (OSError, ConnectionError)) and _is_connection(cause) for cause in _causes(error)):
        what = f"{path}: there is no such local folder, and the Hub cannot be reached: {message}"
        return Problem(key, what, "Check the connection, or give a local folder.")
    return Problem(key, f"{path}: no {kind} can be loaded: {message}", "Check the id, and its page on the Hub.")


def _message(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3]) or type(error).__name__


def _status(error: BaseException) -> int | None:
    statuses = (getattr(getattr(cause, "response", None), "status_code", None) for cause in _causes(error))
    return next((status for status in statuses if status is not None), None)


def _is_connection(error: BaseException) -> bool:
    return isinstance(error, ConnectionError) or type(error).__module__.split(".")[0] in ("httpx", "requests")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what caused it, and so on."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__
