"""Repositories of the Hugging Face Hub and local folders: which is meant, and why one cannot be loaded."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants

from lit_hf.errors import Problem

_STATUS = {
    401: ("there is no such {kind} on the Hub, or it needs a login", "Check the spelling, or log in: hf auth login."),
    403: ("the Hub refuses access; it may be gated", "Accept its terms on the Hub, then log in: hf auth login."),
    404: ("there is no such {kind} or revision on the Hub", "Check the spelling of the id and the revision."),
    429: ("the Hub refuses so many requests", "Wait some minutes, or log in: hf auth login."),
}


class HubProblem(Problem):
    """Something on the Hub that cannot be had: not now, not from here, or not at all."""

    __slots__ = ()


def is_local(path: str) -> bool:
    """Say whether a path means a local folder rather than a repository on the Hub (`owner/name`)."""
    return Path(path).expanduser().exists() or path.startswith((".", "/", "~")) or path.count("/") > 1


def load_problem(key: str, path: str, kind: str, error: BaseException) -> Problem:
    """Say why something on the Hub, or in a local folder, cannot be loaded.

    Args:
        key: The config key that names it.
        path: Its id or folder.
        kind: What it is: `model`, `dataset` or `tokenizer`.
        error: What the library raised.
    """
    told = message(error)
    if "custom code" in told or "trust_remote_code" in told:
        what = f"{path}: it brings Python code of its own, which is not run."
        return Problem(key, what, "If you trust whoever wrote it: model.trust_remote_code: true.")
    if is_local(path):
        if not Path(path).is_dir():
            return Problem(key, f"there is no folder {path} (from {Path.cwd()}).", _nearest_folder(Path(path)))
        return Problem(key, f"no {kind} can be loaded from {path}: {told}", "Check what the folder holds.")
    if (status := _status(error)) is not None:
        what, cure = _STATUS.get(status, ("the Hub fails", "Try again later."))
        return HubProblem(key, f"{path}: {what.format(kind=kind)} (status {status}).", cure)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        what = f"{path}: it is not in the cache, and HF_HUB_OFFLINE keeps us from asking the Hub."
        return HubProblem(key, what, "Unset HF_HUB_OFFLINE, or give a local folder.")
    if any(isinstance(cause, (OSError, ConnectionError)) and _is_connection(cause) for cause in _causes(error)):
        what = f"{path}: there is no such local folder, and the Hub cannot be reached: {told}"
        return HubProblem(key, what, "Check the connection, or give a local folder.")
    what = f"{path}: no {kind} can be loaded: {told}"
    return HubProblem(key, what, "Check the id, and its page on the Hub.")


def _nearest_folder(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return f"Did you mean {path.parent / close[0]}?" if close else "Check the path."


def message(error: BaseException) -> str:
    """Return the first lines of what an error says, as one."""
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
