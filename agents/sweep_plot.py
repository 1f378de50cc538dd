"""The picture of a sweep: accuracy against delay and against energy."""

from __future__ import annotations

from typing import Any, Final

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from agents.plot_style import plain_linear, png

_MARKS: Final = {"specialist": "o", "conditioned": "*", "best-static": "s"}
_RING: Final = "#c1121f"
_EMPTY: Final[dict[str, Any]] = {"linestyle": "", "markersize": 10}
_LOCAL: Final = "full-local"
_AXES: Final = {
    "delay_ms": "mean total processing delay (ms)",
    "energy_mj": "mean device energy of a frame (mJ)",
}


def frontier_png(points: pd.DataFrame) -> bytes:
    """Every point of a sweep, those on the frontier ringed, as a PNG file's bytes.

    Full local processing lies far off and would squeeze the rest: its figures are the title.

    Args:
        points: as `agents.sweep.Sweep.points`.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    shown, local = points[points["policy"] != _LOCAL], points[points["policy"] == _LOCAL]
    panels, shade = figure.subplots(1, 2, sharey=True), None
    for axes, (column, label) in zip(panels, _AXES.items(), strict=True):
        shade = _panel(axes, shown, column)
        axes.set_xlabel(label)
    panels[0].set_ylabel("accuracy of the answers (%)")
    names = list(dict.fromkeys(shown["policy"]))
    handles: list[Artist] = [
        Line2D([], [], label=name, marker=_mark(name), color="#495057", **_EMPTY) for name in names
    ]
    ring: dict[str, Any] = {"marker": "o", "fillstyle": "none", "markeredgecolor": _RING}
    handles.append(Line2D([], [], label="on the frontier", **ring, **_EMPTY))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    if shade is not None:
        figure.colorbar(shade, ax=panels, label="weight of delay against energy")
    if len(local):
        means = local[["delay_ms", "energy_mj", "accuracy"]].mean()
        figure.suptitle(
            f"full local processing: {means['delay_ms']:.1f} ms, {means['energy_mj']:.1f} mJ, "
            f"{100 * means['accuracy']:.2f} %",
            fontsize=10,
        )
    return png(figure)


def _panel(axes: Axes, points: pd.DataFrame, column: str) -> PathCollection | None:
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    shade = None
    for name, part in points.groupby("policy", sort=False):
        shade = axes.scatter(
            part[column],
            100 * part["accuracy"],
            c=part["delay_share"],
            vmin=0,
            vmax=1,
            cmap="viridis",
            marker=_mark(str(name)),
            s=120 if name == "conditioned" else 40,
            edgecolors="white",
            linewidths=0.4,
        )
    best = points[points["on_frontier"]]
    axes.scatter(
        best[column],
        100 * best["accuracy"],
        s=190,
        facecolors="none",
        edgecolors=_RING,
        linewidths=0.8,
    )
    for axis in (axes.xaxis, axes.yaxis):
        plain_linear(axis)
    return shade


def _mark(name: str) -> str:
    return _MARKS.get(name, "x")
