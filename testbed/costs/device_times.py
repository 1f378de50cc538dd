"""Device times that a cost model implies: of a frame's parts, and how they spread.

The simulator adds these up; an emulated device waits them out. Both take them from here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cnn.topology import N_EXITS, action_index
from testbed.costs.cost_model import CostModel

Floats = NDArray[np.float64]


def jitter_pool(rng: np.random.Generator, spread: float, n: int) -> Floats:
    """Lognormal factors with mean 1, so that mean costs equal the cost model's formulas.

    Args:
        rng: of the factors.
        spread: standard deviation of their logarithm.
        n: how many.

    Returns:
        float64 (n,).
    """
    return np.exp(spread * rng.standard_normal(n) - spread * spread / 2)


def standing_ms(cost: CostModel) -> Floats:
    """Device time of blocks 1..p without any exit or encoder, p = 0..5, and the overhead.

    Finishing exit 5 from the frame costs blocks 1..5 and the exit, from block p it costs
    the blocks after p and the exit: the difference is blocks 1..p. The overhead (capture,
    features, decision) is what a local action costs beyond finishing from the frame: a frame
    pays it once, however often it is decided about.

    Returns:
        float64 (6,), the cost model's slowdown included.
    """
    overhead = max(0.0, float(_beyond_finishing(cost).min()))
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
    times[0] = cost.slowdown * max(0.0, float(_beyond_finishing(cost).min()))
    return times


def _beyond_finishing(cost: CostModel) -> Floats:
    """What each local action takes beyond finishing its exit from the frame, float64 (5,)."""
    exits = range(1, N_EXITS + 1)
    local = np.array([cost.device_ms[action_index(e, e)] for e in exits])
    finish = np.array([cost.fallback_ms[action_index(e, 0)] for e in exits])
    beyond: Floats = local - finish
    return beyond
