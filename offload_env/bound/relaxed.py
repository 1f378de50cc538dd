"""A lower bound on the cost of a frame that starts late, or may find the radio busy.

Notation: frame i is captured at c_i and computes for d on the device before it sends; an exit
that is evaluated on the way may make d longer, never shorter than d_i of the action alone. A frame
that starts late, or finds the radio busy, has its payload reach the radio at some
s >= c_i + d_i; as a frame that waits longer than ``max_queue_ms`` is skipped and an exchange
longer than ``timeout_ms`` is abandoned, an answered exchange has ``s <= c_i + d_i + evaluation +
max_queue_ms + timeout_ms`` =: the window, where ``evaluation`` is the longest time that exits add.
Over that window:

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
* An exchange that times out ends at ``c_i + d_i + timeout_ms`` or later. It costs the whole
  time-out and the local compute after it. Skipping a frame costs at least ``max_queue_ms`` of
  delay, a miss and a wrong answer.

Each is a lower bound for every schedule, clairvoyant ones included: labels, jitter, rates
and waits are known here.

**Radio busy.** After an early time-out a device may answer locally and be free for the next capture
while the payload that it abandoned has not left. The time at which the next payload is handed over
is exact for its way through the frame. The payload leaves when the radio is free, which is no
earlier than with a free radio. So its answer is no earlier than the lower envelope of the answers
from there on, which bounds both its delay and its exchange from below. If it delays the next frame,
its exchange and the local compute after it end after the next capture.

**Many exits.** The sets of exits that may be evaluated double with every exit. Beyond `MOST_WAYS`
of them, a frame on time is bounded from below for all sets at once: its payload is handed over no
earlier than in the least time of its action. So its answer is no earlier than the same envelope,
and its exchange no shorter than that of a delayed frame. Until the answer the device computes or
waits, which takes the lesser of the two powers at least.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from offload_env.bound.frame_outcomes import (
    Costs,
    Floats,
    Ints,
    Prices,
    compute_ms,
    frame_outcomes_of,
    least_and_most,
)
from offload_env.episode import Plans
from offload_env.exchange import server_wait_ms
from offload_env.server_load import CELL_MS
from offload_env.world import POOL, World
from testbed.link.transfer import SLACK_BITS
from testbed.policy.estimators import EARLY_TIMEOUT_EXCHANGES, PRIOR_RTT_MS


def delayed_costs(
    world: World, plans: Plans, rows: Ints, captured_ms: Floats, prices: Prices
) -> tuple[Costs, Floats]:
    """Lowest costs of frames that start late; arguments as `offload_env.bound.on_time`.

    Returns:
        The costs, (1, E, n, outcomes), whatever the state of the next frame; and the earliest end
        of an exchange since the start of the episode, float64 (E, n), 0 if nothing can be sent.
    """
    outcomes = frame_outcomes_of(world.topology)
    local, sending = outcomes.local, outcomes.sending
    timing, cost, n = world.scenario.timing, world.cost, rows.shape[1]
    at = (plans.jitter_at[:, None] + np.arange(n)) & (POOL - 1)
    jitter, slow = world.device_jitter[at][..., None], world.server_jitter[at][..., None]
    compute = least_and_most(world)[0] * jitter
    captured = captured_ms[:-1, None]
    costs = Costs.none(1, *rows.shape, outcomes.n)
    own = prices.cost(compute, cost.busy_mw * compute / 1e3, timing.deadline_ms)
    skipped = prices.delay * timing.max_queue_ms + prices.miss
    for each in costs:
        each[0][..., outcomes.outcome_of[local]] = own[..., local]
        each[0][..., outcomes.skip] = skipped
    if not len(sending):
        return costs, np.zeros(rows.shape)

    busy, fallback = compute[..., sending], (world.fallback_ms * jitter)[..., sending]
    handed = captured + busy
    size = world.sent_bytes[rows][..., sending]
    serve = (world.server_ms * slow)[..., sending]
    links = Links(world, plans, handed.shape, _added_ms(world, jitter))
    answer = links.earliest_answer(handed, 8.0 * size, serve)
    exchange = links.shortest_exchange(handed, 8.0 * size, serve)
    possible = exchange <= timing.timeout_ms
    abandoned = handed + timing.timeout_ms
    send_mj = cost.radio.mj_per_byte * size
    earliest = np.full(rows.shape, np.inf)
    for those, end, after, lasts, where in (
        (outcomes.outcome_of, answer, 0.0, exchange, possible),
        (outcomes.time_out_of, abandoned, fallback, timing.timeout_ms, np.ones_like(possible)),
    ):
        energy = (cost.busy_mw * (busy + after) + cost.exchange_mw * lasts) / 1e3 + send_mj
        own = prices.cost(end + after - captured, energy, timing.deadline_ms)
        own = own + prices.tail * (captured_ms[1:, None] - end)
        for k, outcome in enumerate(those[sending]):
            costs.keep(0, outcome, own[..., k], prices.tail * handed[..., k], where[..., k])
        earliest = np.minimum(earliest, np.where(where, end, np.inf).min(2))
    return costs, earliest


def may_be_busy(world: World, plans: Plans, captured_ms: Floats) -> NDArray[np.bool_]:
    """Whether abandoned payloads can still occupy the radio at a capture, bool (E, n).

    A modem that must connect first keeps its payload as a busy radio does: with a promotion every
    frame counts. Otherwise:

    Say the radio is busy at the capture c_i, without a pause since frame j < i was sent at s. From
    s until c_i the link then carries less than i - j of the largest payloads. After s the device
    waited for the early time-out at least before frame j + 1 began, no later than ``max_queue_ms``
    after its capture (at c_i, if j + 1 = i). An early time-out is at least two shortest round trips
    of the trace (`testbed.policy.estimators.early_timeout_ms`: the mean starts at a prior and
    learns from transfers).
    """
    pool, timing, n = world.pool, world.scenario.timing, len(captured_ms) - 1
    if world.cost.radio.promotion_ms:
        return np.ones((len(plans.trace), n), bool)
    most_bits = 8.0 * float(world.sent_bytes.max())
    shortest = np.minimum(2.0 * pool.least_one_way_ms[plans.trace], PRIOR_RTT_MS)
    waited = np.minimum(EARLY_TIMEOUT_EXCHANGES * shortest, timing.timeout_ms)[:, None]
    lane = pool.lanes(np.repeat(plans.trace, n))

    def carried(until_ms: Floats) -> Floats:
        """Bits until times of the drive, (E, n); nothing before it begins."""
        at = (plans.offset_ms[:, None] + np.maximum(until_ms, 0.0)).ravel()
        return pool.carried_bits(lane, at).reshape(-1, n)

    captured = captured_ms[:-1]
    before = carried(np.broadcast_to(captured, (len(waited), n)))
    # For these most recent frames, the capture at c_i limits when they were sent, not the queue.
    near = max(1, math.ceil(timing.max_queue_ms / timing.period_ms))
    busy = before - carried(captured - waited) < near * most_bits + SLACK_BITS
    # For all other frames at once: carried(c_i) - i payloads < carried(latest s) - j payloads.
    frames = most_bits * np.arange(n)
    sent = carried(captured_ms[1:] + timing.max_queue_ms - waited) - frames
    most = np.maximum.accumulate(sent, axis=1)[:, : max(0, n - near - 1)]
    busy[:, near + 1 :] |= (before - frames)[:, near + 1 :] < most + SLACK_BITS
    busy[:, 0] = False
    return busy


def inexact_costs(
    world: World,
    plans: Plans,
    rows: Ints,
    captured_ms: Floats,
    prices: Prices,
    where: NDArray[np.bool_],
) -> Costs:
    """Lower bounds of the K frames in `where`, bool (E, n), that start on time but whose radio may
    be busy, or whose ways are too many; other arguments as above.

    Returns:
        (2, K, outcomes); inf for outcomes that send nothing.
    """
    outcomes = frame_outcomes_of(world.topology)
    timing, cost = world.scenario.timing, world.cost
    episode, frame = np.nonzero(where)
    costs = Costs.none(2, len(frame), outcomes.n)
    if not len(frame):
        return costs
    these = Plans(*(getattr(plans, name)[episode] for name in Plans.__slots__))
    at = (these.jitter_at + frame) & (POOL - 1)
    jitter, slow = world.device_jitter[at], world.server_jitter[at][:, None]
    captured, following = captured_ms[frame][:, None], captured_ms[frame + 1][:, None]
    least_mw = min(cost.busy_mw, cost.exchange_mw)
    for way in outcomes.ways:
        actions = outcomes.open_actions(way)
        sends = ~outcomes.topology.is_local[actions]
        if not sends.any():
            continue
        compute, actions = compute_ms(world, jitter, way)[:, sends], actions[sends]
        handed = captured + compute
        size = world.sent_bytes[rows[where]][:, actions]
        serve = world.server_ms[actions] * slow
        links = Links(world, these, handed.shape, _added_ms(world, jitter) if way is None else 0.0)
        answer = links.earliest_answer(handed, 8.0 * size, serve)
        if way is None:  # handed over then or later
            exchange, waiting_mw = links.shortest_exchange(handed, 8.0 * size, serve), least_mw
        else:
            exchange, waiting_mw = answer - handed, cost.exchange_mw
        in_time = exchange <= timing.timeout_ms
        fallback = world.fallback_ms[actions] * jitter[:, None]
        for those, end, after, possible in (
            (outcomes.outcome_of, answer, 0.0, in_time),
            (outcomes.time_out_of, handed + timing.timeout_ms, fallback, np.ones_like(in_time)),
        ):
            busy_mj = cost.busy_mw * (compute + after) / 1e3
            sent_mj = waiting_mw * (end - handed) / 1e3 + cost.radio.mj_per_byte * size
            free = end + after
            # Delayed for the next frame: busy until its capture at least.
            until = np.maximum(free, np.nextafter(following, np.inf))
            for to, there, ends in ((0, free, end), (1, until, end + (until - free))):
                energy = busy_mj + sent_mj + least_mw * (there - free) / 1e3
                own = prices.cost(there - captured, energy, timing.deadline_ms)
                own = own + prices.tail * (following - ends)
                for k, outcome in enumerate(those[actions]):
                    tail = prices.tail * handed[:, k]
                    costs.keep(to, outcome, own[:, k], tail, possible[:, k])
    return costs


def _added_ms(world: World, jitter: Floats) -> float:
    """The most that evaluated exits, and a hot processor, add to an action's time before the
    hand-over."""
    least, most = least_and_most(world)
    return float((world.scenario.heat.slowest * most - least).max() * jitter.max())


class Links:
    """The link and server that each (episode, frame, action) meets.

    Args:
        world, plans: as above.
        shape: (episodes, ...), of all times given.
        more_ms: the most that evaluated exits add to the compute before the hand-over.
    """

    def __init__(self, world: World, plans: Plans, shape: tuple[int, ...], more_ms: float) -> None:
        self.world = world
        self.shape = shape
        each = int(np.prod(shape[1:]))
        self.lane = world.pool.lanes(np.repeat(plans.trace, each))
        self.offset = np.repeat(plans.offset_ms, each)
        self.cell0 = np.repeat(plans.server_cell, each)
        timing = world.scenario.timing
        window_ms = more_ms + timing.max_queue_ms + timing.timeout_ms
        self.reach = window_ms + timing.timeout_ms

    def earliest_answer(self, ready: Floats, bits: Floats, server_ms: Floats) -> Floats:
        """Least answer time over all moments at which the payload may reach the radio."""
        net = self.world.cost.net_ms
        left, up = self.world.pool.send(self.lane, ready.ravel() + self.offset, bits.ravel())
        arrive = self._envelope(left, left + up) - self.offset
        wait = server_wait_ms(self.world.server_work_ms, self.cell0, arrive)
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
