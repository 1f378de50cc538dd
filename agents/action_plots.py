"""Figures of a policy's actions: by link and confidence, on one drive, in total."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from agents.plots import AGENT_COLOUR, ink_on, make_plain, plain_axes, plain_log, png
from cnn.topology import Action, Topology
from offload_env.batch_simulator import FALLBACK, SKIPPED

Colour = tuple[float, float, float]
_SENT_COLOURS: Final = ("#0b6e4f", "#2a9d8f", "#8ab17d", "#e9c46a", "#f4a261")
"""From few blocks on the device to many; with more or fewer splits than five, colours between."""
_LOCAL_COLOUR: Final = "#c1121f"
FINISHED_LOCALLY: Final = -2
NOT_DRIVEN: Final = -1
"""Outcomes of a frame that come after the network's actions: its exchange failed, or it was
skipped."""
_REST: Final = {FINISHED_LOCALLY: "#adb5bd", NOT_DRIVEN: "#343a40"}


def split_colours(topology: Topology) -> list[Colour]:
    """A colour for each split, and the one of local processing last."""
    known = np.array([to_rgb(colour) for colour in _SENT_COLOURS])
    at = np.linspace(0, len(known) - 1, len(topology.splits))
    channels = [np.interp(at, np.arange(len(known)), channel) for channel in known.T]
    return [*zip(*(c.tolist() for c in channels), strict=True), to_rgb(_LOCAL_COLOUR)]


def drive_timeline(drive: pd.DataFrame, deadline_ms: float, topology: Topology) -> bytes:
    """One drive: uplink capacity, the actions driven, confidence and delay over time.

    Args:
        drive: one row a frame: ``time_s``, ``uplink_mbps``, ``action``, ``status`` (of
            `offload_env.simulator`), ``confidence``, ``correct``, ``delay_ms``.
        deadline_ms: drawn in the delay panel.
        topology: of the network whose actions are numbered.
    """
    figure = Figure(figsize=(10, 8), layout="constrained")
    rate, exits, sure, delay = figure.subplots(4, 1, sharex=True, height_ratios=[1, 1.4, 1, 1])
    t = drive["time_s"].to_numpy()
    rate.plot(t, drive["uplink_mbps"], color="#0077b6", linewidth=1)
    rate.set_ylabel("uplink\n(Mbit/s)")
    _driven(exits, t, drive, topology)
    _sure(sure, t, drive)
    delay.plot(t, drive["delay_ms"], color=AGENT_COLOUR, linewidth=0.9)
    delay.axhline(deadline_ms, color="black", linewidth=0.8, linestyle="--", label="deadline")
    delay.legend(fontsize=9, loc="upper right")
    delay.set_yscale("log")
    plain_log(delay.yaxis)
    delay.set_ylabel("delay (ms)")
    delay.set_xlabel("time in the drive (s)")
    for axes in (rate, exits, sure, delay):
        make_plain(axes)
    return png(figure)


def _sure(axes: Axes, t: NDArray[np.float64], drive: pd.DataFrame) -> None:
    """Confidence in every answer, and how right it was: right or wrong, or its quality."""
    answered = drive["status"].to_numpy() != SKIPPED
    correct, confidence = drive["correct"].to_numpy(), drive["confidence"].to_numpy()
    said = "calibrated\nconfidence"
    if correct.dtype == bool:
        good, wrong = correct & answered, ~correct & answered
        axes.plot(t[good], confidence[good], ".", color="#2a9d8f", markersize=4, label="right")
        axes.plot(t[wrong], confidence[wrong], "x", color="#c1121f", markersize=6, label="wrong")
    else:
        said = "quality,\nconfidence"
        faint: dict[str, Any] = {"color": "#adb5bd", "markersize": 4, "label": "confidence"}
        axes.plot(t[answered], confidence[answered], ".", **faint)
        axes.plot(t[answered], correct[answered], ".", color="#2a9d8f", ms=4, label="quality")
    axes.set_ylabel(said)
    axes.set_ylim(0, 1.05)
    axes.legend(fontsize=9, loc="lower left", ncols=2)


def _driven(axes: Axes, t: NDArray[np.float64], drive: pd.DataFrame, topology: Topology) -> None:
    """Exit and split of every frame, as they were driven: failed and skipped ones marked."""
    action, status = drive["action"].to_numpy(), drive["status"].to_numpy()
    left = topology.exit_of[action]
    ran, failed = status != SKIPPED, status == FALLBACK
    colours = np.array([_hue(a, topology) for a in topology.actions])[action]
    axes.scatter(t[ran], left[ran], c=colours[ran], s=16, marker="s", linewidths=0)
    ring: dict[str, Any] = {"s": 60, "facecolors": "none", "edgecolors": "black", "linewidths": 0.9}
    axes.scatter(t[failed], left[failed], **ring)
    axes.scatter(t[~ran], np.full((~ran).sum(), 0.6), c="black", s=22, marker="x", linewidths=1)
    axes.set_ylabel("exit taken")
    axes.set_yticks(topology.exits)
    axes.set_ylim(0.3, topology.n_blocks + 0.5)
    empty: dict[str, Any] = {"color": "black", "linestyle": "", "markersize": 7}
    handles: list[Artist] = list(_split_patches(topology))
    handles.append(
        Line2D([], [], marker="o", fillstyle="none", label="no answer: done on device", **empty)
    )
    handles.append(Line2D([], [], marker="x", label="skipped", **empty))
    where: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (0, 1),
        "frameon": False,
        "borderpad": 0.1,
    }
    axes.legend(handles=handles, ncols=8, fontsize=8, handletextpad=0.4, columnspacing=1.0, **where)


def _split_patches(topology: Topology) -> list[Patch]:
    names = [*(f"split {s}" if s else "frame sent" for s in topology.splits), "all local"]
    colours = split_colours(topology)
    return [Patch(color=c, label=n) for c, n in zip(colours, names, strict=True)]


@dataclass(frozen=True, slots=True)
class DrivenActions:
    """The most frequent action, by the device's estimates.

    Attributes:
        actions: int64 (rows, columns), the most frequent action of the frames in each cell;
            -1 where there was none.
        times_ms: float64 (columns + 1,), edges, ascending: mean time of recent exchanges.
        doubts: float64 (rows + 1,), edges, ascending: 1 less the last confidence.
        topology: of the network whose actions are numbered.
    """

    actions: NDArray[np.int64]
    times_ms: NDArray[np.float64]
    doubts: NDArray[np.float64]
    topology: Topology


def action_map(driven: DrivenActions) -> bytes:
    """The most frequent action in every cell, blank where there is no frame."""
    figure, axes = plain_axes(8.5, 4.8)
    actions, topology = driven.actions, driven.topology
    used = np.unique(actions[actions >= 0])
    taken = [topology.actions[a] for a in used]
    colours = [_colour(a, topology) for a in taken]
    if len(used):
        index = np.ma.masked_where(actions < 0, np.searchsorted(used, actions))
        axes.pcolormesh(
            driven.times_ms,
            driven.doubts,
            index,
            cmap=ListedColormap(colours),
            norm=BoundaryNorm(np.arange(len(used) + 1) - 0.5, len(used)),
        )
    axes.grid(False)
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_log(axes.xaxis)
    plain_log(axes.yaxis)
    axes.set_xlim(driven.times_ms[0], driven.times_ms[-1])
    axes.set_ylim(driven.doubts[0], driven.doubts[-1])
    axes.set_xlabel("mean time of the device's recent exchanges (ms)")
    axes.set_ylabel("doubt of the last answer on the track")
    handles = [Patch(color=c, label=_long_name(a)) for a, c in zip(taken, colours, strict=True)]
    handles.append(Patch(facecolor="white", edgecolor="#adb5bd", label="never met"))
    axes.legend(handles=handles, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return png(figure)


def _colour(action: Action, topology: Topology) -> Colour:
    """Hue by split, lightness by exit, so that neighbours in meaning look alike."""
    return _lightened(_hue(action, topology), action.exit, topology)


def _hue(action: Action, topology: Topology) -> Colour:
    at = -1 if action.is_local else topology.splits.index(action.split)
    return split_colours(topology)[at]


def _lightened(colour: Colour, exit: int, topology: Topology) -> Colour:
    """The earlier the exit, the lighter."""
    white = 0.6 * (topology.n_exits - topology.exits.index(exit) - 1) / topology.n_exits
    red, green, blue = (np.array(colour) * (1 - white) + white).tolist()
    return red, green, blue


def _long_name(action: Action) -> str:
    where = "local" if action.is_local else f"split {action.split}"
    where = "frame sent" if action.is_full_offload else where
    return f"{action.name}: exit {action.exit}, {where}"


def action_shares(shares: Mapping[str, NDArray[np.float64]], topology: Topology) -> bytes:
    """Shares of the frames' outcomes under each policy, as stacked bars.

    Args:
        shares: by policy, float64 (n_actions + 2,), summing to 1: the actions as driven, then
            frames finished on the device after an exchange that failed, then frames skipped.
        topology: of the network whose actions are numbered.
    """
    figure, axes = plain_axes(10, 0.5 * len(shares) + 2.6)
    names = list(shares)[::-1]
    outcomes = [(a.name, _colour(a, topology)) for a in topology.actions]
    outcomes += [("", to_rgb(_REST[k])) for k in (FINISHED_LOCALLY, NOT_DRIVEN)]
    left = np.zeros(len(names))
    for k, (short, colour) in enumerate(outcomes):
        width = np.array([100 * shares[n][k] for n in names])
        if not width.any():
            continue
        bars = axes.barh(names, width, left=left, color=colour, edgecolor="white", linewidth=0.5)
        labels = [short if w >= 5 else "" for w in width]
        axes.bar_label(bars, labels, label_type="center", fontsize=9, color=ink_on(colour))
        left += width
    axes.grid(False)
    axes.set_xlim(0, 100)
    axes.tick_params(axis="y", labelsize=10)
    axes.set_xlabel("frames (%); e3s1: exit 3, block 1 on the device; e2s2: exit 2, all on it")
    handles: list[Artist] = list(_split_patches(topology))
    handles += [
        Patch(color=_lightened((0.0, 0.0, 0.0), e, topology), label=f"exit {e}")
        for e in topology.exits
    ]
    handles.append(Patch(color=_REST[FINISHED_LOCALLY], label="no answer: done on device"))
    handles.append(Patch(color=_REST[NOT_DRIVEN], label="skipped"))
    figure.legend(handles=handles, loc="outside lower center", ncols=7, fontsize=9, frameon=False)
    return png(figure)
