"""Files of weights that were cut off on their way, found before they are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lit_hf.errors import Problem


def damaged_files(folder: Path) -> Iterator[tuple[Path, Exception]]:
    """Yield the damaged files of weights in a folder, each with why: headers and sizes are read, not the weights.

    Args:
        folder: The folder; where there is none, such as for an id on the Hub, there are no files yet.
    """
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            yield path, error


def damage_problems(checkpoint: str | None) -> Iterator[Problem]:
    """Find damaged files of weights in the folder that training starts from; an id on the Hub has no files yet."""
    for path, error in damaged_files(Path(checkpoint)) if checkpoint else ():
        yield damaged(str(path), error)


def damaged(where: str, error: Exception) -> Problem:
    """Return the problem of weights that cannot be read."""
    what = f"the weights in {where} are damaged: {error}."
    return Problem("model.checkpoint", what, "Copy or download the checkpoint again.")


def damaged_weights(folder: Path) -> Iterator[Problem]:
    """Find damaged files of weights in an exported folder."""
    for path, error in damaged_files(folder):
        cure = "Write it again: lit-hf export, or download it again."
        yield Problem(str(path), f"the file is damaged or cut off ({error}).", cure)
