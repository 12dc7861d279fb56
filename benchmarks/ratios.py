"""The arithmetic of the results: what lit-hf makes of a workload against what each peer makes of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Run = Mapping[str, Any]
"""What one process measured: `workload`, `peer`, `round`, and the figures of `measuring.figures` and `once`."""

OURS = "lit_hf"


def ratios(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Compare lit-hf with each peer on each workload.

    Args:
        runs: All runs. Those of the same workload and round were made one after the other.

    Returns:
        A dict per workload and peer. `ratio` is the median over rounds of lit-hf's tokens a second by the peer's, more
        than one where lit-hf is faster, and `ratio_range` its least and greatest; `peak_memory_ratio` is that of the
        medians, less than one where lit-hf needs less. What cannot be said, since a run failed, is None.
    """
    names = list(dict.fromkeys((run["workload"], run["peer"]) for run in runs if run["peer"] != OURS))
    return [_compare(workload, peer, runs) for workload, peer in names]


def _compare(workload: str, peer: str, runs: Sequence[Run]) -> dict[str, Any]:
    ours = {run["round"]: run for run in runs if run["workload"] == workload and run["peer"] == OURS}
    theirs = {run["round"]: run for run in runs if run["workload"] == workload and run["peer"] == peer}
    pairs = [(ours[number], theirs[number]) for number in ours if number in theirs]
    speeds = [(one.get("tokens_per_second"), other.get("tokens_per_second")) for one, other in pairs]
    by_round = [one / other for one, other in speeds if one and other]
    memory, peer_memory = median(ours.values(), "memory"), median(theirs.values(), "memory")
    return {
        "workload": workload,
        "peer": peer,
        "ratio": statistics.median(by_round) if by_round else None,
        "ratio_range": [min(by_round), max(by_round)] if by_round else None,
        "peak_memory_ratio": memory / peer_memory if memory and peer_memory else None,
        "loss": median(ours.values(), "loss"),
        "peer_loss": median(theirs.values(), "loss"),
        "accuracy": median(ours.values(), "accuracy"),
        "peer_accuracy": median(theirs.values(), "accuracy"),
    }


def median(runs: Iterable[Run], figure: str) -> float | None:
    """Return the median of a figure over the runs that have it, None where none has."""
    values = [run[figure] for run in runs if run.get(figure) is not None]
    return statistics.median(values) if values else None


def spread(runs: Iterable[Run], figure: str) -> list[float] | None:
    """Return the least and the greatest of a figure over the runs that have it."""
    values = [run[figure] for run in runs if run.get(figure) is not None]
    return [min(values), max(values)] if values else None
