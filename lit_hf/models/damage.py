"""Files of weights that were cut off on their way, found before they are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lit_hf.errors import Problem


def damage_problems(checkpoint: str | None) -> Iterator[Problem]:
    """Find damaged files of weights in a local folder: what they are to hold is read, and their sizes, not the weights.

    Args:
        checkpoint: The folder; an id on the Hub has no files yet.
    """
    for path in sorted(Path(checkpoint or "").glob("*.safetensors")) if checkpoint else ():
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            yield damaged(str(path), error)


def damaged(where: str, error: SafetensorError) -> Problem:
    """Return the problem of weights that cannot be read."""
    what = f"the weights in {where} are damaged: {error}."
    return Problem("model.checkpoint", what, "Copy or download the checkpoint again.")
