"""The state of a training whose tensors are cut into rows among the ranks: each writes its own, any reads all.

A folder holds the rows of each rank in a file of its own, and what is not cut in one more. All of it is tensors and
plain values. Where a tensor was cut, the common file names it; its rows, in the order of the ranks, are the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

COMMON = "common.ckpt"
"""What is not cut, written by rank 0."""

_CUT, _RANKS, _STATE = "rows of", "ranks", "state"


class Split(NamedTuple):
    """A state in two.

    Attributes:
        common: What is not cut, the same on all ranks; it names what is.
        rows: This rank's rows of what is, by name.
    """

    common: dict[str, Any]
    rows: dict[str, Tensor]


@dataclass(frozen=True)
class Cut:
    """A tensor that lies in rows.

    Attributes:
        parts: The rows of each rank.
    """

    parts: list[Tensor]

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole."""
        return torch.Size([sum(len(part) for part in self.parts), *self.parts[0].shape[1:]])

    def whole(self) -> Tensor:
        """Return it in one piece, a copy."""
        return torch.cat(self.parts)

    def between(self, start: int, stop: int) -> Tensor:
        """Return the rows from one to before another, without a copy where one rank wrote them all."""
        found, first = [], 0
        for part in self.parts:
            piece = part[max(start - first, 0) : max(stop - first, 0)]
            first += len(part)
            if len(piece):
                found.append(piece)
        return found[0] if len(found) == 1 else torch.cat(found or [self.parts[0][:0]])


def rows_file(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"rows-{rank:05d}.ckpt"


def split(state: Mapping[str, Any], ranks: int) -> Split:
    """Take a state apart.

    Args:
        state: Nested dicts and lists.
        ranks: Among which it is cut.

    Raises:
        TypeError: If a tensor is cut in another way than into rows.
    """
    rows: dict[str, Tensor] = {}

    def take(value: Any, name: str) -> Any:
        if not isinstance(value, DTensor):
            return value
        if value.placements != (Shard(0),):
            raise TypeError(f"{name} is not cut into rows but lies as {value.placements}")
        rows[name] = value.to_local()
        return {_CUT: name}

    return Split({_STATE: _mapped(state, take), _RANKS: ranks}, rows)


def read(folder: Path) -> dict[str, Any]:
    """Return a state, without reading the rows of what is cut (`Cut`) before they are asked for.

    Raises:
        OSError, RuntimeError, pickle.UnpicklingError: If a file is not there or not whole.
    """
    common = _load(folder / COMMON)
    rows = [_load(folder / rows_file(rank)) for rank in range(common[_RANKS])]

    def put(value: Any, name: str) -> Any:
        is_cut = isinstance(value, dict) and value.keys() == {_CUT}
        return Cut([part[value[_CUT]] for part in rows]) if is_cut else value

    return _mapped(common[_STATE], put)


def read_whole(folder: Path) -> dict[str, Any]:
    """Return a state as it would be if nothing had been cut."""
    return _mapped(read(folder), lambda value, name: value.whole() if isinstance(value, Cut) else value)


def cut_like(value: Any, like: Tensor | None) -> Any:
    """Return what this rank has to have of a tensor from a checkpoint; anything else as it is.

    Args:
        value: What may be a tensor, in one piece or cut among any number of ranks.
        like: A tensor that is cut as it is to be, or not at all.
    """
    if not isinstance(value, Cut | Tensor):
        return value
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value.whole() if isinstance(value, Cut) else value
    per_rank = -(-like.shape[0] // like.device_mesh.size())
    start, stop = (min(rank * per_rank, like.shape[0]) for rank in _own_and_next(like))
    rows = value.between(start, stop) if isinstance(value, Cut) else value[start:stop]
    # a copy: the file is mapped into memory
    own = rows.to(like.device, copy=True)
    return DTensor.from_local(
        own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def local(tensor: Tensor) -> Tensor:
    """Return this rank's rows of a tensor, or all of one that is not cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _own_and_next(tensor: DTensor) -> tuple[int, int]:
    rank = tensor.device_mesh.get_local_rank()
    return rank, rank + 1


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _mapped(value: Any, change: Callable[[Any, str], Any], name: str = "") -> Any:
    """Return nested dicts and lists with their values changed, which are told where they stand."""
    changed = change(value, name)
    if changed is not value:
        return changed
    if isinstance(value, dict):
        return {key: _mapped(one, change, f"{name}/{key}") for key, one in value.items()}
    if isinstance(value, list):
        return [_mapped(one, change, f"{name}/{index}") for index, one in enumerate(value)]
    return value
