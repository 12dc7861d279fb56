"""Stub; being written."""

from dataclasses import dataclass


@dataclass
class Schedule:
    """How the learning rate goes."""

    name: str = "linear"
    warmup: float = 0.1
