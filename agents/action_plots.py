"""Figures of which actions a policy takes: over its beliefs, on a drive, in total."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from agents.plot_style import AGENT_COLOUR, make_plain, plain_axes, png
from cnn.action import ACTIONS, N_EXITS

SPLIT_COLOURS: Final = ("#0b6e4f", "#2a9d8f", "#8ab17d", "#e9c46a", "#f4a261", "#c1121f")
"""One colour a number of blocks on the device, 0 (frame sent) .. 5 (all local)."""


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
    # 20, 50, 100, 200, ...: one label for every minor tick of a decade would overlap.
    delay.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    delay.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    delay.yaxis.set_minor_formatter(NullFormatter())
    delay.set_ylabel("delay (ms)")
    delay.set_xlabel("time in the drive (s); dashed: deadline")
    for axes in (rate, exits, sure, delay):
        make_plain(axes)
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
    figure, axes = plain_axes(8.5, 4.8)
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
    figure, axes = plain_axes(9, 0.45 * len(shares) + 1.6)
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
