"""Figures of an evaluation, of a training and of a sweep, drawn from their tables as PNG bytes.

Colours and axes are shared with `agents.action_plots` (which actions are taken) and
`agents.drive_picture`. Nothing here touches pyplot's global state, so figures can be drawn
anywhere.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from cnn.common.outputs import SOFTWARE

AGENT_COLOUR: Final = "#1d3557"
STAGED_COLOUR: Final = "#d100a5"
BOUND_COLOUR: Final = "#6c757d"
FLOOR_COLOUR: Final = "#c1121f"
STATIC_COLOUR: Final = "#868e96"
_COLOURS: Final = {
    "full-local": "#c1121f",
    "full-offload": "#2a9d8f",
    "best-static": "#e07a00",
    "random": "#8d99ae",
    "neurosurgeon": "#7b2cbf",
    "edgent": "#00a6d6",
    "threshold": "#7f5539",
    "greedy": "#5a8f29",
    "linucb": "#f2c230",
    "spinn": "#00695c",
    "planner": "#b5179e",
    "mpc": "#3a0ca3",
}
"""Baselines have the same colour in every figure."""
_SWEEP_MARKS: Final = {"specialist": "o", "conditioned": "*", "best-static": "s"}
_NO_LINE: Final[dict[str, Any]] = {"linestyle": "", "markersize": 10}
_SWEEP_AXES: Final = {
    "delay_ms": "mean total processing delay (ms)",
    "energy_mj": "mean device energy of a frame (mJ)",
}


Colour = str | tuple[float, float, float]


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes (110 dots an inch)."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    metadata = {"Software": SOFTWARE}
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def plain_axes(width: float = 8.0, height: float = 4.5) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    make_plain(axes)
    return figure, axes


def make_plain(axes: Axes) -> None:
    """A light grid behind the data, no frame above and on the right."""
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plain_log(axis: Axis) -> None:
    """A logarithmic axis with plain numbers: 1, 2, 3, 5, 10, 20, ..., no powers of ten."""
    low, high = axis.get_view_interval()
    few = high > 50 * max(low, 1e-12)  # many decades: their ends are enough
    axis.set_major_locator(LogLocator(subs=(1.0,) if few else (1.0, 2.0, 3.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def plain_linear(axis: Axis) -> None:
    """A linear axis with plain numbers: no offset and no power of ten beside the axis."""
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))


def ink_on(colour: Colour) -> str:
    """Black or white, whichever contrasts more with `colour` (WCAG 2.2, contrast ratio)."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "black" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "white"


def colour_of(name: str) -> str:
    """A policy's colour, the same in every figure."""
    if "staged" in name:
        return STAGED_COLOUR
    if "agent" in name:
        return AGENT_COLOUR
    if "clairvoyant" in name:
        return BOUND_COLOUR
    return _COLOURS.get(name, "#343a40")


