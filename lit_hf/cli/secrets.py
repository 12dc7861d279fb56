"""Secrets that were written into a config, found without ever being shown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lit_hf.cli.reading import Value, walk_scalars
from lit_hf.errors import Problem, holds_secret

CURE = "Remove it. Log in with `hf auth login` or `wandb login`, or set HF_TOKEN or WANDB_API_KEY."

_KEY = re.compile(r"(^|_)(token|api_?key|password|passwd|secret|access_?key|credentials?)$", re.IGNORECASE)
_WANDB_KEY = re.compile(r"^[0-9a-f]{40}$")
_GIT_HASH_KEY = re.compile(r"revision|commit|sha|hash|version", re.IGNORECASE)


def find_secrets(key: str, value: Value) -> Iterator[tuple[str, Problem]]:
    """Yield the key of every secret in a value, and what to tell the user.

    Args:
        key: The dotted key of the value; empty for a whole file.
        value: What was written.
    """
    for scalar_key, scalar in walk_scalars(key, value):
        name = scalar_key.rpartition(".")[2]
        if _is_secret_key(name, scalar) or _is_secret_value(name, scalar):
            where = f"{scalar_key} ({scalar.place})" if scalar.place else scalar_key
            yield scalar_key, Problem(where, "a secret has no place in a config: it is saved with the run.", CURE)


def _is_secret_key(name: str, scalar: Value) -> bool:
    return scalar.content not in (None, False, True, "") and bool(_KEY.search(name))


def _is_secret_value(name: str, scalar: Value) -> bool:
    text = scalar.text if scalar.text is not None else scalar.content
    if not isinstance(text, str):
        return False
    # A W&B key looks like a git revision.
    return holds_secret(text) or bool(_WANDB_KEY.match(text) and not _GIT_HASH_KEY.search(name))
