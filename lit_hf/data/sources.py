"""Stub; being written."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Source:
    """Where the rows come from."""

    path: str | None = None
    name: str | None = None
    revision: str | None = None
    train: str | list[str] | None = None
    validation: str | list[str] | None = None
    test: str | list[str] | None = None
    generator: Callable[[], Iterator[dict[str, Any]]] | None = None
    validation_share: float = 0.1
    limit: int | dict[str, int] | None = None
