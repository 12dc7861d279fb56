"""The results in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import summaries, without_curves
from benchmarks.workloads.gpu import ANCHORS

DEFINITIONS = """\
Every run has a process of its own; lit-hf and its peers take turns. **Speed** is tokens without padding a second, from
the end of the third optimizer step to the end of the last; nobody validates or saves in between. **Memory** is the peak
of the process's resident memory until the last step, above what it was after the imports (on a GPU: what tensors took).
**Loss** and **accuracy** (the share of labels that are right) are those of the saved model on the same validation rows,
computed by one function for all. A **ratio** is lit-hf's figure by the peer's in the same round, the median over rounds
and, in brackets, the range: a speed above 1 and a memory below 1 are in favour of lit-hf. All train the same weights on
the same rows with the same optimizer, batch size, precision and threads.
"""

ANCHORS_NOTE = "Published by others, on other data: to see whether the figures are of the right size."


def markdown(results: Mapping[str, Any], plot: str | None) -> str:
    """Return the report.

    Args:
        results: As `results.merge` returns them.
        plot: File name of the plot.
    """
    training = [run for run in results["runs"] if run["workload"] not in ("start", "resume") and not run.get("curve")]
    parts = ["# Benchmark", _machine(results["machine"]), DEFINITIONS]
    if plot:
        parts.append(f"![ratios]({plot})")
    if rows := without_curves(results):
        parts += ["## lit-hf against its peers", _table(RATIOS, map(_ratio_row, rows))]
    if training:
        parts += ["## Figures", _table(FIGURES, map(_figure_row, summaries(training)))]
        parts += [ANCHORS_NOTE, "\n".join(f"- {anchor}" for anchor in ANCHORS)] if results["machine"]["gpu"] else []
    if results["start"]:
        parts += ["## Start to first step, caches warm", _start(results["start"])]
    if results["resume"]:
        parts += ["## Resume to first step, caches warm", _table(RESUMES, map(_resume_row, results["resume"]))]
    if results["curves"]:
        parts += ["## Curves", _table(CURVES, map(_curve_row, results["curves"]))]
    errors = [row for row in summaries(training) if row["error"]]
    if errors:
        parts += ["## What failed", *(f"- {row['workload']}, {row['peer']}: `{_last_line(row)}`" for row in errors)]
    measured = ", ".join(f"{name} {at['date'][:10]} ({at['revision']})" for name, at in results["measured"].items())
    return "\n\n".join([*parts, f"Measured: {measured}."]) + "\n"


RATIOS = ("workload", "peer", "speed", "range", "peak memory", "loss", "peer's loss", "accuracy", "peer's accuracy")
FIGURES = ("workload", "", "tokens/s", "range", "step, s", "memory, MB", "loss", "steps", "tokens")
RESUMES = ("resume of", "", "after", "seconds", "after", "seconds", "ratio", "range")
CURVES = ("curve", "value", "", "tokens/s", "step, s", "start, s", "memory, MB")


def _machine(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    device = f"{machine['gpu']}, " if machine["gpu"] else ""
    return (
        f"{machine['date'][:10]}, revision {machine['revision']}. {device}{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, {machine['memory_gib']} GiB; Python {machine['python']}, {versions}."
    )


def _ratio_row(row: Mapping[str, Any]) -> list[str]:
    return [
        row["workload"],
        row["peer"],
        number(row["ratio"], "x"),
        between(row["ratio_range"]),
        number(row["peak_memory_ratio"], "x"),
        number(row["loss"], digits=4),
        number(row["peer_loss"], digits=4),
        number(row["accuracy"], digits=4),
        number(row["peer_accuracy"], digits=4),
    ]


def _figure_row(row: Mapping[str, Any]) -> list[str]:
    return [
        row["workload"],
        row["peer"] if row["finished"] else f"{row['peer']} (did not finish)",
        number(row["tokens_per_second"], digits=0),
        between(row["speed_range"], digits=0),
        number(row["step_seconds"], digits=3),
        number(row["memory"] and row["memory"] / 1e6, digits=0),
        number(row["loss"], digits=4),
        number(row["steps"], digits=0),
        number(row["tokens"], digits=0),
    ]


def _curve_row(row: Mapping[str, Any]) -> list[str]:
    return [
        row["curve"],
        f"{row['value']:,}",
        row["peer"],
        number(row["tokens_per_second"], digits=0),
        number(row["step_seconds"], digits=3),
        number(row["start_seconds"], digits=1),
        number(row["memory"] and row["memory"] / 1e6, digits=0),
    ]


def _start(start: Mapping[str, Any]) -> str:
    return (
        f"lit-hf {number(start['seconds'], ' s')}, a script with the HF Trainer {number(start['peer_seconds'], ' s')}: "
        f"{number(start['ratio'], 'x')} {between(start['ratio_range'])}."
    )


def _resume_row(row: Mapping[str, Any]) -> list[str]:
    return [
        row["kind"],
        row["peer"],
        f"{row['early']:,} steps",
        number(row["early_seconds"]),
        f"{row['late']:,} steps",
        number(row["late_seconds"]),
        number(row["ratio"], "x"),
        between(row["ratio_range"]),
    ]


def _last_line(row: Mapping[str, Any]) -> str:
    return row["error"].strip().splitlines()[-1][:200]


def number(value: float | None, unit: str = "", digits: int = 2) -> str:
    """Return a number for people, a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}{unit}"


def between(ends: Sequence[float] | None, digits: int = 2) -> str:
    """Return a range for people, nothing where there is none."""
    return "" if ends is None else f"[{number(ends[0], digits=digits)}, {number(ends[1], digits=digits)}]"


def _table(names: Sequence[str], rows: Any) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(path: Path, results: Mapping[str, Any], plot: Path | None) -> None:
    """Write the report."""
    path.write_text(markdown(results, plot.name if plot else None), encoding="utf-8")
