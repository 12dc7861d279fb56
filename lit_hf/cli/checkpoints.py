"""`lit-hf checkpoints`: which checkpoints a run has, and whether they are as they were written."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lit_hf.checkpoints import Damaged, found, read_manifest, verify
from lit_hf.cli.options import Parser
from lit_hf.errors import InputError, Problem
from lit_hf.run import RunFolder


@dataclass(frozen=True)
class Row:
    """What is told of a checkpoint.

    Attributes:
        name: Its folder's name.
        problem: Why it cannot be used; None if it can.
        bytes: What it takes on the disk.
        step: Optimizer steps done; None, as the next ones, where its manifest cannot be read.
        epoch: The epoch that it was saved in, from 1.
        world_size: Processes that trained.
        value: The monitored metric at that step; None where it was not validated there.
        newest: Whether a run resumes from it.
        best: Whether it is what is evaluated and exported.
    """

    name: str
    problem: str | None
    bytes: int
    step: int | None = None
    epoch: int | None = None
    world_size: int | None = None
    value: float | None = None
    newest: bool = False
    best: bool = False


def run(argv: Sequence[str]) -> None:
    """List a run's checkpoints and verify them.

    Raises:
        InputError: If there is no run, or none of its checkpoints is valid.
    """
    parser = Parser("checkpoints", "List a run's checkpoints, and verify them.")
    parser.add_folder("folder of the run")
    parser.add_argument("--json", action="store_true", help="print JSON: bytes, steps, epochs")
    options = parser.parse_args(argv)
    folder = RunFolder(parser.folder(options))
    folder.read_config()  # told where no run is
    metric = (folder.read_record().get("best") or {}).get("metric")
    rows = _rows(folder, metric)
    unfinished = sorted(path.name for path in folder.checkpoints.glob(".step-*"))
    if options.json:
        listed = {"run": str(folder.path), "metric": metric, "checkpoints": list(map(asdict, rows))}
        print(json.dumps({**listed, "unfinished": unfinished}, indent=2))
    elif rows or unfinished:
        _show(folder.path, rows, metric, unfinished)
    if not any(row.newest for row in rows):
        what = "none of the run's checkpoints is valid." if rows else "the run has no checkpoint."
        raise InputError(Problem(str(folder.path), what, "Bring one back, or start another run: lit-hf fit --name."))


def _rows(folder: RunFolder, metric: str | None) -> list[Row]:
    """Return what is told of each checkpoint, the newest first."""
    values = _values(folder.metrics, metric)
    rows: list[Row] = []
    best: str | None = None
    for path in found(folder.checkpoints):
        row = _row(path)
        row = replace(row, value=None if row.step is None else values.get(row.step))
        if row.problem is None and not any(other.newest for other in rows):
            row, best = replace(row, newest=True), read_manifest(path).best.name
        rows.append(row)
    return [replace(row, best=row.name == best) for row in rows]


def _row(path: Path) -> Row:
    row = Row(path.name, None, sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
    try:
        manifest = read_manifest(path)
        row = replace(row, step=manifest.step, epoch=manifest.epoch, world_size=manifest.world_size)
        verify(path)
    except Damaged as reason:
        return replace(row, problem=str(reason))
    return row


def _values(path: Path, metric: str | None) -> dict[int, float]:
    """Return the logged values of a metric by the steps done then; a row's own step counts from 0."""
    if metric is None or not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {int(row["step"]) + 1: float(row[metric]) for row in csv.DictReader(file) if row.get(metric)}


def _show(path: Path, rows: Sequence[Row], metric: str | None, unfinished: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    table = Table(title=str(path), title_justify="left")
    for name in ("checkpoint", "step", "epoch", metric or "metric", "MB", "kept as", "state"):
        table.add_column(name, justify="left" if name in ("checkpoint", "kept as", "state") else "right")
    for row in rows:
        kept = " and ".join(name for name, is_so in (("newest", row.newest), ("best", row.best)) if is_so)
        numbers = (_number(row.step), _number(row.epoch), _number(row.value), f"{row.bytes / 1e6:,.1f}")
        table.add_row(row.name, *numbers, kept, "damaged" if row.problem else "valid")
    if rows:
        console.print(table)
    for row in rows:
        if row.problem:
            console.print(f"{row.name}: {row.problem}.", markup=False)
    for name in unfinished:
        console.print(f"{name} was never finished; the next fit clears it away.", markup=False)


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
