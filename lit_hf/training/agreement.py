"""What one rank knows, all ranks hear of, from host to host: no device is waited for."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed


class Ranks:
    """All ranks of a run, as they speak with each other beside the training. A single process asks nobody."""

    def __init__(self) -> None:
        self._group: Any = None

    def any(self, *told: bool) -> list[bool]:
        """Say of each statement whether it is true on one rank at least; all ranks must ask at the same moment."""
        if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
            return list(told)
        if self._group is None:
            self._group = distributed.new_group(backend="gloo")
        everywhere = torch.tensor(told, dtype=torch.uint8)
        distributed.all_reduce(everywhere, distributed.ReduceOp.MAX, group=self._group)
        return [bool(value) for value in everywhere.tolist()]
