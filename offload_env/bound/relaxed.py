"""What a frame costs at least that starts late, or finds the radio busy.

Notation: frame i is captured at c_i and computes for d on the device before it sends; a look
at an exit on the way may make d longer, never shorter than d_i of the action alone. A frame
that is not punctual starts later by some queue, so its payload reaches the radio at some
s >= c_i + d_i; as a frame that waits longer than ``max_queue_ms`` is skipped and an exchange
longer than ``timeout_ms`` is given up, an answered exchange has ``s <= c_i + d_i + looks +
max_queue_ms + timeout_ms`` =: the window, ``looks`` the most that looks add. Over that window:

* **Delay.** The payload has left at x(s), arrives at ``u = x + w(x)`` with w the one-way
  delay, is served at ``v = u + wait(u) + server`` and answered at ``v + w(v) + net``. x never
  falls when s grows (FIFO), nor does u + wait(u) (the server is FIFO too, and its unfinished
  work falls no faster than time passes). ``h(t) = t + w(t)`` may fall, but only where the
  trace changes its values, so its lower envelope ``H(t) = min over t' >= t of h(t')`` is the
  least of h(t) and h at the changes after t, and rises. Composing rising maps, the answer is
  no earlier than ``H(v') + net``, ``v' = H(x(c_i + d_i)) + wait + server``.
* **Energy.** The exchange lasts at least the payload at the window's fastest rate, plus its
  least round trip, least wait, and the server's compute.
* **Misses.** A delay above the deadline when even the least delay is above it.
* An exchange that times out ends at ``c_i + d_i + timeout_ms`` or later, and costs it whole,
  and the local compute after it. Skipping a frame costs at least ``max_queue_ms`` of delay, a
  miss and a wrong answer.

Each is a lower bound for every schedule, clairvoyant ones included: labels, jitter, rates
and waits are known here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.topology import ACTIONS
from offload_env.bound.compute_before import least_and_most
from offload_env.bound.frame_outcomes import (
    CHOICE_OF,
    N_CHOICES,
    SENDING,
    SKIP,
    TIMED_OUT,
    Floats,
    Prices,
)
from offload_env.episode import Plans
from offload_env.server_load import CELL_MS
from offload_env.trace_pool import Lane
from offload_env.world import LOCAL, POOL, World

_LOCAL: Final = list(LOCAL)
_SENDING: Final = list(SENDING)


@dataclass(frozen=True, slots=True)
class Late:
    """Least costs of every choice of a frame that is not punctual, float64 (E, n, 26) each.

    Attributes:
        far, near: as in `offload_env.bound.on_time.Punctual`, wherever the choice leads.
        answer_ms: earliest end of an exchange, since the start of the episode; inf where the
            choice sends nothing or is impossible.
    """

    far: Floats
    near: Floats
    answer_ms: Floats


def late(
    world: World, plans: Plans, rows: NDArray[np.int64], captured_ms: Floats, prices: Prices
) -> Late:
    """The relaxed costs; arguments as `offload_env.bound.on_time.punctual`."""
    timing, cost, n = world.scenario.timing, world.cost, rows.shape[1]
    at = (plans.jitter_at[:, None] + np.arange(n)) & (POOL - 1)
    jitter, slow = world.device_jitter[at][..., None], world.server_jitter[at][..., None]
    least, most = least_and_most(world)
    compute = least * jitter
    captured = captured_ms[:-1, None]
    ready = captured + compute
    links = Links(
        world, plans, ready[..., _SENDING].shape, float((most - least).max() * jitter.max())
    )
    bits = 8.0 * world.sent_bytes[rows][..., _SENDING]
    server = (world.server_ms * slow)[..., _SENDING]
    handed = ready[..., _SENDING]
    answer = links.earliest_answer(handed, bits, server)
    exchange = links.shortest_exchange(handed, bits, server)
    possible = exchange <= timing.timeout_ms

    shape = (*rows.shape, N_CHOICES)
    far, near, answered = (np.full(shape, np.inf) for _ in range(3))
    hold_mw = cost.idle_mw + cost.radio.active_mw
    send_mj = cost.radio.tx_mw_per_mbps * 8e-6 * bits / 8.0
    own = prices.cost(compute, cost.busy_mw * compute / 1e3, timing.deadline_ms)
    far[..., CHOICE_OF[_LOCAL]] = own[..., _LOCAL]
    far[..., SKIP] = prices.delay * timing.max_queue_ms + prices.miss
    busy = compute[..., _SENDING]
    energy = (cost.busy_mw * busy + hold_mw * exchange) / 1e3 + send_mj
    own = prices.cost(answer - captured, energy, timing.deadline_ms)
    own = own + prices.tail * (captured_ms[1:, None] - answer)
    sends = CHOICE_OF[_SENDING]
    far[..., sends] = np.where(possible, own, np.inf)
    near[..., sends] = np.where(possible, own + prices.tail * handed, np.inf)
    answered[..., sends] = np.where(possible, answer, np.inf)

    given_up = handed + timing.timeout_ms
    fallback = (world.fallback_ms * jitter)[..., _SENDING]
    energy = (cost.busy_mw * (busy + fallback) + hold_mw * timing.timeout_ms) / 1e3 + send_mj
    own = prices.cost(given_up + fallback - captured, energy, timing.deadline_ms)
    own = own + prices.tail * (captured_ms[1:, None] - given_up)
    for k, action in enumerate(SENDING):
        choice = TIMED_OUT + ACTIONS[action].exit - 1
        far[..., choice] = np.minimum(far[..., choice], own[..., k])
        near[..., choice] = np.minimum(
            near[..., choice], own[..., k] + prices.tail * handed[..., k]
        )
        answered[..., choice] = np.minimum(answered[..., choice], given_up[..., k])
    near[..., : SKIP + 1] = far[..., : SKIP + 1]
    return Late(far, near, answered)


class Links:
    """The link and server that each (episode, frame, action) meets."""

    def __init__(self, world: World, plans: Plans, shape: tuple[int, ...], looks_ms: float) -> None:
        self.world = world
        self.shape = shape
        each = int(np.prod(shape[1:]))
        self.lane: Lane = world.pool.lanes(np.repeat(plans.trace, each))
        self.offset = np.repeat(plans.offset_ms, each)
        self.cell0 = np.repeat(plans.server_cell, each)
        timing = world.scenario.timing
        window_ms = looks_ms + timing.max_queue_ms + timing.timeout_ms
        self.reach = window_ms + timing.timeout_ms

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
