"""Ranks that tell each other what one of them knows: real processes, over gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import distributed, multiprocessing

from lit_hf.training.agreement import Ranks


def speak(rank: int, meeting: Path, heard: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    ranks = Ranks()
    heard.put((rank, ranks.any(rank == 0, False, rank == 1), ranks.any(False)))
    distributed.destroy_process_group()


def test_all_ranks_hear_what_one_says(tmp_path: Path) -> None:
    heard = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(speak, (tmp_path / "meeting", heard), nprocs=2)
    assert sorted(heard.get() for _ in range(2)) == [(rank, [True, False, True], [False]) for rank in range(2)]


def test_a_single_process_asks_nobody() -> None:
    assert Ranks().any(True, False) == [True, False]
    assert not distributed.is_initialized()
