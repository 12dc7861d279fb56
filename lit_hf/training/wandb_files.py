"""What of a run lies in W&B's own files: it writes behind, and what is not written when a run is killed is lost."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_START = 7
"""Bytes before the first record."""

_BLOCK = 2**15
"""A record that does not fit in a block is cut in parts; each part has a head: checksum, length, which part it is."""

_HEAD = struct.Struct("<IHB")
_WHOLE, _FIRST, _LAST = 1, 2, 4

STEP = "trainer/global_step"
"""By what name Lightning logs the step."""


def logged_steps(folder: Path, run_id: str) -> Iterator[int]:
    """Yield the steps that were logged of a run by all its starts on this machine, once for each row.

    Args:
        folder: The folder that W&B was given.
        run_id: The run's id on W&B.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for file in sorted(folder.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb")):
        for content in _records(file.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if STEP in values:
                yield int(values[STEP])


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file, a log in LevelDB's format, up to where it was cut short."""
    at, parts = _START, b""
    while at + _HEAD.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEAD.size:
            at += left
            continue
        _, size, kind = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if at + size > len(data):
            return
        parts = data[at : at + size] if kind in (_WHOLE, _FIRST) else parts + data[at : at + size]
        at += size
        if kind in (_WHOLE, _LAST):
            yield parts
