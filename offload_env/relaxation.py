"""The decision problem without queues: for every frame and action, costs no policy can beat.

Notation: frame i is captured at c_i, action a computes for d = device_ms[a] * jitter_i on the
device. In a real schedule the frame starts late by some queue, so its payload reaches the
radio at some s >= c_i + d; as a frame that waits longer than ``max_queue_ms`` is skipped and
an exchange longer than ``timeout_ms`` is given up, an answered exchange has
``s <= c_i + d + max_queue_ms + timeout_ms`` =: the window. Over that window:

* **Delay.** The payload has left at x(s), arrives at ``u = x + w(x)`` with w the one-way
  delay, is served at ``v = u + wait(u) + server`` and answered at ``v + w(v) + net``. x never
  falls when s grows (FIFO), nor does u + wait(u) (the server is FIFO too, and its unfinished
  work falls no faster than time passes). ``h(t) = t + w(t)`` may fall, but only where the
  trace changes its values, so its lower envelope ``H(t) = min over t' >= t of h(t')`` is the
  least of h(t) and h at the changes after t, and rises. Composing rising maps, the answer is
  no earlier than ``H(v') + net``, ``v' = H(x(c_i + d)) + wait + server``: `answer_ms`.
* **Energy.** The exchange lasts at least the payload at the window's fastest rate, plus its
  least round trip, least wait, and the server's compute.
* **Misses.** A delay above the deadline when even the least delay is above it.
* An exchange that times out costs a local answer plus the wasted exchange; skipping a frame
  costs at least ``max_queue_ms`` of delay, a miss and a wrong answer.

Each is a lower bound for every schedule, clairvoyant ones included: labels, jitter, rates
and waits are known here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.action import ACTIONS, N_ACTIONS, N_EXITS, action_index
from offload_env.hashing import Keys
from offload_env.server_load import CELL_MS
from offload_env.trace_pool import Lane
from offload_env.world import LOCAL, POOL, World

Floats = NDArray[np.float64]
SKIP: Final = N_ACTIONS
"""Option number of giving the frame up."""
N_OPTIONS: Final = N_ACTIONS + 1
OFFLOADS: Final = np.array([not a.is_local for a in ACTIONS] + [False])


@dataclass(frozen=True, slots=True)
class Options:
    """Lower bounds for E episodes of n frames and the 21 options of each frame.

    Attributes:
        cost: float64 (E, n, 21), cost without the modem's tail; inf where impossible.
        error: float64 (E, n, 21), 1 if the answer is wrong.
        compute_ms: float64 (E, n, 21), device time before anything is sent.
        answer_ms: float64 (E, n, 21), earliest answer of an exchange, since the start.
        captured_ms: float64 (n + 1,), capture times, and that of the frame after the last.
        rows: int64 (E, n), table rows.
    """

    cost: Floats
    error: Floats
    compute_ms: Floats
    answer_ms: Floats
    captured_ms: Floats
    rows: NDArray[np.int64]


def options(world: World, keys: Keys, n_frames: int) -> Options:
    """The relaxed costs of the first `n_frames` frames of the episodes `keys`."""
    plans, timing, cost = world.plans(keys), world.scenario.timing, world.cost
    rows = np.stack([world.rows(int(key), n_frames) for key in keys])
    at = (plans.jitter_at[:, None] + np.arange(n_frames)) & (POOL - 1)
    jitter, far = world.device_jitter[at][..., None], world.server_jitter[at][..., None]
    captured: Floats = np.arange(n_frames + 1, dtype=np.float64) * timing.period_ms
    compute = world.device_ms * jitter
    sent_bytes = world.sent_bytes[rows]
    ready = captured[:-1, None] + compute
    server = world.server_ms * far
    links = _Links(world, plans.trace, plans.offset_ms, plans.server_cell, ready.shape)
    answer = links.earliest_answer(ready, 8.0 * sent_bytes, server)
    exchange = links.shortest_exchange(ready, 8.0 * sent_bytes, server)

    is_local = ~OFFLOADS[:N_ACTIONS]
    delay = np.where(is_local, compute, answer - captured[:-1, None])
    exchange = np.where(is_local, 0.0, exchange)
    send_mj = cost.radio.tx_mw_per_mbps * 8e-6 * sent_bytes
    hold_mw = cost.idle_mw + cost.radio.active_mw
    energy = (cost.busy_mw * compute + hold_mw * exchange) / 1e3 + send_mj
    price = _price(world, delay, energy)
    price[exchange > timing.timeout_ms] = np.inf
    _allow_timeouts(world, price, compute, jitter, send_mj)
    skip = np.full(
        (*price.shape[:2], 1),
        world.scenario.price.delay_weight * timing.max_queue_ms / world.delay_ref_ms
        + world.scenario.price.miss,
    )
    none = np.zeros_like(skip)
    return Options(
        cost=np.concatenate([price, skip], 2),
        error=np.concatenate([1.0 - world.correct[rows], none + 1.0], 2),
        compute_ms=np.concatenate([compute, none], 2),
        answer_ms=np.concatenate([np.where(is_local, 0.0, answer), none], 2),
        captured_ms=captured,
        rows=rows,
    )


def _price(world: World, delay: Floats, energy: Floats) -> Floats:
    miss = (delay > world.scenario.timing.deadline_ms).astype(np.float64)
    return world.frame_cost(delay, energy, miss)


def _allow_timeouts(
    world: World, price: Floats, compute: Floats, jitter: Floats, send_mj: Floats
) -> None:
    """A time-out ends in a local answer: never dearer than the cheapest way to get it.

    With sensible cost models staying local is cheaper and nothing changes here.
    """
    cost, timeout = world.cost, world.scenario.timing.timeout_ms
    fallback = world.fallback_ms * jitter
    delay = compute + timeout + fallback
    hold_mw = cost.idle_mw + cost.radio.active_mw
    energy = (cost.busy_mw * (compute + fallback) + hold_mw * timeout) / 1e3 + send_mj
    late = _price(world, delay, energy)
    for exit in range(1, N_EXITS + 1):
        local = LOCAL[exit - 1]
        for split in range(exit):
            other = late[..., action_index(exit, split)]
            price[..., local] = np.minimum(price[..., local], other)


class _Links:
    """The link and server that each (episode, frame, action) meets."""

    def __init__(
        self,
        world: World,
        trace: NDArray[np.int64],
        offset_ms: Floats,
        cell0: NDArray[np.int64],
        shape: tuple[int, ...],
    ) -> None:
        self.world = world
        self.shape = shape
        each = int(np.prod(shape[1:]))
        self.lane: Lane = world.pool.lanes(np.repeat(trace, each))
        self.offset = np.repeat(offset_ms, each)
        self.cell0 = np.repeat(cell0, each)
        timing = world.scenario.timing
        self.window = timing.max_queue_ms + timing.timeout_ms
        self.reach = self.window + timing.timeout_ms

    def earliest_answer(self, ready: Floats, bits: Floats, server_ms: Floats) -> Floats:
        """Least answer time over all moments at which the payload may reach the radio."""
        net = self.world.cost.net_ms
        left, up = self.world.pool.send(self.lane, ready.ravel() + self.offset, bits.ravel())
        arrive = self._envelope(left, left + up) - self.offset
        cell = (arrive / CELL_MS).astype(np.int64)
        work = self.world.server_work_ms[np.minimum(self.cell0 + cell, POOL - 1)]
        wait = np.maximum(work - (arrive - cell * CELL_MS), 0.0)
        served = ((arrive + wait) + server_ms.ravel()) + self.offset
        back = served + self.world.pool.one_way(self.lane, served)
        answer: Floats = (self._envelope(served, back) - self.offset) + net
        return answer.reshape(self.shape)

    def _envelope(self, at: Floats, first: Floats) -> Floats:
        """Least of `first` and t + one-way delay at the trace's changes t after `at`."""
        period = self.lane.period_ms
        edge = np.floor(at / period)
        best = first
        n = math.ceil(self.reach / float(period.min())) + 2
        for k in range(1, n):
            later = (edge + k) * period
            # Exactly on the edge: the sample that begins there.
            sample = self.world.pool.index(self.lane, edge + k)
            best = np.minimum(best, later + self.world.pool.one_way_ms[sample])
        # Beyond: no earlier than the edge itself.
        return np.minimum(best, (edge + n) * period)

    def shortest_exchange(self, ready: Floats, bits: Floats, server_ms: Floats) -> Floats:
        """Least time from the radio to the answer over the window."""
        pool, lane = self.world.pool, self.lane
        first = ready.ravel() + self.offset
        period = lane.period_ms
        edge = np.floor(first / period)
        rate = np.zeros(len(first))
        one_way = np.full(len(first), np.inf)
        for k in range(math.ceil(self.reach / float(period.min())) + 1):
            at = pool.index(lane, edge + k)
            start = (edge + k) * period
            inside = start <= first + self.reach
            rate = np.maximum(rate, np.where(inside, pool.bits_per_ms[at], 0.0))
            one_way = np.minimum(one_way, np.where(inside, pool.one_way_ms[at], np.inf))
        sending = np.where(rate > 0, bits.ravel() / np.maximum(rate, 1e-300), np.inf)
        shortest: Floats = (
            sending
            + 2.0 * one_way
            + self._least_wait(ready.ravel())
            + server_ms.ravel()
            + self.world.cost.net_ms
        )
        return shortest.reshape(self.shape)

    def _least_wait(self, ready: Floats) -> Floats:
        work = self.world.server_work_ms
        if not work.any():
            return np.zeros(len(ready))
        # Within a cell the wait falls by at most the cell's length.
        floor = np.maximum(work - CELL_MS, 0.0)
        span = math.ceil(self.reach / CELL_MS) + 2
        least = floor.copy()
        for k in range(1, span):
            least[:-k] = np.minimum(least[:-k], floor[k:])
        at: Floats = least[np.minimum(self.cell0 + (ready / CELL_MS).astype(np.int64), POOL - 1)]
        return at
