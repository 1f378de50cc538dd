"""Predictions of an engineer's rule from an observation: delay, energy and cost of all actions.

The single-frame cost model with the device's own estimates of rate, round trip and server
wait in place of the true values. Every rule of `agents.baselines.rules` uses it. Below, A is the
number of the network's actions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.topology import Topology
from offload_env.world import World
from testbed.policy.observation_fields import schema_of

Floats = NDArray[np.float64]

HOLD_OFF_S: Final = 1.0
"""How long a rule treats a link as dead after an exchange that failed. A failure teaches nothing
about rate and round trip, so without this a rule would try again at every frame."""


class Reader:
    """Reads observations of one network in the units of their elements.

    Attributes:
        at: index of every element, those of the staged observation among them, by name.
    """

    def __init__(self, topology: Topology) -> None:
        schema = schema_of(topology)
        self.at = {field.name: field.index for field in schema.staged_fields}
        fields = schema.fields
        self._is_log = np.array([f.scale == "log" for f in fields])
        self._low = np.array([np.log(f.low) if f.scale == "log" else f.low for f in fields])
        self._high = np.array([np.log(f.high) if f.scale == "log" else f.high for f in fields])

    def __call__(self, observations: NDArray[np.float32]) -> Floats:
        """Inverse of `testbed.policy.observation_fields.Schema.normalise`.

        Args:
            observations: float32 (B, obs_dim) in [-1, 1]; further elements are left out.

        Returns:
            float64 (B, obs_dim); clipped values stay at the ends of their fields' ranges.
        """
        scaled = np.asarray(observations, np.float64)[..., : len(self._low)]
        linear = self._low + (scaled + 1.0) * 0.5 * (self._high - self._low)
        return np.where(self._is_log, np.exp(np.where(self._is_log, linear, 0.0)), linear)


@lru_cache(maxsize=64)
def reader(topology: Topology) -> Reader:
    """The reader of one network; the same object for equal topologies."""
    return Reader(topology)


class Predictor:
    """Predicts what each action would cost now, for one world's device and prices.

    Args:
        world: its cost model and prices are used, never its traces or labels' future.

    Attributes:
        read: reads its network's observations.
    """

    def __init__(self, world: World) -> None:
        topology = world.topology
        self.world, self.read, self._is_local = world, reader(topology), topology.is_local
        self._asleep_ms = schema_of(topology).fields[self.read.at["tail_left_ms"]].low
        radio = world.cost.radio
        # Frames differ in size; before one is encoded only the mean is known.
        sent_bytes = world.sent_bytes.mean(0)
        self._bits = 8.0 * sent_bytes
        self._send_mj = radio.mj_per_byte * sent_bytes
        self._tail_ms, self._tail_mw = radio.tail_ms, radio.tail_mw
        self._promotion_ms = radio.promotion_ms
        self._waiting_mw = world.cost.idle_mw + radio.active_mw

    def exchange_ms(self, raw: Floats) -> Floats:
        """Predicted exchange of every action, (B, A); 0 for local ones.

        Infinite, so a time-out, for `HOLD_OFF_S` after one that failed.
        """
        at = self.read.at
        rate = raw[:, at["uplink_mbps"], None]
        rtt = raw[:, at["rtt_ms"], None]
        wait = raw[:, at["server_wait_ms"], None]
        world = self.world
        exchange = self._bits / (1e3 * rate) + rtt + world.cost.net_ms + wait + world.server_ms
        exchange += self._promotion_ms * (self._tail_left_ms(raw) == 0.0)
        failed = raw[:, at["failures"]] > 0.5
        down = failed & (raw[:, at["failure_age_s"]] < HOLD_OFF_S)
        exchange = np.where(down[:, None], np.inf, exchange)
        return np.where(self._is_local, 0.0, exchange)

    def _tail_left_ms(self, raw: Floats) -> Floats:
        """Of the modem's tail, (B, 1); 0 if it sleeps."""
        left = raw[:, self.read.at["tail_left_ms"], None]
        # A tail at the field's low end means that the modem sleeps.
        return np.where(left <= self._asleep_ms, 0.0, left)

    def delay_ms(self, raw: Floats, exchange: Floats | None = None) -> Floats:
        """Predicted total processing delay of every action, (B, A).

        Args:
            raw: (B, obs_dim).
            exchange: another prediction of `exchange_ms`, (B, A), to use instead.
        """
        exchange = self.exchange_ms(raw) if exchange is None else exchange
        queue = raw[:, self.read.at["queue_ms"], None]
        timeout = self.world.scenario.timing.timeout_ms
        late = exchange > timeout
        exchange = np.where(late, timeout + self.world.fallback_ms, exchange)
        total: Floats = queue + self.world.device_ms + exchange
        return total

    def energy_mj(self, raw: Floats, exchange: Floats | None = None) -> Floats:
        """Predicted device energy of every action, (B, A), tail until the next frame included.

        Args:
            raw: (B, obs_dim).
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
        left = self._tail_left_ms(raw)
        old_tail = np.minimum(left, np.where(self._is_local, period, world.device_ms))
        tail = np.where(self._is_local, old_tail, old_tail + np.minimum(after, self._tail_ms))
        radio = np.where(self._is_local, 0.0, self._waiting_mw * waiting / 1e3 + self._send_mj)
        energy: Floats = compute + radio + self._tail_mw * tail / 1e3
        return energy

    def cost(self, raw: Floats, exchange: Floats | None = None) -> Floats:
        """Predicted cost of every action by the scenario's price, (B, A).

        Args:
            raw: (B, obs_dim).
            exchange: as in `delay_ms`.
        """
        exchange = self.exchange_ms(raw) if exchange is None else exchange
        delay = self.delay_ms(raw, exchange)
        miss = (delay > self.world.scenario.timing.deadline_ms).astype(np.float64)
        return self.world.frame_cost(delay, self.energy_mj(raw, exchange), miss)

    def exchange_parts_ms(self, raw: Floats) -> Floats:
        """The terms of `exchange_ms`, (B, A, 3): sending, network and wait, server."""
        at, parts = self.read.at, np.empty((len(raw), len(self._is_local), 3))
        rate = raw[:, at["uplink_mbps"], None]
        parts[:, :, 0] = self._bits / (1e3 * rate)
        away = raw[:, at["rtt_ms"]] + raw[:, at["server_wait_ms"]] + self.world.cost.net_ms
        parts[:, :, 1] = away[:, None]
        parts[:, :, 2] = self.world.server_ms
        parts[:, self._is_local] = 0.0
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
        table, topology = world.table, world.topology
        self._read, self._place = reader(topology), topology.exit_place
        local = list(topology.local)
        inner = np.linspace(0, 1, bins + 1)[1:-1]
        self._edges = np.quantile(table.confidence[:, local], inner)
        before = np.flatnonzero(np.diff(table.track) == 0)
        right = table.correct[before + 1]
        overall = table.correct.mean(0)
        # [place of the last answer's exit, its confidence bin, action]
        self._known = np.empty((topology.n_exits, bins, topology.n_actions))
        for e, a in enumerate(local):
            seen = np.searchsorted(self._edges, table.confidence[before, a])
            for k in range(bins):
                hits = right[seen == k]
                # Ten pseudo-frames of the overall accuracy stabilise bins with few frames.
                self._known[e, k] = (hits.sum(0) + 10 * overall) / (len(hits) + 10)
        starts = world.track_start
        self._new = (table.correct[starts].sum(0) + 10 * overall) / (len(starts) + 10)

    def __call__(self, raw: Floats) -> Floats:
        """P(correct), (B, A)."""
        at = self._read.at
        last = self._place[np.rint(raw[:, at["last_exit"]]).astype(np.int64)]
        sure = np.searchsorted(self._edges, raw[:, at["last_confidence"]])
        out: Floats = np.where((last >= 0)[:, None], self._known[last, sure], self._new)
        return out


def best(cost: NDArray[Any]) -> NDArray[np.int64]:
    """Index of the smallest entry of every row."""
    index: NDArray[np.int64] = cost.argmin(1).astype(np.int64)
    return index
