"""The results file: every run, and what was made of them. A later run of some workloads replaces theirs only."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ratios import OURS, Run, median, ratios, spread

CURVE_FIGURES = ("tokens_per_second", "step_seconds", "start_seconds", "memory")


def merge(
    before: Mapping[str, Any], runs: Sequence[Run], machine: Mapping[str, Any], *, adds: bool = False
) -> dict[str, Any]:
    """Return the results with new runs in the place of the earlier ones of the same workloads.

    Args:
        before: Earlier results; those of another machine are dropped.
        runs: New runs.
        machine: Where they were made.
        adds: Keep the earlier ones, too; the new rounds are counted on from theirs.

    Returns:
        `machine`; `measured`, date and revision by workload; `ratios`, as `ratios.ratios` returns them, of all
        workloads, points of curves too; `curves`, the medians of each peer at each value; `start`, if it was measured;
        `resume`, as `resumes` returns it; and all `runs`.
    """
    same_machine = all(before.get("machine", {}).get(key) == machine[key] for key in ("cpu", "cores", "gpu"))
    new = {run["workload"] for run in runs}
    kept = [run for run in before.get("runs", []) if adds or run["workload"] not in new] if same_machine else []
    earlier = {name: 1 + max((run["round"] for run in kept if run["workload"] == name), default=-1) for name in new}
    everything = [*kept, *({**run, "round": run["round"] + earlier[run["workload"]]} for run in runs)]
    measured = before.get("measured", {}) if same_machine else {}
    stamp = {"date": machine["date"], "revision": machine["revision"]}
    starts = [run for run in everything if run["workload"] == "start"]
    training = [run for run in everything if run["workload"] not in ("start", "resume")]
    return {
        "machine": dict(machine),
        "measured": {**measured, **dict.fromkeys(sorted(new), stamp)},
        "ratios": ratios(training),
        "curves": curves([run for run in training if run.get("curve")]),
        "start": start(starts) if starts else None,
        "resume": resumes([run for run in everything if run["workload"] == "resume"]),
        "runs": everything,
    }


def without_curves(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the ratios of workloads that are no point of a curve."""
    points = {f"{point['curve']}_{point['value']}" for point in results["curves"]}
    return [row for row in results["ratios"] if row["workload"] not in points]


def curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the medians of the runs of each curve, value and peer, in that order."""
    keys = sorted({(run["curve"], run["value"], run["peer"]) for run in runs})
    return [
        {"curve": curve, "value": value, "peer": peer}
        | {figure: median(_of(runs, curve=curve, value=value, peer=peer), figure) for figure in CURVE_FIGURES}
        for curve, value, peer in keys
    ]


def start(runs: Sequence[Run]) -> dict[str, Any]:
    """Compare lit-hf's start with the HF Trainer's: more than one where lit-hf starts slower."""
    ours = {run["round"]: run["start_seconds"] for run in runs if run["peer"] == OURS and run["start_seconds"]}
    theirs = {run["round"]: run["start_seconds"] for run in runs if run["peer"] != OURS and run["start_seconds"]}
    by_round = [ours[number] / theirs[number] for number in ours if number in theirs]
    return {
        "peer": "hf_trainer",
        "seconds": statistics.median(ours.values()) if ours else None,
        "peer_seconds": statistics.median(theirs.values()) if theirs else None,
        "ratio": statistics.median(by_round) if by_round else None,
        "ratio_range": [min(by_round), max(by_round)] if by_round else None,
    }


def resumes(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Compare each peer's resume late in a run with the one early in it; of the same round, medians over the rounds.

    Args:
        runs: Resumes, of runs on rows or on a stream (`kind`), after so many steps (`steps_done`).
    """
    rows = []
    for kind, peer in dict.fromkeys((run["kind"], run["peer"]) for run in runs):
        own = _of(runs, kind=kind, peer=peer)
        early, *_, late = sorted({run["steps_done"] for run in own})
        seconds = {(run["steps_done"], run["round"]): run["resume_seconds"] for run in own}
        numbers = sorted({run["round"] for run in own})
        by_round = [seconds[late, number] / seconds[early, number] for number in numbers]
        rows.append(
            {"kind": kind, "peer": peer, "early": early, "late": late}
            | {"early_seconds": median(_of(own, steps_done=early), "resume_seconds")}
            | {"late_seconds": median(_of(own, steps_done=late), "resume_seconds")}
            | {"ratio": statistics.median(by_round), "ratio_range": [min(by_round), max(by_round)]}
        )
    return rows


def summaries(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return each workload's and peer's medians, and the range of its speed."""
    keys = dict.fromkeys((run["workload"], run["peer"]) for run in runs)
    rows = []
    for workload, peer in keys:
        own = _of(runs, workload=workload, peer=peer)
        figures = ("tokens_per_second", "step_seconds", "memory", "loss", "steps", "tokens")
        row = {figure: median(own, figure) for figure in figures}
        errors = [run["error"] for run in own if run.get("error")]
        finished = all(run["finished"] for run in own)
        rows.append(
            {"workload": workload, "peer": peer, "rounds": len(own), "finished": finished, **row}
            | {"speed_range": spread(own, "tokens_per_second"), "error": errors[0] if errors else None}
        )
    return rows


def _of(runs: Sequence[Run], **values: Any) -> list[Run]:
    return [run for run in runs if all(run.get(key) == value for key, value in values.items())]


def read(path: Path) -> dict[str, Any]:
    """Return earlier results, empty ones where there are none."""
    return json.loads(path.read_text()) if path.is_file() else {}


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write the results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
