"""What a device that is still busy costs the frames that follow: model-predictive control.

Where the camera is faster than the device, a frame that takes longer than a period delays the ones
behind it. `BacklogCost` plays the next frames in the fitted model, as if the link stayed as is
expected of it now: every pair takes its predicted time and costs its predicted cost and its
mean errors. The least cost of so many frames follows by dynamic programming over the backlog, the
time that a frame waits for the device::

    V_0(q) = 0
    V_h(q) = min over pairs of  cost + D q + M [q + time > deadline] + V_(h-1)(max(0, q + time - T))

with D the price of a millisecond, M that of a miss and T the camera's period. A frame that waits
for longer than `Timing.max_queue_ms` is skipped: it costs its wait, a miss and a wrong answer. V is
computed on a grid that reaches just beyond `max_queue_ms`, and read between its points linearly.
Model-predictive control replans at every decision, so only the first decision of each plan is
carried out.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from agents.baselines.prediction import Floats
from offload_env.world import World

_STEP_MS: Final = 5.0
"""Between two points of the grid."""


class BacklogCost:
    """See the module's text; A actions, G points of the grid.

    Args:
        world: training world: prices, timing, mean errors.
        horizon: frames that are played.
    """

    def __init__(self, world: World, horizon: int) -> None:
        timing = world.scenario.timing
        self.horizon, self._period_ms = horizon, timing.period_ms
        # Frames that wait longer are skipped. Longer waits than the last point's count as that.
        self._grid = np.arange(0.0, timing.max_queue_ms + 2 * _STEP_MS, _STEP_MS)
        self._delay_price, self._miss = world.delay_price, world.scenario.price.miss
        self._waits = self._delay_price * self._grid
        self._deadline_ms = timing.deadline_ms
        self._errors = 1.0 - world.correct.mean(0, dtype=np.float64)
        self._skipped = slice(np.count_nonzero(self._grid <= timing.max_queue_ms), None)
        after_skip = np.maximum(self._grid[self._skipped] - self._period_ms, 0.0)
        self._after_skip = self._place(after_skip)

    def _place(self, backlog_ms: Floats) -> tuple[Any, Floats]:
        """Point of the grid below each backlog, and the way from it to the next one, [0, 1]."""
        at = np.minimum(backlog_ms / _STEP_MS, len(self._grid) - 1.000001)
        below = at.astype(np.int64)
        return below, at - below

    def to_go(self, time_ms: Floats, cost: Floats, error_price: Any) -> Floats:
        """V of `horizon` frames.

        Args:
            time_ms: that every pair keeps the device busy, (A,) or (B, A).
            cost: of a frame that finds the device free, without a miss, (A,) or (B, A).
            error_price: cost of one wrong answer, a float or (B, 1).

        Returns:
            float64 (G,) or (B, G), for `read`.
        """
        ends = self._grid[:, None] + time_ms[..., None, :]
        cost = cost + error_price * self._errors
        now = cost[..., None, :] + self._miss * (ends > self._deadline_ms)
        below, share = self._place(np.maximum(ends - self._period_ms, 0.0))
        value, skip = np.zeros(ends.shape[:-1]), self._miss + error_price
        # In the flattened `value`: its rows follow each other.
        rows = len(self._grid) * np.arange(value.size // len(self._grid))
        at = below + rows.reshape(*value.shape[:-1], 1, 1)
        for _ in range(self.horizon):
            low, high = value.take(at), value.take(at + 1)
            best = (now + low + share * (high - low)).min(-1)
            best[..., self._skipped] = skip + _between(value, *self._after_skip)
            value = self._waits + best
        return value

    def read(self, value: Floats, backlog_ms: Floats) -> Floats:
        """V at the backlogs (K,) or (B, K) that endings leave for the next frame."""
        below, share = self._place(np.maximum(backlog_ms, 0.0))
        low = np.take_along_axis(value, below, -1)
        high = np.take_along_axis(value, below + 1, -1)
        return low + share * (high - low)


def _between(value: Floats, below: Any, share: Floats) -> Floats:
    low: Floats = value[..., below]
    return low + share * (value[..., below + 1] - low)
