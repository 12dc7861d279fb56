"""Entities in tagged words: IOB2, IOB1 and IOBES, read as conlleval and seqeval read them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from rich import box
from rich.table import Table

OUTSIDE = "O"
UNNAMED = "_"
"""The type of entities whose tags are only `B` and `I`."""

_TAG = re.compile(r"([BIES])(?:-(.*))?", re.DOTALL)


class Entity(NamedTuple):
    """Words that together name something.

    Attributes:
        type: What they name (`PER`).
        start: The first word, counted from 0.
        end: The word after the last.
    """

    type: str
    start: int
    end: int


@lru_cache(maxsize=4096)
def split_tag(tag: str) -> tuple[str, str]:
    """Return a tag's position in its entity (B, I, E or S) and its type; `O` and no type for every other tag.

    >>> split_tag("B-PER"), split_tag("I"), split_tag("NOUN")
    (('B', 'PER'), ('I', '_'), ('O', ''))
    """
    found = _TAG.fullmatch(tag)
    return (found[1], found[2] or UNNAMED) if found else (OUTSIDE, "")


def entity_types(tags: Iterable[str]) -> list[str]:
    """Return the types that tags name, sorted; none where the tags name no entities (parts of speech, say).

    >>> entity_types(["O", "B-PER", "I-PER", "B-LOC"])
    ['LOC', 'PER']
    """
    return sorted({split_tag(tag)[1] for tag in tags} - {""})


def find_entities(tags: Sequence[str]) -> Iterator[Entity]:
    """Yield the entities of a sentence in their order.

    A tag goes on with the entity before it if it is I or E, its type is the same, and that entity has not ended with
    E or S. Every other tag begins an entity, so that an I after O, which IOB2 forbids, counts as a beginning.

    >>> list(find_entities(["B-PER", "I-PER", "O", "I-LOC"]))
    [Entity(type='PER', start=0, end=2), Entity(type='LOC', start=3, end=4)]
    """
    open_type, open_start, may_go_on = "", 0, False
    for index, tag in enumerate(tags):
        position, kind = split_tag(tag)
        if not (may_go_on and position in "IE" and kind == open_type):
            if open_type:
                yield Entity(open_type, open_start, index)
            open_type, open_start = kind, index
        may_go_on = position in "BI"
    if open_type:
        yield Entity(open_type, open_start, len(tags))


def entity_table(counts: Sequence[Sequence[int]], types: Sequence[str]) -> Table:
    """Return a table of precision, recall and F1 of each entity type.

    Args:
        counts: By type: entities found rightly, found, and there.
        types: Names of the types.
    """
    table = Table("entity", box=box.SIMPLE, title="entities: type and all words must be right")
    for column in ("precision", "recall", "f1", "there", "found", "right"):
        table.add_column(column, justify="right")
    for kind, (right, found, there) in zip(types, counts, strict=True):
        shares = (f"{value:.3f}" for value in scores(right, found, there))
        table.add_row(kind, *shares, str(there), str(found), str(right))
    return table


def scores(right: float, found: float, there: float) -> tuple[float, float, float]:
    """Return precision, recall and F1; each is 0 where it has no denominator."""
    return right / max(found, 1), right / max(there, 1), 2 * right / max(found + there, 1)