def cost_accuracy(
    policies: Mapping[str, Mapping[str, float]],
    statics: Mapping[str, Mapping[str, float]],
    floor: float,
    bound_cost: float | None,
    measure: str = "accuracy",
) -> bytes:
    """Cost against accuracy: every policy, every static pair, the floor and the bound.

    Args:
        policies: by name, with ``cost`` and ``accuracy``.
        statics: the static pairs, drawn small, by action name.
        floor: accuracy the constraint asks for, [0, 1].
        bound_cost: cost below which no policy that keeps the floor can go.
        measure: name of the accuracy, see `agents.evaluation.Evaluation`.
    """
    figure, axes = plain_axes(8, 5)
    axes.axhspan(0, 100 * floor, color=FLOOR_COLOUR, alpha=0.06, zorder=0)
    axes.axhline(100 * floor, color=FLOOR_COLOUR, linewidth=1, linestyle="--")
    for m in statics.values():
        axes.plot(m["cost"], 100 * m["accuracy"], ".", color=STATIC_COLOUR, markersize=6)
    for k, (name, m) in enumerate(policies.items()):
        mark = _mark(name)
        axes.plot(
            m["cost"],
            100 * m["accuracy"],
            mark,
            color=colour_of(name),
            # Markers get smaller, so that policies that coincide stay visible. Rules come before
            # stars, because the best rule lies close to the learnt policies.
            markersize=18 if mark == "*" else 8 if mark == "D" else max(7, 14 - 0.7 * k),
            markeredgecolor="white",
            markeredgewidth=0.6,
            label=name,
            zorder=5 if mark == "*" else 9,
        )
    if bound_cost is not None:
        axes.axvline(bound_cost, color=BOUND_COLOUR, linewidth=1.2, linestyle=":")
    _limits(axes, policies, floor)
    _name_statics(axes, statics)
    axes.set_xlabel("mean cost of a frame (1: full local, no queue, no miss)")
    axes.set_ylabel(f"{measure} of the answers (%)")
    handles: list[Artist] = [
        Line2D([], [], marker=_mark(n), color=colour_of(n), linestyle="", markersize=8, label=n)
        for n in policies
    ]
    if statics:
        grey: dict[str, Any] = {"marker": ".", "color": STATIC_COLOUR, "linestyle": ""}
        handles.append(Line2D([], [], label="static pairs (exit, split)", **grey))
    handles.append(Line2D([], [], color=FLOOR_COLOUR, linestyle="--", label=f"{measure} floor"))
    if bound_cost is not None:
        handles.append(Line2D([], [], color=BOUND_COLOUR, linestyle=":", label="bound"))
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(1.0, 0.0), frameon=False, fontsize=9
    )
    for axis in (axes.xaxis, axes.yaxis):
        plain_linear(axis)
    return png(figure)


def _name_statics(axes: Axes, statics: Mapping[str, Mapping[str, float]]) -> None:
    """Names of the static pairs within the picture; pairs that coincide share a label."""
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    places: dict[tuple[int, int], list[str]] = {}
    for name, m in statics.items():
        x, y = (m["cost"] - x0) / (x1 - x0), (100 * m["accuracy"] - y0) / (y1 - y0)
        if 0 <= x <= 1 and 0 <= y <= 1:
            places.setdefault((round(14 * x), round(30 * y)), []).append(name)
    for names in places.values():
        first = statics[names[0]]
        axes.annotate(
            ", ".join(names),
            (first["cost"], 100 * first["accuracy"]),
            xytext=(3, -10),
            textcoords="offset points",
            fontsize=7.5,
            color="#495057",
            clip_on=True,
        )


def _mark(name: str) -> str:
    """Marker of a policy: stars for learnt ones, a diamond for the clairvoyant search."""
    return "*" if "agent" in name else "D" if "clairvoyant" in name else "o"


def _limits(axes: Axes, policies: Mapping[str, Mapping[str, float]], floor: float) -> None:
    """Frame the policies; static pairs far outside would squeeze them together."""
    cost = [m["cost"] for m in policies.values()]
    accuracy = [100 * m["accuracy"] for m in policies.values()] + [100 * floor]
    width, height = max(cost) - min(cost) + 0.05, max(accuracy) - min(accuracy) + 0.5
    axes.set_xlim(max(0, min(cost) - 0.12 * width), max(cost) + 0.08 * width)
    axes.set_ylim(min(accuracy) - 0.1 * height, min(100.3, max(accuracy) + 0.15 * height))


def delay_cdfs(delays_ms: Mapping[str, NDArray[np.floating[Any]]], deadline_ms: float) -> bytes:
    """Share of frames answered within a time, logarithmic time axis."""
    figure, axes = plain_axes()
    for name, delay in delays_ms.items():
        x = np.sort(delay)
        axes.plot(
            x,
            100 * np.arange(1, len(x) + 1) / len(x),
            color=colour_of(name),
            linewidth=2.6 if "agent" in name else 1.4,
            label=name,
        )
    axes.axvline(deadline_ms, color="black", linewidth=1, linestyle="--", label="deadline")
    axes.set_xscale("log")
    plain_log(axes.xaxis)
    axes.set_xlabel("total processing delay (ms, queueing included)")
    axes.set_ylabel("frames answered within it (%)")
    axes.set_ylim(0, 101)
    axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return png(figure)


