"""The names of a model's modules, as few people would want to read them: layer by layer folded into one pattern."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

SHOWN = 12
"""Patterns that an error lists; the nearest come first."""


def patterns(names: Iterable[str]) -> list[str]:
    """Return names with their numbers folded, in the order in which they come.

    >>> patterns(["layers.0.mlp", "layers.1.mlp", "head"])
    ['layers.{0..1}.mlp', 'head']
    """
    numbers: dict[tuple[str, ...], list[list[int]]] = {}
    for name in names:
        parts = re.split(r"(?<=\.)(\d+)(?=\.|$)", f".{name}")
        found = numbers.setdefault(tuple(parts[::2]), [[] for _ in parts[1::2]])
        for values, number in zip(found, parts[1::2], strict=True):
            values.append(int(number))
    return [_folded(texts, found) for texts, found in numbers.items()]


def _folded(texts: tuple[str, ...], numbers: list[list[int]]) -> str:
    folded = texts[0]
    for values, text in zip(numbers, texts[1:], strict=True):
        folded += _range(sorted(set(values))) + text
    return folded.removeprefix(".")


def _range(values: list[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    if values == list(range(values[0], values[-1] + 1)):
        return f"{{{values[0]}..{values[-1]}}}"
    return f"{{{','.join(map(str, values))}}}"


def closest(wanted: str, names: Collection[str]) -> str:
    """Return a cure for a name that no module has: the patterns of those there are, the nearest first."""
    there = patterns(names)
    last = _words(wanted)[-1:]

    def likeness(pattern: str) -> float:
        words = _words(pattern)
        by_last = difflib.SequenceMatcher(None, "".join(last), words[-1] if words else "").ratio()
        return by_last + difflib.SequenceMatcher(None, wanted, pattern).ratio() / 2

    ordered = sorted(there, key=likeness, reverse=True)
    more = f" and {len(ordered) - SHOWN} more patterns" if len(ordered) > SHOWN else ""
    return f"The nearest that exist: {', '.join(ordered[:SHOWN])}{more}."


def _words(name: str) -> list[str]:
    return re.findall(r"[A-Za-z_]+\d*[A-Za-z_]*", re.sub(r"\{[^}]*\}", "", name))
