"""One picture of sliproad's decisions: a frame's ways through the network, and a drive over time.

Above, the ways: the share of a drive's frames for each exit, on the device or through each split on
the server. Below, the delay of every frame, beside full local processing of the same frames over
the same link.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from numpy.typing import NDArray

from agents.plots import AGENT_COLOUR, colour_of, make_plain, png
from agents.rollout import Rollout
from cnn.topology import Topology
from offload_env.outcome import FALLBACK, OK, SKIPPED, STATUS
from testbed.records.record_file import Records

DEVICE_COLOUR: Final = "#c1121f"
SERVER_COLOUR: Final = "#2a9d8f"
NOBODY_COLOUR: Final = "#8d99ae"
_DEVICE_Y: Final = 1.0
_SERVER_Y: Final = 0.0
_HALF: Final = 0.16
"""Half the height of a block."""
_WIDE: Final = 0.30
"""Half the width of a block."""


@dataclass(frozen=True, eq=False)
class Driven:
    """One policy on one drive of T frames.

    Attributes:
        name: of the policy.
        topology: of the network whose actions are numbered.
        time_s: float64 (T,), capture of each frame.
        action: int64 (T,), canonical number.
        status: int64 (T,), of `offload_env.outcome`.
        delay_ms: float64 (T,).
    """

    name: str
    topology: Topology
    time_s: NDArray[np.float64]
    action: NDArray[np.int64]
    status: NDArray[np.int64]
    delay_ms: NDArray[np.float64]

    @classmethod
    def of_rollout(cls, rollout: Rollout, period_ms: float, drive: int = 0) -> Self:
        """One drive of a simulation."""
        time_s = np.arange(rollout.action.shape[1], dtype=np.float64) * (period_ms / 1e3)
        action, status = rollout.action[drive], rollout.status[drive]
        delay_ms = rollout.delay_ms[drive]
        return cls(rollout.policy, rollout.topology, time_s, action, status, delay_ms)

    @classmethod
    def of_records(cls, records: Records, name: str) -> Self:
        """A drive that a device recorded."""
        status = np.array([STATUS.index(text) for text in records.texts("status")])
        action = records.numbers("action").astype(np.int64)
        time_s, delay_ms = records.numbers("captured_s"), records.numbers("delay_ms")
        return cls(name, records.topology, time_s, action, status, delay_ms)

    def share(self, exit: int, split: int | None) -> float:
        """Share of the frames answered at `exit`, by the server through `split`, or by the device
        (None)."""
        at_exit = (self.topology.exit_of[self.action] == exit) & (self.status != SKIPPED)
        through = self.topology.split_of[self.action] == split
        hits = at_exit & (~self.by_server if split is None else self.by_server & through)
        return float(hits.mean())

    @property
    def by_server(self) -> NDArray[np.bool_]:
        """Frames that the server answered, bool (T,)."""
        sent = ~self.topology.is_local[self.action]
        answered: NDArray[np.bool_] = sent & (self.status == OK)
        return answered


def drive_picture(agent: Driven, local: Driven, deadline_ms: float, text: str) -> bytes:
    """The picture as a PNG file's bytes.

    Args:
        agent: what is shown.
        local: full local processing of the same drive.
        deadline_ms: drawn in the lower panel.
        text: where the figures come from.
    """
    width = max(10.0, 1.6 * (agent.topology.n_blocks + 1))
    figure = Figure(figsize=(width, 6.6), layout="constrained")
    ways, delays = figure.subplots(2, 1, height_ratios=[1.15, 1])
    _draw_ways(ways, agent)
    _draw_delays(delays, agent, local, deadline_ms)
    figure.supxlabel(text, fontsize=8, color="#495057")
    return png(figure)


def _draw_ways(axes: Axes, agent: Driven) -> None:
    topology = agent.topology
    axes.set_xlim(-0.75, topology.n_blocks + 0.75)
    axes.set_ylim(-0.72, 1.72)
    axes.axis("off")
    shares = {s: sum(agent.share(e, s) for e in topology.exits) for s in topology.splits}
    _box(axes, 0, _DEVICE_Y, "frame", "#495057")
    for block in range(1, topology.n_blocks + 1):
        _box(axes, block, _DEVICE_Y, f"block {block}", DEVICE_COLOUR)
        _box(axes, block, _SERVER_Y, f"block {block}", SERVER_COLOUR)
        for y, colour in ((_DEVICE_Y, DEVICE_COLOUR), (_SERVER_Y, SERVER_COLOUR)):
            if block > 1 or y == _DEVICE_Y:
                _arrow(axes, (block - 1 + _WIDE, y), (block - _WIDE, y), 1.0, colour)
    for exit in topology.exits:
        _exit(axes, exit, agent.share(exit, None), _DEVICE_Y, DEVICE_COLOUR)
        server = sum(agent.share(exit, s) for s in topology.splits)
        _exit(axes, exit, server, _SERVER_Y, SERVER_COLOUR)
    for split, share in shares.items():
        start, end = (split, _DEVICE_Y - _HALF), (split + 1 - _WIDE, _SERVER_Y + _HALF / 2)
        _arrow(axes, start, end, 1.0 + 9.0 * share, SERVER_COLOUR, faint=share == 0)
        axes.text(
            split + 0.55,
            0.5,
            _percent(share) if share else "",
            fontsize=9,
            ha="left",
            va="center",
            color=SERVER_COLOUR,
            fontweight="bold",
        )
    axes.text(-0.7, _DEVICE_Y + 0.42, "device", fontsize=11, color=DEVICE_COLOUR, weight="bold")
    axes.text(-0.7, _SERVER_Y - 0.05, "MEC server", fontsize=11, color=SERVER_COLOUR, weight="bold")
    axes.text(-0.7, 0.5, "mobile\nuplink", fontsize=9, color="#495057", va="center")
    lost = float(np.mean(agent.status == SKIPPED))
    back = float(np.mean(agent.status == FALLBACK))
    axes.set_title(
        f"Where one drive's frames went ({agent.name}): shares answered at exits, sent at splits"
        + (f"; {_percent(back)} fell back" if back else "")
        + (f"; {_percent(lost)} skipped" if lost else ""),
        fontsize=10,
        loc="left",
    )


def _draw_delays(axes: Axes, agent: Driven, local: Driven, deadline_ms: float) -> None:
    by_server, skipped = agent.by_server, agent.status == SKIPPED
    axes.plot(
        local.time_s,
        local.delay_ms,
        color=colour_of("full-local"),
        alpha=0.35,
        linewidth=1,
        label=f"full local processing, mean {local.delay_ms.mean():.1f} ms",
    )
    axes.plot(agent.time_s, agent.delay_ms, color=AGENT_COLOUR, linewidth=0.6, alpha=0.6)
    for mask, colour, who in (
        (~by_server & ~skipped, DEVICE_COLOUR, "the device answered"),
        (by_server, SERVER_COLOUR, "the server answered"),
        (skipped, NOBODY_COLOUR, "skipped"),
    ):
        if mask.any():
            label = f"{agent.name}: {who} ({100 * mask.mean():.0f} %)"
            axes.plot(
                agent.time_s[mask], agent.delay_ms[mask], ".", color=colour, ms=5, label=label
            )
    axes.axhline(deadline_ms, color="black", linewidth=0.8, linestyle="--", label="deadline")
    top = max(deadline_ms * 1.5, float(np.percentile(local.delay_ms, 99)) * 1.3)
    axes.set_ylim(0, top)
    beyond = int((agent.delay_ms > top).sum())
    axes.set_ylabel("delay of a frame (ms)")
    above = f"; {beyond} frame{'s' if beyond > 1 else ''} above" if beyond else ""
    axes.set_xlabel(f"time in the drive (s){above}")
    times = local.delay_ms.mean() / agent.delay_ms.mean()
    axes.set_title(
        f"Delay of every frame: {agent.delay_ms.mean():.1f} ms on average, {times:.1f} times less "
        "than full local processing",
        fontsize=10,
        loc="left",
    )
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False)
    make_plain(axes)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"


def _box(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x - _WIDE, y - _HALF),
            2 * _WIDE,
            2 * _HALF,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=colour,
            alpha=0.14,
            edgecolor=colour,
        )
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=9, color="#212529")


def _exit(axes: Axes, block: int, share: float, y: float, colour: str) -> None:
    """The classifier after a block: an arrow out of the network, as wide as its share."""
    away = 1 if y == _DEVICE_Y else -1
    start = (block, y + away * _HALF)
    end = (block, y + away * (_HALF + 0.3))
    _arrow(axes, start, end, 1.0 + 9.0 * share, colour, faint=share == 0)
    says = f"exit {block}: {_percent(share)}" if share else f"exit {block}"
    axes.text(
        block,
        y + away * (_HALF + 0.36),
        says,
        ha="center",
        va="bottom" if away > 0 else "top",
        fontsize=9,
        color=colour if share else NOBODY_COLOUR,
        fontweight="bold" if share else "normal",
    )


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    width: float,
    colour: str,
    faint: bool = False,
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=8 + 1.5 * width,
            linewidth=width,
            color=NOBODY_COLOUR if faint else colour,
            alpha=0.35 if faint else 0.8,
            shrinkA=0,
            shrinkB=0,
        )
    )
