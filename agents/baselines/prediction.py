"""Predictions of an engineer's rule from an observation: delay, energy and cost of 20 actions.

The single-frame cost model with the device's own estimates of rate, round trip and server
wait in place of the true values. Every rule of `agents.baselines.rules` uses it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.topology import ACTIONS, N_ACTIONS, N_EXITS
from offload_env.world import World
from testbed.policy.observer import FIELDS, OBS_DIM

Floats = NDArray[np.float64]

AT: Final = {field.name: field.index for field in FIELDS}
"""Index of every observation field, by name."""

EXITS: Final = np.array([a.exit for a in ACTIONS])
SPLITS: Final = np.array([a.split for a in ACTIONS])
IS_LOCAL: Final = np.array([a.is_local for a in ACTIONS])

HOLD_OFF_S: Final = 1.0
"""How long a rule treats a link as dead after an exchange that failed. A failure teaches nothing
about rate and round trip, so without this a rule would try again at every frame."""

_LOW: Final = np.array([np.log(f.low) if f.scale == "log" else f.low for f in FIELDS])
_HIGH: Final = np.array([np.log(f.high) if f.scale == "log" else f.high for f in FIELDS])
_IS_LOG: Final = np.array([f.scale == "log" for f in FIELDS])


def raw_observation(observations: NDArray[np.float32]) -> Floats:
    """Observations in their own units: inverse of `testbed.policy.observer.normalise`.

    Args:
        observations: float32 (B, OBS_DIM) in [-1, 1].

    Returns:
        float64 (B, OBS_DIM); clipped values stay at the ends of their fields' ranges.
    """
    scaled = np.asarray(observations, np.float64)[..., :OBS_DIM]
    linear = _LOW + (scaled + 1.0) * 0.5 * (_HIGH - _LOW)
    return np.where(_IS_LOG, np.exp(np.where(_IS_LOG, linear, 0.0)), linear)


class Predictor:
    """Predicts what each action would cost now, for one world's device and prices.

    Args:
        world: its cost model and prices are used, never its traces or labels' future.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        radio = world.cost.radio
        # Frames differ in size; before one is encoded only the mean is known.
        sent_bytes = world.sent_bytes.mean(0)
        self._bits = 8.0 * sent_bytes
        self._send_mj = radio.mj_per_byte * sent_bytes
        self._tail_ms, self._tail_mw = radio.tail_ms, radio.tail_mw
        self._waiting_mw = world.cost.idle_mw + radio.active_mw

    def exchange_ms(self, raw: Floats) -> Floats:
        """Predicted exchange of every action, (B, 20); 0 for local ones.

        Infinite, so a time-out, for `HOLD_OFF_S` after one that failed.
        """
        rate = raw[:, AT["uplink_mbps"], None]
        rtt = raw[:, AT["rtt_ms"], None]
        wait = raw[:, AT["server_wait_ms"], None]
        world = self.world
        exchange = self._bits / (1e3 * rate) + rtt + world.cost.net_ms + wait + world.server_ms
        failed = raw[:, AT["failures"]] > 0.5
        down = failed & (raw[:, AT["failure_age_s"]] < HOLD_OFF_S)
        exchange = np.where(down[:, None], np.inf, exchange)
        return np.where(IS_LOCAL, 0.0, exchange)

    def delay_ms(self, raw: Floats, exchange: Floats | None = None) -> Floats:
        """Predicted total processing delay of every action, (B, 20).

        Args:
            raw: (B, OBS_DIM).
            exchange: another prediction of `exchange_ms`, (B, 20), to use instead.
        """
        exchange = self.exchange_ms(raw) if exchange is None else exchange
        queue = raw[:, AT["queue_ms"], None]
        timeout = self.world.scenario.timing.timeout_ms
        late = exchange > timeout
        exchange = np.where(late, timeout + self.world.fallback_ms, exchange)
        total: Floats = queue + self.world.device_ms + exchange
        return total

    def energy_mj(self, raw: Floats, exchange: Floats | None = None) -> Floats:
        """Predicted device energy of every action, (B, 20), tail until the next frame included.

        Args:
            raw: (B, OBS_DIM).
            exchange: as in `delay_ms`.
        """
        world, cost = self.world, self.world.cost
        exchange = self.exchange_ms(raw) if exchange is None else exchange
        timeout = world.scenario.timing.timeout_ms
        fallback = np.where(exchange > timeout, world.fallback_ms, 0.0)
        waiting = np.minimum(exchange, timeout)
        compute = cost.busy_mw * (world.device_ms + fallback) / 1e3
        period = world.scenario.timing.period_ms
        after = np.maximum(period - world.device_ms - waiting - fallback, 0.0)
        left = raw[:, AT["tail_left_ms"], None]
        # A tail at the field's low end means that the modem sleeps.
        left = np.where(left <= FIELDS[AT["tail_left_ms"]].low, 0.0, left)
        old_tail = np.minimum(left, np.where(IS_LOCAL, period, world.device_ms))
        tail = np.where(IS_LOCAL, old_tail, old_tail + np.minimum(after, self._tail_ms))
        radio = np.where(IS_LOCAL, 0.0, self._waiting_mw * waiting / 1e3 + self._send_mj)
        energy: Floats = compute + radio + self._tail_mw * tail / 1e3
        return energy

    def cost(self, raw: Floats, exchange: Floats | None = None) -> Floats:
        """Predicted cost of every action by the scenario's price, (B, 20).

        Args:
            raw: (B, OBS_DIM).
            exchange: as in `delay_ms`.
        """
        exchange = self.exchange_ms(raw) if exchange is None else exchange
        delay = self.delay_ms(raw, exchange)
        miss = (delay > self.world.scenario.timing.deadline_ms).astype(np.float64)
        return self.world.frame_cost(delay, self.energy_mj(raw, exchange), miss)

    def exchange_parts_ms(self, raw: Floats) -> Floats:
        """The terms of `exchange_ms`, (B, 20, 3): sending, network and wait, server."""
        parts = np.empty((len(raw), N_ACTIONS, 3))
        rate = raw[:, AT["uplink_mbps"], None]
        parts[:, :, 0] = self._bits / (1e3 * rate)
        away = raw[:, AT["rtt_ms"]] + raw[:, AT["server_wait_ms"]] + self.world.cost.net_ms
        parts[:, :, 1] = away[:, None]
        parts[:, :, 2] = self.world.server_ms
        parts[:, IS_LOCAL] = 0.0
        return parts


