"""How long a frame computes before it sends or answers: once decided, or after looks at exits.

A staged device may look at exits on its way. Each set of exits looked at leads to the same
actions, later: `LOOKS` names the sets, `compute_ms` the times, as the simulator adds them up.
"""

from __future__ import annotations

from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.topology import ACTIONS, N_ACTIONS, N_EXITS
from offload_env.world import LOCAL, World

Floats = NDArray[np.float64]

LOOKS: Final = tuple(
    evaluated for k in range(N_EXITS) for evaluated in combinations(range(1, N_EXITS), k)
)
"""Sets of exits looked at, in rising order; the first is empty: one decision a frame."""


def open_actions(evaluated: tuple[int, ...]) -> NDArray[np.int64]:
    """Canonical actions still open after the looks, int64 (K,)."""
    at = evaluated[-1] if evaluated else 0
    return np.array([a.index for a in ACTIONS if a.split >= at and a.exit > at])


def compute_ms(world: World, jitter: Floats, evaluated: tuple[int, ...]) -> Floats:
    """Device time up to the answer or the hand-over to the radio, for `open_actions`.

    Args:
        world: for the cost model.
        jitter: float64 (...), of each frame.
        evaluated: exits looked at, rising.

    Returns:
        float64 (..., K).
    """
    device, standing = world.device_ms, world.standing_ms
    spent, at = np.zeros_like(jitter), 0
    for exit in evaluated:
        spent = spent + max(device[LOCAL[exit - 1]] - standing[at], 0.0) * jitter
        at = exit
    extra = np.maximum(device[open_actions(evaluated)] - standing[at], 0.0)
    times: Floats = spent[..., None] + extra * jitter[..., None]
    return times


def least_and_most(world: World) -> tuple[Floats, Floats]:
    """Shortest and longest device time of every action over all looks, jitter 1, (20,) each."""
    least, most = np.full(N_ACTIONS, np.inf), np.zeros(N_ACTIONS)
    for evaluated in LOOKS:
        actions, times = open_actions(evaluated), compute_ms(world, np.ones(1), evaluated)[0]
        least[actions] = np.minimum(least[actions], times)
        most[actions] = np.maximum(most[actions], times)
    return least, most
