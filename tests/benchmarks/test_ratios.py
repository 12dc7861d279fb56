from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ratios import median, ratios, spread


def run(
    peer: str, number: int, speed: float | None, memory: int | None = 100, loss: float | None = 0.5
) -> dict[str, Any]:
    return {
        "workload": "chat",
        "peer": peer,
        "round": number,
        "tokens_per_second": speed,
        "memory": memory,
        "loss": loss,
    }


def test_a_ratio_is_the_median_of_what_the_rounds_say() -> None:
    runs = [run("lit_hf", number, speed) for number, speed in enumerate([100.0, 300.0, 90.0])]
    runs += [run("trl", number, speed) for number, speed in enumerate([50.0, 100.0, 30.0])]

    [row] = ratios(runs)

    assert row["ratio"] == 3.0
    assert row["ratio_range"] == [2.0, 3.0]


def test_the_memory_s_ratio_is_less_than_one_where_lit_hf_needs_less() -> None:
    [row] = ratios([run("lit_hf", 0, 1.0, memory=40), run("trl", 0, 1.0, memory=100)])

    assert row["peak_memory_ratio"] == 0.4


def test_a_row_says_what_its_readers_look_for() -> None:
    [row] = ratios([run("lit_hf", 0, 2.0, loss=0.4), run("trl", 0, 1.0, loss=0.6)])

    assert row == {
        "workload": "chat",
        "peer": "trl",
        "ratio": 2.0,
        "ratio_range": [2.0, 2.0],
        "peak_memory_ratio": 1.0,
        "loss": 0.4,
        "peer_loss": 0.6,
        "accuracy": None,
        "peer_accuracy": None,
    }


def test_each_peer_is_compared_with_the_same_runs_of_lit_hf() -> None:
    rows = ratios([run("lit_hf", 0, 6.0), run("trl", 0, 3.0), run("loop", 0, 12.0)])

    assert {row["peer"]: row["ratio"] for row in rows} == {"trl": 2.0, "loop": 0.5}


@pytest.mark.parametrize("speed", [None, 0.0])
def test_a_round_in_which_one_failed_says_nothing(speed: float | None) -> None:
    runs = [run("lit_hf", 0, 4.0), run("lit_hf", 1, 4.0), run("trl", 0, 2.0), run("trl", 1, speed)]

    assert ratios(runs)[0]["ratio_range"] == [2.0, 2.0]


def test_where_nobody_measured_anything_there_is_no_ratio() -> None:
    [row] = ratios([run("lit_hf", 0, 4.0), run("trl", 0, None, memory=None, loss=None)])

    assert (row["ratio"], row["ratio_range"], row["peak_memory_ratio"], row["peer_loss"]) == (None, None, None, None)


def test_median_and_spread_leave_out_what_is_missing() -> None:
    runs = [{"loss": 1.0}, {"loss": None}, {}, {"loss": 3.0}]

    assert median(runs, "loss") == 2.0
    assert spread(runs, "loss") == [1.0, 3.0]
    assert spread(runs, "memory") is None
