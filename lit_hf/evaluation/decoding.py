"""The settings by which text is generated, checked before a model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig

from lit_hf.errors import Problem, nearest

_NOT_SETTINGS = {"transformers_version", "_from_model_config"}


def generation_problems(where: str, settings: Mapping[str, Any]) -> Iterator[Problem]:
    """Find settings that `generate` does not know, and values that it refuses or would ignore.

    Args:
        where: The config key, or the option, that the settings come from.
        settings: Arguments of `transformers.GenerationConfig`.
    """
    known = set(vars(GenerationConfig())) - _NOT_SETTINGS
    if unknown := [name for name in settings if name not in known]:
        for name in unknown:
            close = nearest(name, known).partition(" There is:")[0]
            cure = close if close.startswith("Did you mean") else "See transformers.GenerationConfig."
            yield Problem(f"{where}.{name}", "generation has no such setting.", cure)
        return
    try:
        with _quiet_checks():
            GenerationConfig(**settings).validate(strict=True)
    except (ValueError, TypeError) as error:
        text = " ".join(str(error).split()).removeprefix("GenerationConfig is invalid: - ")
        yield Problem(where, text.partition(" If you're using")[0])


@contextmanager
def _quiet_checks() -> Iterator[None]:
    """Keep transformers from warning of what is raised as an error anyway."""
    logger = logging.getLogger("transformers.generation.configuration_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
