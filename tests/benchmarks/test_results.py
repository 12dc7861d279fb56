from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import report, results
from benchmarks.workloads import gpu

MACHINE = {
    "date": "2026-11-22T12:00+00:00",
    "cpu": "a cpu",
    "cores": 2,
    "threads": 2,
    "memory_gib": 16.0,
    "gpu": None,
    "system": "Linux",
    "python": "3.11.7",
    "revision": "abc",
    "versions": {"torch": "2.13.0", "litgpt": None},
}


def run(workload: str, peer: str, speed: float | None, number: int = 0, **more: Any) -> dict[str, Any]:
    figures = {"tokens_per_second": speed, "step_seconds": 0.5, "start_seconds": 9.0, "memory": 10**9, "loss": 1.0}
    counts = {"steps": 8, "tokens": 800, "finished": True, "error": None}
    return {"workload": workload, "peer": peer, "round": number, **figures, **counts, **more}


def test_rounds_can_be_added_to_those_of_a_workload() -> None:
    first = results.merge({}, [run("chat", "lit_hf", 5.0), run("chat", "trl", 1.0), run("dpo", "lit_hf", 2.0)], MACHINE)

    second = results.merge(first, [run("chat", "lit_hf", 6.0), run("chat", "loop", 3.0)], MACHINE, adds=True)

    assert [(row["peer"], row["ratio"]) for row in second["ratios"]] == [("trl", 5.0), ("loop", 2.0)]
    assert [one["round"] for one in second["runs"] if one["workload"] == "chat"] == [0, 0, 1, 1]


def test_new_runs_take_the_place_of_those_of_the_same_workload_only() -> None:
    first = results.merge({}, [run("chat", "lit_hf", 5.0), run("chat", "trl", 1.0), run("dpo", "lit_hf", 2.0)], MACHINE)
    later = {**MACHINE, "revision": "def"}

    second = results.merge(first, [run("chat", "lit_hf", 6.0), run("chat", "trl", 1.0)], later)

    assert [row["ratio"] for row in second["ratios"]] == [6.0]
    assert {run["workload"] for run in second["runs"]} == {"chat", "dpo"}
    assert {name: at["revision"] for name, at in second["measured"].items()} == {"chat": "def", "dpo": "abc"}


def test_runs_of_another_machine_are_dropped() -> None:
    first = results.merge({}, [run("dpo", "lit_hf", 2.0)], MACHINE)

    second = results.merge(first, [run("chat", "lit_hf", 6.0)], {**MACHINE, "cores": 64})

    assert [run["workload"] for run in second["runs"]] == ["chat"]
    assert list(second["measured"]) == ["chat"]


def test_points_of_a_curve_are_compared_and_have_a_table_of_their_own() -> None:
    runs = [
        run("rows_1000", peer, speed, curve="rows", value=1000)
        for peer, speed in (("lit_hf", 3.0), ("hf_trainer", 1.0))
    ]

    collected = results.merge({}, runs, MACHINE)

    assert [(row["workload"], row["peer"], row["ratio"]) for row in collected["ratios"]] == [
        ("rows_1000", "hf_trainer", 3.0)
    ]
    text = report.markdown(collected, plot=None)
    assert "lit-hf against its peers" not in text and "| rows | 1,000 | lit_hf | 3 |" in text
    assert [(point["peer"], point["value"], point["tokens_per_second"]) for point in collected["curves"]] == [
        ("hf_trainer", 1000, 1.0),
        ("lit_hf", 1000, 3.0),
    ]


def test_published_figures_stand_under_those_of_a_gpu_only() -> None:
    runs = [run("llama3_8b_lora", "lit_hf", 12_000.0)]

    on_gpu = report.markdown(results.merge({}, runs, {**MACHINE, "gpu": "NVIDIA H100"}), None)
    on_cpu = report.markdown(results.merge({}, runs, MACHINE), None)

    _, _, below = on_gpu.partition("| llama3_8b_lora | lit_hf | 12,000 |")
    assert [line[2:] for line in below.splitlines() if line.startswith("- ")] == list(gpu.ANCHORS)
    assert "torchtitan" not in on_cpu


def test_a_start_s_ratio_is_more_than_one_where_lit_hf_is_slower() -> None:
    seconds = {"lit_hf": [12.0, 11.0], "hf_trainer": [10.0, 10.0]}
    runs = [
        {"workload": "start", "peer": peer, "round": number, "start_seconds": value, "error": None}
        for peer, values in seconds.items()
        for number, value in enumerate(values)
    ]

    start = results.merge({}, runs, MACHINE)["start"]

    assert (start["ratio"], start["ratio_range"]) == (1.15, [1.1, 1.2])


def test_a_resume_is_compared_with_the_one_early_in_the_same_run() -> None:
    seconds = {10: [8.0, 10.0, 9.0], 100_000: [8.8, 10.0, 13.5]}
    runs = [
        {"workload": "resume", "peer": "lit_hf", "kind": "stream", "steps_done": steps, "round": number}
        | {"resume_seconds": value, "error": None}
        for steps, values in seconds.items()
        for number, value in enumerate(values)
    ]

    collected = results.merge({}, [*runs, run("chat", "lit_hf", 5.0)], MACHINE)

    (row,) = collected["resume"]
    assert (row["early_seconds"], row["late_seconds"]) == (9.0, 10.0)
    assert (round(row["ratio"], 6), [round(value, 6) for value in row["ratio_range"]]) == (1.1, [1.0, 1.5])
    text = report.markdown(collected, plot=None)
    assert "| stream | lit_hf | 10 steps | 9.00 | 100,000 steps | 10.00 | 1.10x | [1.00, 1.50] |" in text
    assert "| chat | lit_hf |" in text


def test_results_are_json_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "results" / "cpu.json"
    collected = results.merge({}, [run("chat", "lit_hf", 5.0), run("chat", "trl", None)], MACHINE)

    results.write(path, collected)

    assert results.read(path) == json.loads(json.dumps(collected))
    assert results.read(tmp_path / "none.json") == {}


def test_the_report_has_a_row_per_comparison_and_names_what_failed() -> None:
    failed = {"workload": "chat", "peer": "trl_packed", "round": 0, "finished": False, "error": "line\nKilled: 9"}
    runs = [run("chat", "lit_hf", 5.0), run("chat", "trl", 1.0), failed]

    text = report.markdown(results.merge({}, runs, MACHINE), plot=None)

    assert "| chat | trl | 5.00x | [5.00, 5.00] | 1.00x | 1.0000 | 1.0000 |" in text
    assert "| chat | trl_packed | - |" in text
    assert "- chat, trl_packed: `Killed: 9`" in text
    assert "litgpt" not in text  # it was not there
