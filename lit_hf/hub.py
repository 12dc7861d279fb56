"""Repositories of the Hugging Face Hub and local folders: which is meant, and why one cannot be loaded."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants

from lit_hf.errors import InputError, LitHFError, Problem, UploadError

_STATUS = {
    401: ("there is no such {kind} on the Hub, or it needs a login", "Check the spelling, or log in: hf auth login."),
    403: ("the Hub refuses access; it may be gated", "Accept its terms on the Hub, then log in: hf auth login."),
    404: ("there is no such {kind} or revision on the Hub", "Check the spelling of the id and the revision."),
    429: ("the Hub refuses so many requests", "Wait some minutes, or log in: hf auth login."),
}

LOGIN = "Log in with a token that may write: hf auth login, or set HF_TOKEN."

_AGAIN = "run the same command again: what is there already is not sent again."

_REFUSED = {
    400: ("the Hub refuses what is sent", "Mend what it names."),
    401: ("the Hub does not know who you are: there is no token, or a wrong one", LOGIN),
    403: (
        "you may not write there, or your token may not",
        f"Take a namespace of your own, or of an organization where you may write. {LOGIN}",
    ),
    404: ("there is no such repository or branch, or you may not see it", f"Check --repo and --revision. {LOGIN}"),
    413: ("this is more than the Hub takes", "Its limits: https://huggingface.co/docs/hub/storage-limits."),
}
"""What stops an upload until something is changed, and what to change."""

_PASSING = {
    409: ("something else changes the repository just now", f"When it is done, {_AGAIN}"),
    429: ("the Hub refuses so many requests", f"Wait {{wait}}, then {_AGAIN}"),
}
"""What stops an upload for a while."""


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


def upload_error(repo: str, error: BaseException) -> LitHFError | None:
    """Say why an upload to a repository ended; None where that is not known.

    Args:
        repo: The repository's id.
        error: What the library raised.

    Returns:
        An InputError where something must be changed first, an UploadError where the same command will go on.
    """
    where = f"--repo {repo}"
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return InputError(Problem(where, "HF_HUB_OFFLINE keeps us from the Hub.", "Unset it."))
    if (status := _status(error) or _status_of_storage(error)) is not None:
        said = next((str(cause.server_message) for cause in _causes(error) if hasattr(cause, "server_message")), "")
        hub_says = f" The Hub says: {' '.join(said.split())[:200]}" if said else ""
        if status in _PASSING or status >= 500 or status == 408:
            what, cure = _PASSING.get(status, ("the Hub fails", f"Later, {_AGAIN}"))
            cure = cure.format(wait=_wait(getattr(_response(error), "headers", {})))
            return UploadError(Problem(where, f"{what} (status {status}).{hub_says}", cure))
        what, cure = _REFUSED.get(status, ("the Hub refuses the upload", "Check --repo and --revision."))
        return InputError(Problem(where, f"{what} (status {status}).{hub_says}", cure))
    if any(_is_transport(cause) for cause in _causes(error)):
        what = f"the Hub cannot be reached, or the connection was cut: {message(error)}."
        return UploadError(Problem(where, what, f"Check the connection, then {_AGAIN}"))
    if isinstance(error, json.JSONDecodeError):  # a page of HTML, say, which a proxy or a broken server sends
        return UploadError(Problem(where, "the Hub's answer cannot be read.", f"Later, {_AGAIN}"))
    if isinstance(error, ValueError):  # what it refuses by an answer that is no failure
        return InputError(Problem(where, f"{_REFUSED[400][0]}: {message(error)}", _REFUSED[400][1]))
    return None


def _status_of_storage(error: BaseException) -> int | None:
    """Return the status that the Hub's storage (hf_xet), which raises Python's own errors, has written into one."""
    found = re.search(r"HTTP status \w+ error \((\d{3})\b", str(error))
    return int(found[1]) if found else None


def _wait(headers: Any) -> str:
    """Return for how long the Hub wants to be left alone, as far as it says so."""
    seconds = re.search(r"\d+", headers.get("Retry-After", "")) or re.search(
        r"(?<=t=)\d+", headers.get("ratelimit", "")
    )
    return f"{seconds[0]} seconds" if seconds else "some minutes"


def _is_transport(error: BaseException) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(("httpx", "httpcore"))


def _nearest_folder(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return f"Did you mean {path.parent / close[0]}?" if close else "Check the path."


def message(error: BaseException) -> str:
    """Return the first lines of what an error says, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3]) or type(error).__name__


def _response(error: BaseException) -> Any:
    """Return the answer of the Hub that an error is about, if there is one."""
    responses = (getattr(cause, "response", None) for cause in _causes(error))
    return next((response for response in responses if hasattr(response, "status_code")), None)


def _status(error: BaseException) -> int | None:
    return getattr(_response(error), "status_code", None)


def _is_connection(error: BaseException) -> bool:
    return isinstance(error, ConnectionError) or type(error).__module__.split(".")[0] in ("httpx", "requests")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what caused it, and so on."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__
