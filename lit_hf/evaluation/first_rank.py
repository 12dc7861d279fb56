"""What only the data of all ranks together tells: computed once, on the first rank, and known to all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import distributed

Part = TypeVar("Part")
Result = TypeVar("Result")


def on_first_rank(part: Part, compute: Callable[[Sequence[Part]], Result]) -> Result:
    """Return what a function makes of the parts of all ranks; all ranks must call it.

    Args:
        part: What this rank has; it is pickled on its way.
        compute: Is called on the first rank with all parts, in the order of the ranks.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return compute([part])
    is_first = distributed.get_rank() == 0
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.gather_object(part, parts if is_first else None)
    result: list[Any] = [compute(parts) if is_first else None]
    distributed.broadcast_object_list(result)
    return result[0]
