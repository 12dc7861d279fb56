"""A plan as people read it, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lit_hf.cli.planning import RECOMPUTED, USABLE, Change, Plan, Planner
from lit_hf.models.layouts import Layout

WIDTH = 116
"""Columns of the tables."""

PARTS = ("weights", "gradients", "optimizer", "activations", "buffers")


def as_json(planner: Planner, plan: Plan) -> str:
    """Return the plan as JSON: bytes, seconds, operations, counts."""
    work = {key: value for key, value in vars(planner.work).items() if key != "batch"}
    values: dict[str, Any] = {
        "machine": {**asdict(planner.machine), "usable": USABLE * planner.machine.memory},
        "parameters": {**plan.parameters._asdict(), "by_dtype": plan.dtypes},
        "data": work,
        "precision": planner.case.setting.precision,
        "memory": {
            "one_device": {**plan.peaks._asdict(), "activations": plan.peaks.activations, "total": plan.peaks.total},
            "layouts": [{**asdict(way), "total": way.total, "fits": planner.fits(way.total)} for way in plan.layouts],
            "changes": [asdict(change) for change in plan.changes],
        },
        "time": {**asdict(plan.time), "total": plan.time.total},
        "advice": advice(planner, plan),
    }
    return json.dumps(values, indent=2)


def advice(planner: Planner, plan: Plan) -> str:
    """Return in a sentence whether the run fits, and which change makes it fit."""
    way, machine = plan.layouts[0], planner.machine
    if planner.fits(way.total):
        return f"It fits: {_size(way.total)} of the {_size(USABLE * machine.memory)} that may be filled."
    short = f"It does not fit: {_size(way.total)}, and {_size(USABLE * machine.memory)} may be filled."
    if not plan.changes:
        return short
    fitting = next((change for change in plan.changes if change.fits), None)
    if fitting is None:
        return f"{short} None of the changes makes it fit: take more devices, larger ones, or a smaller model."
    return f"{short} The smallest change that makes it fit: {fitting.name} ({fitting.option})."


def show(planner: Planner, plan: Plan) -> None:
    """Print the plan."""
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, WIDTH)
    for name, text in (*_head(planner, plan), *_data(planner, plan)):
        console.print(f"[bold]{name:<12}[/bold] {text}")
    console.print()
    console.print(_memory(planner, plan.layouts))
    console.print()
    for name, text in _time(planner, plan):
        console.print(f"[bold]{name:<12}[/bold] {text}")
    if plan.changes:
        console.print()
        console.print(_changes(plan.changes, planner))
    console.print()
    colour = "green" if planner.fits(plan.layouts[0].total) else "yellow"
    console.print(f"[{colour}]{advice(planner, plan)}[/{colour}]")


def _head(planner: Planner, plan: Plan) -> Iterator[tuple[str, str]]:
    machine, setting = planner.machine, planner.case.setting
    count = f"{machine.world} x " if machine.world > 1 else ""
    where = f" ({machine.nodes} nodes of {machine.devices})" if machine.nodes > 1 else ""
    yield "machine", f"{count}{machine.name}{where}, {_size(machine.memory)} each; {USABLE:.0%} of it may be filled"
    kinds = ", ".join(f"{_count(number)} {dtype}" for dtype, number in plan.dtypes.items())
    trainable = plan.parameters.trainable / max(plan.parameters.total, 1)
    train = f"{_count(plan.parameters.trainable)} train ({trainable:.2%})"
    yield "parameters", f"{_count(plan.parameters.total)} ({kinds}); {train}"
    kept = [setting.precision]
    if setting.quantization is not None:
        kept.append("4 bits" if setting.quantization.load_in_4bit else "8 bits")
    kept += ["gradient checkpointing"] if setting.switches.gradient_checkpointing else []
    yield "training", ", ".join(kept)


def _data(planner: Planner, plan: Plan) -> Iterator[tuple[str, str]]:
    work, time = planner.work, plan.time
    yield "batch", f"{work.rows:,} row{'s' * (work.rows > 1)} of up to {work.length:,} tokens a device"
    if work.batches is None or work.rows_in_all is None:
        yield "epoch", "unknown, as the rows are"
        return
    tokens = work.tokens * work.batches
    trained = f", {work.trained_tokens / work.tokens:.0%} of them trained" if work.trained_tokens is not None else ""
    of_tokens = f"{_count(tokens)} tokens ({work.padding:.1%} padding{trained})"
    yield "epoch", f"{work.rows_in_all:,} rows, {of_tokens}, {time.steps:,} steps"


def _memory(planner: Planner, ways: list[Layout]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="memory of each device", title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for part in (*PARTS, "total"):
        table.add_column(part, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for index, way in enumerate(ways):
        fits = planner.fits(way.total)
        cells = [_size(getattr(way, part)) for part in (*PARTS, "total")]
        table.add_row(way.name, *cells, _verdict(fits), style="" if index == 0 else "dim")
    return table


def _time(planner: Planner, plan: Plan) -> Iterator[tuple[str, str]]:
    time, machine = plan.time, planner.machine
    again = f", and a third more for checkpointing ({RECOMPUTED:.2f})"
    again = again if planner.case.setting.switches.gradient_checkpointing else ""
    yield "operations", f"{_scaled(time.flops, 'FLOP')} a step, all devices together{again}"
    rate = f"{_scaled(machine.flops, 'FLOP/s')} ({machine.source}) at {machine.efficiency:.0%}"
    yield "computing", f"{_duration(time.computing)} a step; each device {rate}"
    if machine.world > 1:
        way = plan.layouts[0]
        link = machine.link if machine.nodes == 1 or way.name == "tensor parallel" else machine.network
        kind = "hidden behind computing" if way.overlaps and time.sending <= time.computing else "not hidden"
        yield "sending", f"{_duration(time.sending)} a step over {_scaled(link, 'B/s')}, {kind} ({way.name})"
    total = "" if time.total is None else f", {_duration(time.total)} for {time.total_steps:,} steps"
    yield "time", f"{_duration(time.step)} a step{total}; validation and loading come on top"


def _changes(changes: list[Change], planner: Planner) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="one change by itself", title_justify="left", title_style="bold")
    for name in ("", "each device", "", "how"):
        table.add_column(name, justify="right" if name == "each device" else "left", no_wrap=True)
    for change in changes:
        size = _size(change.total) if change.total is not None else "-"
        table.add_row(
            change.name, size, _verdict(change.fits) if change.total else "not possible", change.why or change.option
        )
    return table


def _verdict(fits: bool) -> str:
    return "[green]fits[/green]" if fits else "[red]too large[/red]"


def _size(count: float) -> str:
    """Return bytes in powers of 1024, as GPUs are measured by."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError


def _count(number: float) -> str:
    return _scaled(number, "").strip()


def _scaled(number: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if number < 1000 or prefix == "E":
            break
        number /= 1000
    if not unit:
        prefix = {"G": "B"}.get(prefix, prefix)
        return f"{number:.3g}{prefix}"
    return f"{number:.3g} {prefix}{unit}"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"
