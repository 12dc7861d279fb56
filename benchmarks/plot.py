"""The results as a picture: the ratios with their ranges, and the curves."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CURVE_FIGURE = {
    "rows": "start_seconds",
    "sequence": "tokens_per_second",
    "vocabulary": "memory",
    "ranks": "step_seconds",
}
"""Which figure of a curve is drawn."""


LIBRARY = Path(sys.prefix) / "plot"
"""Where `make bench` installs what draws, out of the way of what is measured."""


def draw(path: Path, results: Mapping[str, Any]) -> Path | None:
    """Draw what there is, and return the file; None where there is nothing."""
    sys.path.append(str(LIBRARY))
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [row for row in results["ratios"] if row["ratio"] is not None]
    curves = [name for name in CURVE_FIGURE if any(point["curve"] == name for point in results["curves"])]
    if not rows and not curves:
        return None
    columns = max(1, len(curves))
    figure = pyplot.figure(figsize=(max(9, 4 * columns), 0.3 * len(rows) + (4 if curves else 1)), layout="constrained")
    parts = figure.subfigures(1 + bool(curves), 1, height_ratios=[0.3 * len(rows) + 1, 3][: 1 + bool(curves)])
    upper, *lower = parts if curves else [parts]
    _ratios(upper.subplots(), rows)
    if lower:
        for name, axes in zip(curves, lower[0].subplots(1, columns, squeeze=False)[0], strict=True):
            _curve(axes, name, [point for point in results["curves"] if point["curve"] == name])
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _ratios(axes: Any, rows: list[Mapping[str, Any]]) -> None:
    places = range(len(rows))
    ratios = [row["ratio"] for row in rows]
    lower = [row["ratio"] - row["ratio_range"][0] for row in rows]
    upper = [row["ratio_range"][1] - row["ratio"] for row in rows]
    axes.barh(places, ratios, xerr=[lower, upper], color=["#2a9d8f" if ratio >= 1 else "#e76f51" for ratio in ratios])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(places, [f"{row['workload']}: {row['peer']}" for row in rows])
    axes.invert_yaxis()
    if ratios:
        axes.set_xscale("log")
    axes.set_xlabel("speed of lit-hf by the peer's")


def _curve(axes: Any, name: str, points: list[Mapping[str, Any]]) -> None:
    figure = CURVE_FIGURE[name]
    for peer in dict.fromkeys(point["peer"] for point in points):
        own = [point for point in points if point["peer"] == peer and point[figure] is not None]
        axes.plot([point["value"] for point in own], [point[figure] for point in own], marker="o", label=peer)
    axes.set_xscale("log", base=2 if name != "rows" else 10)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(name)
    axes.set_title(figure.replace("_", " "), fontsize=10)
    axes.legend(fontsize=8)