def learning_curve(
    log: pd.DataFrame, floor: float, margin: float, measure: str = "accuracy"
) -> bytes:
    """Training: cost and accuracy per rollout and on validation drives, and the multiplier.

    Args:
        log: columns ``step``, ``cost``, ``accuracy``, ``multiplier``, and
            ``validation_cost``, ``validation_accuracy`` (NaN between validations).
        floor: accuracy the constraint asks for on the training frames.
        margin: asked for on top of it in training.
        measure: name of the accuracy, see `agents.evaluation.Evaluation`.
    """
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    cost, accuracy, multiplier = figure.subplots(3, 1, sharex=True)
    valid = log.dropna(subset=["validation_cost"])
    cost.plot(log["step"], log["cost"], color="#adb5bd", label="training (exploring)")
    cost.plot(valid["step"], valid["validation_cost"], "o-", color=AGENT_COLOUR, markersize=3)
    cost.set_ylabel("mean cost")
    # The first rollouts cost several times as much and would flatten all that follows.
    low, high = log["cost"].min(), log["cost"].quantile(0.95)
    cost.set_ylim(low - 0.1 * (high - low) - 1e-3, high + 0.3 * (high - low) + 1e-3)
    accuracy.plot(log["step"], 100 * log["accuracy"], color="#adb5bd")
    accuracy.plot(
        valid["step"], 100 * valid["validation_accuracy"], "o-", color=AGENT_COLOUR, markersize=3
    )
    accuracy.axhline(100 * floor, color=FLOOR_COLOUR, linestyle="--", linewidth=1)
    accuracy.set_ylabel(f"{measure} (%)")
    accuracy.axhline(100 * (floor + margin), color=FLOOR_COLOUR, linestyle=":", linewidth=1)
    multiplier.plot(log["step"], log["multiplier"], color="#f4a261")
    multiplier.set_ylabel("multiplier of\nthe floor")
    multiplier.set_xlabel("training steps (decisions)")
    handles = [
        Line2D([], [], color="#adb5bd", label="training, exploring"),
        Line2D([], [], color=AGENT_COLOUR, marker="o", markersize=3, label="validation, greedy"),
        Line2D([], [], color=FLOOR_COLOUR, linestyle="--", label=f"{measure} floor"),
        Line2D([], [], color=FLOOR_COLOUR, linestyle=":", label="floor and margin"),
        Line2D([], [], color="#f4a261", label="multiplier"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=5, fontsize=9, frameon=False)
    for axes in (cost, accuracy, multiplier):
        make_plain(axes)
        plain_linear(axes.yaxis)
    plain_linear(multiplier.xaxis)
    return png(figure)


def frontier_png(points: pd.DataFrame) -> bytes:
    """Every point of a sweep, those on the frontier ringed, as a PNG file's bytes.

    Full local processing lies far off and would squeeze the rest: its figures are the title.

    Args:
        points: as `agents.sweep.Sweep.points`.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    shown, local = (
        points[points["policy"] != "full-local"],
        points[points["policy"] == "full-local"],
    )
    panels, shade = figure.subplots(1, 2, sharey=True), None
    for axes, (column, label) in zip(panels, _SWEEP_AXES.items(), strict=True):
        shade = _panel(axes, shown, column)
        axes.set_xlabel(label)
    panels[0].set_ylabel("accuracy of the answers (%)")
    names = list(dict.fromkeys(shown["policy"]))
    handles: list[Artist] = [
        Line2D([], [], label=name, marker=_SWEEP_MARKS.get(name, "x"), color="#495057", **_NO_LINE)
        for name in names
    ]
    ring: dict[str, Any] = {"marker": "o", "fillstyle": "none", "markeredgecolor": FLOOR_COLOUR}
    handles.append(Line2D([], [], label="on the frontier", **ring, **_NO_LINE))
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
    make_plain(axes)
    shade = None
    for name, part in points.groupby("policy", sort=False):
        shade = axes.scatter(
            part[column],
            100 * part["accuracy"],
            c=part["delay_share"],
            vmin=0,
            vmax=1,
            cmap="viridis",
            marker=_SWEEP_MARKS.get(str(name), "x"),
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
        edgecolors=FLOOR_COLOUR,
        linewidths=0.8,
    )
    for axis in (axes.xaxis, axes.yaxis):
        plain_linear(axis)
    return shade
