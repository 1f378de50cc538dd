"""Figures of an evaluation, drawn from its tables alone, as PNG bytes.

Nothing here touches pyplot's global state, so figures can be drawn anywhere.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from cnn.action import ACTIONS, N_EXITS

SPLIT_COLOURS: Final = ("#0b6e4f", "#2a9d8f", "#8ab17d", "#e9c46a", "#f4a261", "#c1121f")
"""One colour a number of blocks on the device, 0 (frame sent) .. 5 (all local)."""

AGENT_COLOUR: Final = "#1d3557"
STAGED_COLOUR: Final = "#d100a5"
BOUND_COLOUR: Final = "#6c757d"
_COLOURS: Final = {
    "full-local": "#c1121f",
    "full-offload": "#2a9d8f",
    "best-static": "#e07a00",
    "random": "#8d99ae",
    "neurosurgeon": "#7b2cbf",
    "edgent": "#00a6d6",
    "threshold": "#7f5539",
    "greedy": "#5a8f29",
}
"""Baselines have the same colour in every figure."""


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes (110 dots an inch)."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()


def _axes(width: float = 8.0, height: float = 4.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


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
) -> bytes:
    """Cost against accuracy: every policy, every static pair, the floor and the bound.

    Args:
        policies: by name, with ``cost`` and ``accuracy``.
        statics: the 20 static pairs, drawn small, by action name.
        floor: accuracy the constraint asks for, [0, 1].
        bound_cost: cost below which no policy that keeps the floor can go.
    """
    figure, axes = _axes(8, 5)
    axes.axhspan(0, 100 * floor, color="#c1121f", alpha=0.06, zorder=0)
    axes.axhline(100 * floor, color="#c1121f", linewidth=1, linestyle="--")
    for name, m in statics.items():
        axes.plot(m["cost"], 100 * m["accuracy"], ".", color="#adb5bd", markersize=6)
        axes.annotate(
            name,
            (m["cost"], 100 * m["accuracy"]),
            xytext=(3, -9),
            textcoords="offset points",
            fontsize=6.5,
            color="#868e96",
        )
    for k, (name, m) in enumerate(policies.items()):
        mark = "*" if "agent" in name else "D" if "clairvoyant" in name else "o"
        axes.plot(
            m["cost"],
            100 * m["accuracy"],
            mark,
            color=colour_of(name),
            # Smaller and smaller, so that of policies that coincide each still shows.
            markersize=17 if mark == "*" else 8 if mark == "D" else 14 - k,
            label=name,
            zorder=9 if mark == "*" else 5,
        )
    if bound_cost is not None:
        axes.axvline(bound_cost, color=BOUND_COLOUR, linewidth=1.2, linestyle=":")
        axes.text(
            bound_cost, 0.03, " bound", color=BOUND_COLOUR, transform=axes.get_xaxis_transform()
        )
    _limits(axes, policies, floor)
    axes.text(
        0.995,
        100 * floor,
        "accuracy floor",
        color="#c1121f",
        ha="right",
        va="bottom",
        transform=axes.get_yaxis_transform(),
        fontsize=8,
    )
    axes.set_xlabel("mean cost of a frame (full local processing = 1)")
    axes.set_ylabel("accuracy of the answers (%)")
    legend = axes.legend(loc="lower left", bbox_to_anchor=(1.0, 0.0), frameon=False, fontsize=8)
    for handle in legend.legend_handles:
        handle.set_markersize(8)  # type: ignore[union-attr]
    return png(figure)


def _limits(axes: Axes, policies: Mapping[str, Mapping[str, float]], floor: float) -> None:
    """Frame the policies; static pairs far outside would squeeze them together."""
    cost = [m["cost"] for m in policies.values()]
    accuracy = [100 * m["accuracy"] for m in policies.values()] + [100 * floor]
    width, height = max(cost) - min(cost) + 0.05, max(accuracy) - min(accuracy) + 0.5
    axes.set_xlim(max(0, min(cost) - 0.12 * width), max(cost) + 0.08 * width)
    axes.set_ylim(min(accuracy) - 0.1 * height, min(100.3, max(accuracy) + 0.15 * height))


def delay_cdfs(delays_ms: Mapping[str, NDArray[np.floating[Any]]], deadline_ms: float) -> bytes:
    """Share of frames answered within a time, logarithmic time axis."""
    figure, axes = _axes()
    for name, delay in delays_ms.items():
        x = np.sort(delay)
        axes.plot(
            x,
            100 * np.arange(1, len(x) + 1) / len(x),
            color=colour_of(name),
            linewidth=2.6 if "agent" in name else 1.4,
            label=name,
        )
    axes.axvline(deadline_ms, color="black", linewidth=1, linestyle="--")
    axes.text(deadline_ms, 2, " deadline", fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axes.set_xlabel("total processing delay (ms, queueing included)")
    axes.set_ylabel("frames answered within it (%)")
    axes.set_ylim(0, 101)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return png(figure)


def drive_timeline(drive: pd.DataFrame, deadline_ms: float) -> bytes:
    """One drive: uplink capacity, the actions taken, confidence and delay over time.

    Args:
        drive: one row a frame: ``time_s``, ``uplink_mbps``, ``action``, ``confidence``,
            ``correct``, ``delay_ms``.
        deadline_ms: drawn in the delay panel.
    """
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    rate, exits, sure, delay = figure.subplots(4, 1, sharex=True, height_ratios=[1, 1.3, 1, 1])
    t = drive["time_s"].to_numpy()
    action = drive["action"].to_numpy()
    split = np.array([ACTIONS[a].split for a in action])
    left = np.array([ACTIONS[a].exit for a in action])
    local = np.array([ACTIONS[a].is_local for a in action])
    rate.plot(t, drive["uplink_mbps"], color="#0077b6", linewidth=1)
    rate.set_ylabel("uplink\n(Mbit/s)")
    colours = np.array(SPLIT_COLOURS)[np.where(local, 5, split)]
    exits.scatter(t, left, c=colours, s=14, marker="s", linewidths=0)
    exits.set_ylabel("exit taken")
    exits.set_yticks(range(1, N_EXITS + 1))
    exits.set_ylim(0.5, N_EXITS + 0.5)
    exits.legend(
        handles=_split_patches(),
        ncols=6,
        fontsize=7.5,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        frameon=False,
        borderpad=0.1,
    )
    right = drive["correct"].to_numpy(bool)
    confidence = drive["confidence"].to_numpy()
    sure.plot(t[right], confidence[right], ".", color="#2a9d8f", markersize=3, label="right")
    sure.plot(t[~right], confidence[~right], "x", color="#c1121f", markersize=5, label="wrong")
    sure.set_ylabel("calibrated\nconfidence")
    sure.set_ylim(0, 1.05)
    sure.legend(fontsize=7, loc="lower left", ncols=2)
    delay.plot(t, drive["delay_ms"], color=AGENT_COLOUR, linewidth=0.9)
    delay.axhline(deadline_ms, color="black", linewidth=0.8, linestyle="--")
    delay.set_yscale("log")
    for axis in (delay.yaxis.set_major_formatter, delay.yaxis.set_minor_formatter):
        axis(lambda v, _: f"{v:g}")
    delay.tick_params(axis="y", which="minor", labelsize=7)
    delay.set_ylabel("delay (ms)")
    delay.set_xlabel("time in the drive (s); dashed: deadline")
    for axes in (rate, exits, sure, delay):
        _plain(axes)
    return png(figure)


def _split_patches() -> list[Patch]:
    names = ["frame sent", "split 1", "split 2", "split 3", "split 4", "all local"]
    return [Patch(color=c, label=n) for c, n in zip(SPLIT_COLOURS, names, strict=True)]


def action_map(
    actions: NDArray[np.int64],
    rates_mbps: NDArray[np.float64],
    confidences: NDArray[np.float64],
) -> bytes:
    """What the policy does over believed uplink rate and last confidence.

    Args:
        actions: int64 (n_confidences, n_rates).
        rates_mbps: ascending, logarithmic axis.
        confidences: ascending, [0, 1].
    """
    figure, axes = _axes(8.5, 4.8)
    used = np.unique(actions)
    colours = _action_colours(used)
    index = np.searchsorted(used, actions)
    axes.pcolormesh(
        rates_mbps,
        confidences,
        index,
        cmap=ListedColormap(colours),
        norm=BoundaryNorm(np.arange(len(used) + 1) - 0.5, len(used)),
        shading="nearest",
    )
    axes.grid(False)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axes.set_xlabel("uplink rate as the device last measured it (Mbit/s)")
    axes.set_ylabel("confidence of the answers seen on the track")
    handles = [Patch(color=c, label=_long_name(int(a))) for a, c in zip(used, colours, strict=True)]
    axes.legend(handles=handles, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return png(figure)


def _action_colours(used: NDArray[np.int64]) -> list[tuple[float, float, float]]:
    """Hue by split, lightness by exit, so that neighbours in meaning look alike."""
    from matplotlib.colors import to_rgb

    out: list[tuple[float, float, float]] = []
    for a in used:
        action = ACTIONS[a]
        base = np.array(to_rgb(SPLIT_COLOURS[5 if action.is_local else action.split]))
        white = 0.6 * (N_EXITS - action.exit) / N_EXITS
        red, green, blue = (base * (1 - white) + white).tolist()
        out.append((red, green, blue))
    return out


def _long_name(a: int) -> str:
    action = ACTIONS[a]
    where = "local" if action.is_local else f"split {action.split}"
    return f"{action.name}: exit {action.exit}, {'frame sent' if action.split == 0 else where}"


def action_shares(shares: Mapping[str, NDArray[np.float64]]) -> bytes:
    """Share of frames that each policy gives to each action, as stacked bars.

    Args:
        shares: by policy, float64 (20,), summing to 1.
    """
    figure, axes = _axes(9, 0.45 * len(shares) + 1.6)
    names = list(shares)[::-1]
    used = np.flatnonzero(np.sum(list(shares.values()), axis=0) > 0.005)
    colours = _action_colours(used)
    left = np.zeros(len(names))
    for a, colour in zip(used, colours, strict=True):
        width = np.array([100 * shares[n][a] for n in names])
        bars = axes.barh(names, width, left=left, color=colour, edgecolor="white", linewidth=0.5)
        labels = [ACTIONS[a].name if w >= 6 else "" for w in width]
        axes.bar_label(bars, labels, label_type="center", fontsize=7, color="black")
        left += width
    axes.grid(False)
    axes.set_xlim(0, 100)
    axes.set_xlabel(
        "frames (%); e3s1: exit 3, block 1 on the device; e2s2: exit 2, all on the device"
    )
    return png(figure)


def learning_curve(log: pd.DataFrame, floor: float, margin: float) -> bytes:
    """Training: cost and accuracy per rollout and on validation drives, and the multiplier.

    Args:
        log: columns ``step``, ``cost``, ``accuracy``, ``multiplier``, and
            ``validation_cost``, ``validation_accuracy`` (NaN between validations).
        floor: accuracy the constraint asks for on the training frames.
        margin: asked for on top of it in training.
    """
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    cost, accuracy, multiplier = figure.subplots(3, 1, sharex=True)
    valid = log.dropna(subset=["validation_cost"])
    cost.plot(log["step"], log["cost"], color="#adb5bd", label="training (exploring)")
    cost.plot(valid["step"], valid["validation_cost"], "o-", color=AGENT_COLOUR, markersize=3)
    cost.set_ylabel("mean cost")
    accuracy.plot(log["step"], 100 * log["accuracy"], color="#adb5bd")
    accuracy.plot(
        valid["step"], 100 * valid["validation_accuracy"], "o-", color=AGENT_COLOUR, markersize=3
    )
    accuracy.axhline(100 * floor, color="#c1121f", linestyle="--", linewidth=1)
    accuracy.set_ylabel("accuracy (%)")
    accuracy.axhline(100 * (floor + margin), color="#c1121f", linestyle=":", linewidth=1)
    multiplier.plot(log["step"], log["multiplier"], color="#f4a261")
    multiplier.set_ylabel("multiplier of\nthe floor")
    multiplier.set_xlabel("training steps (frames)")
    handles = [
        Line2D([], [], color="#adb5bd", label="training, exploring"),
        Line2D([], [], color=AGENT_COLOUR, marker="o", markersize=3, label="validation, greedy"),
        Line2D([], [], color="#c1121f", linestyle="--", label="accuracy floor"),
        Line2D([], [], color="#c1121f", linestyle=":", label="floor and margin"),
    ]
    cost.legend(handles=handles, fontsize=8)
    for axes in (cost, accuracy, multiplier):
        _plain(axes)
    return png(figure)
