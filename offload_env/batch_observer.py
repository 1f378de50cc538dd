"""The observations of many lanes at once, as `testbed.policy.observer` makes one."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.topology import N_EXITS
from offload_env.lanes import Lanes
from offload_env.world import World
from testbed.policy.observation_fields import (
    CONSTANTS_AT,
    FEATURES_AT,
    FIELDS,
    MIN_MS_PER_KB,
    N_LOG,
    OBS_DIM,
    STAGED_FIELDS,
)

_BASE: Final = np.array([np.log(f.low) if f.scale == "log" else f.low for f in FIELDS], np.float32)[
    :, None
]
_GAIN: Final = (
    np.array(
        [2 / ((np.log(f.high / f.low)) if f.scale == "log" else (f.high - f.low)) for f in FIELDS]
    ).astype(np.float32)
)[:, None]
_LEAST: Final = np.array([f.least for f in FIELDS], np.float32)[:, None]
_MOST: Final = np.array([f.most for f in FIELDS], np.float32)[:, None]
_SPENT: Final = STAGED_FIELDS[-1]


class BatchObserver:
    """Turns the state of B lanes into observations.

    Args:
        world: shared and never changed.
        n: number of lanes.
    """

    def __init__(self, world: World, n: int) -> None:
        self.world, self.n = world, n
        self._has_tail = world.cost.radio.tail_ms > 0
        self._features = np.ascontiguousarray(world.features.T)
        self._constants = np.array(world.settings.scaled(), np.float32)[:, None]
        self._lane_numbers = np.arange(n)

    def observe(self, s: Lanes) -> NDArray[np.float32]:
        """Observations now, float32 (B, `OBS_DIM`), a new array."""
        return np.ascontiguousarray(self._columns(s, OBS_DIM).T)

    def observe_staged(self, s: Lanes) -> NDArray[np.float32]:
        """Staged observations now, float32 (B, `STAGED_OBS_DIM`), a new array."""
        out = self._columns(s, len(STAGED_FIELDS))
        stage = out[OBS_DIM:]
        stage[:N_EXITS] = -1.0
        stage[s.position % N_EXITS, self._lane_numbers] = 1.0
        stage[N_EXITS] = 2.0 * s.stage_confidence - 1.0
        stage[N_EXITS + 1] = s.stage_track
        stage[N_EXITS + 2] = s.stage_frame
        stage[N_EXITS + 3] = 2.0 * s.timed_out - 1.0
        spent = s.compute + s.waited + s.rest
        log = np.log(np.clip(spent, _SPENT.least, _SPENT.most) / _SPENT.low)
        stage[N_EXITS + 4] = log * (2 / np.log(_SPENT.high / _SPENT.low)) - 1.0
        return np.ascontiguousarray(out.T)

    def _columns(self, s: Lanes, n_fields: int) -> NDArray[np.float32]:
        settings = self.world.settings
        out = np.empty((n_fields, self.n), np.float32)
        now_s = s.start * 1e-3
        np.divide(8.0, np.maximum(s.ms_per_kb, MIN_MS_PER_KB), out=out[0], casting="unsafe")
        out[1] = s.rtt_ms
        out[2] = s.mean_ms
        out[3] = s.spread_ms
        np.subtract(now_s, s.transfer_s, out=out[4], casting="unsafe")
        np.subtract(now_s, s.failure_s, out=out[5], casting="unsafe")
        out[6] = s.server_wait_ms
        np.subtract(now_s, s.server_s, out=out[7], casting="unsafe")
        if self._has_tail:
            out[8] = s.last_end + self.world.cost.radio.tail_ms - s.start
        else:
            out[8] = 0.0
        out[9] = s.residual_ms
        out[10] = s.failures
        out[11] = s.queue
        out[12:17] = s.confidences
        out[17] = s.last_confidence
        out[18] = s.last_exit
        out[19] = s.agreement
        out[20] = s.answers
        # Before any frame the credit is 0: there is nothing to owe yet.
        frames = np.maximum(s.frame, 1)
        np.subtract(
            s.confidence_sum / frames,
            s.floor * (s.frame > 0),
            out=out[21],
            casting="unsafe",
        )
        budget = settings.energy_budget_mj
        out[22] = 1.0 if not budget else 1.0 - s.spent_mj / budget
        moving = out[:FEATURES_AT]
        np.clip(moving, _LEAST[:FEATURES_AT], _MOST[:FEATURES_AT], out=moving)
        np.log(out[:N_LOG], out=out[:N_LOG])
        moving -= _BASE[:FEATURES_AT]
        moving *= _GAIN[:FEATURES_AT]
        moving -= 1.0
        np.take(self._features, s.row, axis=1, out=out[FEATURES_AT:CONSTANTS_AT], mode="clip")
        out[CONSTANTS_AT:OBS_DIM] = self._constants
        return out