class AccuracyTable:
    """P(correct) of every action from the last answer on the current track.

    A table measured on training frames: the share of right answers of each action on a
    frame, given which exit answered the frame before and how confident it was (in bins),
    or given that the track is new.

    Args:
        world: a training world.
        bins: confidence bins, equally filled.
    """

    def __init__(self, world: World, bins: int = 8) -> None:
        table = world.table
        local = np.flatnonzero(IS_LOCAL)
        inner = np.linspace(0, 1, bins + 1)[1:-1]
        self._edges = np.quantile(table.confidence[:, local], inner)
        before = np.flatnonzero(np.diff(table.track) == 0)
        right = table.correct[before + 1]
        overall = table.correct.mean(0)
        # [exit of the last answer - 1, its confidence bin, action]
        self._known = np.empty((N_EXITS, bins, N_ACTIONS))
        for e, a in enumerate(local):
            seen = np.searchsorted(self._edges, table.confidence[before, a])
            for k in range(bins):
                hits = right[seen == k]
                # Ten pseudo-frames of the overall accuracy stabilise bins with few frames.
                self._known[e, k] = (hits.sum(0) + 10 * overall) / (len(hits) + 10)
        starts = world.track_start
        self._new = (table.correct[starts].sum(0) + 10 * overall) / (len(starts) + 10)

    def __call__(self, raw: Floats) -> Floats:
        """P(correct), (B, 20)."""
        last = np.rint(raw[:, AT["last_exit"]]).astype(np.int64)
        sure = np.searchsorted(self._edges, raw[:, AT["last_confidence"]])
        known = self._known[np.maximum(last, 1) - 1, sure]
        out: Floats = np.where((last > 0)[:, None], known, self._new)
        return out


def best(cost: NDArray[Any]) -> NDArray[np.int64]:
    """Index of the smallest entry of every row."""
    index: NDArray[np.int64] = cost.argmin(1).astype(np.int64)
    return index
