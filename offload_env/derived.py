"""What a world derives from a scenario's table and cost model: floors, jitter, device times."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.action import N_EXITS, action_index
from cnn.errors import DataError
from cnn.frame_table import FrameTable
from offload_env.scenario import Scenario
from testbed.costs.cost_model import CostModel

Floats = NDArray[np.float64]

POOL: Final = 1 << 16
"""Length of the pools of jitter and server work; an episode reads a stretch of each."""
LOCAL: Final = tuple(action_index(e, e) for e in range(1, N_EXITS + 1))
"""Canonical numbers of the five local actions, by exit."""
MAIN: Final = LOCAL[-1]
"""Full local processing, e5s5."""


def accuracy_floor(table: FrameTable, scenario: Scenario) -> float:
    """The main exit's local accuracy less the margin, or the explicit floor."""
    constraint = scenario.constraint
    if constraint.accuracy_floor > 0:
        return constraint.accuracy_floor
    return max(0.0, float(table.correct[:, MAIN].mean()) - constraint.accuracy_margin)


def jitter_pool(rng: np.random.Generator, spread: float) -> Floats:
    """Lognormal factors with mean 1, so that mean costs equal the cost model's formulas."""
    return np.exp(spread * rng.standard_normal(POOL) - spread * spread / 2)


def standing_ms(cost: CostModel) -> Floats:
    """Device time of blocks 1..p without any exit or encoder, p = 0..5, and the overhead.

    Finishing exit 5 from the frame costs blocks 1..5 and the exit, from block p it costs
    the blocks after p and the exit: the difference is blocks 1..p. The overhead (capture,
    features, decision) is what a local action costs beyond finishing from the frame: a frame
    pays it once, however often it is decided about.
    """
    local = [cost.device_ms[a] for a in LOCAL]
    finish = [cost.fallback_ms[action_index(e, 0)] for e in range(1, N_EXITS + 1)]
    overhead = max(0.0, min(a - b for a, b in zip(local, finish, strict=True)))
    whole = cost.fallback_ms[action_index(N_EXITS, 0)]
    parts = [whole - cost.fallback_ms[action_index(N_EXITS, p)] for p in range(N_EXITS)]
    times = np.maximum.accumulate(np.array([*parts, max(whole, *parts)]))
    times = np.maximum(times, 0.0)
    times[1:] += overhead
    return cost.slowdown * times


def resumed_ms(cost: CostModel) -> Floats:
    """As `standing_ms`, for going on from block p after an exchange, float64 (6,).

    The overhead is spent at p = 0, too. A look from there costs its exit's local time less this.
    """
    times = standing_ms(cost)
    local = np.array([cost.device_ms[a] for a in LOCAL])
    finish = np.array([cost.fallback_ms[action_index(e, 0)] for e in range(1, N_EXITS + 1)])
    times[0] = cost.slowdown * max(0.0, float((local - finish).min()))
    return times


def check_fit(table: FrameTable, cost: CostModel) -> None:
    """Refuse a cost model whose payloads are not those of the frames (another network)."""
    mean = table.payload_bytes.mean(0)
    if not np.allclose(mean, cost.payload_bytes, rtol=0.1, atol=8):
        raise DataError(
            f"frame table of bundle {table.bundle_hash[:12]} sending {mean.round().tolist()} bytes "
            f"and cost model {cost.name} of bundle {cost.bundle_hash[:12]} with "
            f"{list(cost.payload_bytes)}",
            expected="a cost model whose actions send what the table's do",
            mend="fit the cost model with the same bundle",
        )
