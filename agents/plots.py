"""Figures of an evaluation, drawn from its tables alone, as PNG bytes.

Which actions are taken is in `agents.action_plots`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from agents.plot_style import AGENT_COLOUR, BOUND_COLOUR, colour_of, make_plain, plain_axes, png


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
    figure, axes = plain_axes(8, 5)
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
    axes.set_xlabel("mean cost of a frame (1: full local, no queue, no miss)")
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
    axes.axvline(deadline_ms, color="black", linewidth=1, linestyle="--")
    axes.text(deadline_ms, 2, " deadline", fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axes.set_xlabel("total processing delay (ms, queueing included)")
    axes.set_ylabel("frames answered within it (%)")
    axes.set_ylim(0, 101)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
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
    # The first rollouts cost several times as much and would flatten all that follows.
    low, high = log["cost"].min(), log["cost"].quantile(0.95)
    cost.set_ylim(low - 0.1 * (high - low) - 1e-3, high + 0.3 * (high - low) + 1e-3)
    accuracy.plot(log["step"], 100 * log["accuracy"], color="#adb5bd")
    accuracy.plot(
        valid["step"], 100 * valid["validation_accuracy"], "o-", color=AGENT_COLOUR, markersize=3
    )
    accuracy.axhline(100 * floor, color="#c1121f", linestyle="--", linewidth=1)
    accuracy.set_ylabel("accuracy (%)")
    accuracy.axhline(100 * (floor + margin), color="#c1121f", linestyle=":", linewidth=1)
    multiplier.plot(log["step"], log["multiplier"], color="#f4a261")
    multiplier.set_ylabel("multiplier of\nthe floor")
    multiplier.set_xlabel("training steps (decisions)")
    handles = [
        Line2D([], [], color="#adb5bd", label="training, exploring"),
        Line2D([], [], color=AGENT_COLOUR, marker="o", markersize=3, label="validation, greedy"),
        Line2D([], [], color="#c1121f", linestyle="--", label="accuracy floor"),
        Line2D([], [], color="#c1121f", linestyle=":", label="floor and margin"),
    ]
    cost.legend(handles=handles, fontsize=8)
    for axes in (cost, accuracy, multiplier):
        make_plain(axes)
    return png(figure)
