"""Predicted cost of what is left of a frame, at any of its decision points.

The same prices and device times as in `agents.baselines.prediction`, from a point within the frame
on, and in few operations: a planner asks at every decision point. The exchange is predicted
otherwise in two ways:

* The estimated round trip is the intercept of whole transfers: the network's fixed time is in it,
  and is not added again.
* Where the fitted line falls or is level, the observation shows a rate at the end of its range and
  an intercept that is too high for it (`testbed.policy.estimators.fit_link`). The mean of recent
  transfers, of whatever size, is nearer then, if it is less.

With a `UsualExchange` the prediction is an expectation: the older what was seen of link and server,
the more of it is what they usually take, time-outs among it. Without one the last estimates hold
for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.baselines.backlog_cost import BacklogCost
from agents.baselines.prediction import HOLD_OFF_S, Floats
from agents.baselines.seen import Seen, SeenReader
from agents.baselines.usual_exchange import UsualExchange
from offload_env.heat import slowed_mw
from offload_env.world import World
from testbed.policy.decision_points import START, decision_points
from testbed.policy.estimators import FORGET_TAU_S
from testbed.policy.observation_fields import MAX_RATE_MBPS

_CLIPPED_MBPS: Final = (1.0 - 1e-3) * MAX_RATE_MBPS
"""A rate from here on is the end of its range, up to the observation's rounding."""


class Exchange(NamedTuple):
    """What is expected of an exchange: of every pair, (A,) or (B, A); 0 for local ones.

    Attributes:
        waiting_ms: for the answer, until the time-out at most.
        fallback_ms: computing on the device after a time-out.
        missed: probability that the frame misses its deadline.
        forgotten: how much of what was seen of link and server is forgotten by now, from 0 to 1: a
            float, or (B, 1).
    """

    waiting_ms: Any
    fallback_ms: Any
    missed: Any
    forgotten: Any


def _chosen(connected: Any, on: Exchange, off: Exchange) -> Exchange:
    """Of every pair the exchange `on` where `connected`, else `off`."""
    waiting, fallback, missed = (
        np.where(connected, a, b) for a, b in zip(on[:3], off[:3], strict=True)
    )
    return Exchange(waiting, fallback, missed, on.forgotten)


def _mean(cases: Floats | NDArray[np.bool_]) -> Floats:
    """Over equally likely cases, (..., K, A); `ndarray.mean` takes three times as long."""
    mean: Floats = np.add.reduce(cases, axis=-2, dtype=np.float64) / cases.shape[-2]
    return mean


class CostAhead:
    """See the module's text; A is the number of the network's actions.

    Args:
        world: its cost model and prices are used, never its traces or labels' future.
        backlog: adds what each ending costs the next frames; None looks at this frame alone.
        usual: what an exchange takes when nothing is known; None believes the last estimates.

    Attributes:
        read: reads staged observations.
        beside: float64 (E - 1,), cost of evaluating each early exit beside the blocks before it.
    """

    def __init__(
        self,
        world: World,
        backlog: BacklogCost | None = None,
        usual: UsualExchange | None = None,
    ) -> None:
        self._backlog, self._usual = backlog, usual
        topology, cost, timing = world.topology, world.cost, world.scenario.timing
        self._points = points = decision_points(topology)
        self.read = SeenReader(topology)
        self._sends = (~topology.is_local).astype(np.float64)
        sent_bytes = world.sent_bytes.mean(0)
        # Frames differ in size; before one is encoded only the mean is known.
        self._ms_at_1_mbps = 8.0 * sent_bytes / 1e3
        self._server_ms, self._fallback_ms = world.server_ms, world.fallback_ms * self._sends
        self._timeout_ms, self._deadline_ms = timing.timeout_ms, timing.deadline_ms
        self._period_ms, self._miss = timing.period_ms, world.scenario.price.miss
        self._delay_price = world.delay_price
        radio, mj = cost.radio, world.energy_price
        self._per_busy_ms = world.delay_price + mj * cost.busy_mw / 1e3
        self._per_wait_ms = world.delay_price + mj * (cost.idle_mw + radio.active_mw) / 1e3
        self._sending = mj * radio.mj_per_byte * sent_bytes
        self._per_tail_ms, self._tail_ms = mj * radio.tail_mw / 1e3, radio.tail_ms
        # To a connected modem and, where that takes time, to one that must connect first.
        self._promotions_ms = (0.0, radio.promotion_ms) if radio.promotion_ms else (0.0,)
        # By decision point, milliseconds from there to the end of each pair's work on the device.
        self._ahead_ms = [
            np.maximum(world.device_ms - self._reached_ms(world, p), 0.0)
            for p in range(points.n_points)
        ]
        if usual is not None:
            self._usual_served = usual.wait_ms[:, None] + self._server_ms
        self._heats, self._full_local_ms = world.scenario.heat.is_on, world.delay_ref_ms
        self._idle_mw, self._busy_mw, self._energy_price = cost.idle_mw, cost.busy_mw, mj
        early = list(topology.exits[:-1])
        beside_ms = world.device_ms[list(topology.local[:-1])] - world.standing_ms[early]
        self.beside: Floats = self._per_busy_ms * np.maximum(beside_ms, 0.0)

    def _reached_ms(self, world: World, point: int) -> float:
        """Device time that has brought the frame to a decision point, exits left out."""
        timed_out = self._points.has_timed_out(point)
        reached = world.resumed_ms if timed_out else world.standing_ms
        return float(reached[self._points.block[point]])

    def of(
        self, seen: Seen, point: int, freshness_bonus: Any, error_price: Any = 0.0
    ) -> tuple[Floats, Any]:
        """Predicted costs at a decision point.

        Args:
            seen: one observation, or B.
            point: of all of them.
            freshness_bonus: subtracted from sending, in proportion to what is forgotten by now, a
                float or (B, 1).
            error_price: of a wrong answer to the next frames, likewise.

        Returns:
            (pairs, now): the cost of every pair from here, (A,) or (B, A), and that of answering
            now, a float or (B, 1).
        """
        begins = point == START
        spent = 0.0 * seen.queue_ms if begins else seen.stage_spent_ms
        slowed, per_busy_ms = self._slowed(seen)
        standing = self._ahead_ms[point] * slowed + spent
        exchanges = [
            self._exchange(seen, standing, slowed, promotion) for promotion in self._promotions_ms
        ]
        exchange = exchanges[0]
        if len(exchanges) > 1:
            exchange = _chosen(standing <= seen.tail_left_ms, *exchanges)
        waiting, fallback, missed, forgotten = exchange
        busy = standing + fallback
        delay = busy + waiting + seen.queue_ms
        queued = self._delay_price * seen.queue_ms
        bonus = freshness_bonus * forgotten
        pairs = per_busy_ms * busy + self._per_wait_ms * waiting + self._sending
        pairs += queued + self._miss * missed - bonus * self._sends
        now = per_busy_ms * spent + queued
        now = now + self._miss * (spent + seen.queue_ms > self._deadline_ms)
        if self._per_tail_ms:
            tail, at_rest = self._tails_ms(seen, busy, fallback, waiting, spent)
            pairs += self._per_tail_ms * tail
            now = now + self._per_tail_ms * at_rest
        if self._backlog is not None:
            free = np.reshape(spent + seen.queue_ms, (*delay.shape[:-1], 1))
            later, at_once = self._next_frames(
                self._backlog, seen, exchanges, error_price, delay, free
            )
            pairs += later
            now = now + at_once
        return pairs, now

    def _slowed(self, seen: Seen) -> tuple[Any, Any]:
        """Factor on the device's times while it is hot, and the cost of a busy millisecond.

        The observation's time of full local processing says how hot it is.
        """
        if not self._heats:
            return 1.0, self._per_busy_ms
        slowed = seen.full_local_ms / self._full_local_ms
        busy_mw = slowed_mw(1.0 / slowed, self._busy_mw, self._idle_mw)
        return slowed, self._delay_price + self._energy_price * busy_mw / 1e3

    def _next_frames(
        self,
        backlog: BacklogCost,
        seen: Seen,
        exchanges: Sequence[Exchange],
        error_price: Any,
        delay: Floats,
        free: Floats,
    ) -> tuple[Floats, Any]:
        """What the next frames cost after every pair, and after answering now.

        A modem that takes time to connect is either connected for all of them, and pays for its
        tail, or for none.

        Args:
            backlog: plays them.
            seen: one observation, or B.
            exchanges: of this frame, as in `of`; the next ones go like it.
            error_price: as in `of`.
            delay: of this frame by every pair, (A,) or (B, A).
            free: delay of this frame if it is answered now, (1,) or (B, 1).
        """
        delay, free = delay - self._period_ms, free - self._period_ms
        if len(exchanges) == 1:
            value = self._to_go(backlog, seen, exchanges[0], error_price)
            later, at_once = backlog.read(value, delay), backlog.read(value, free)
        else:
            on = self._to_go(backlog, seen, exchanges[0], error_price, self._per_tail_ms)
            off = self._to_go(backlog, seen, exchanges[1], error_price)
            lasts = seen.tail_left_ms > self._period_ms
            connected = (self._sends > 0) | lasts
            later = np.where(connected, backlog.read(on, delay), backlog.read(off, delay))
            at_once = np.where(lasts, backlog.read(on, free), backlog.read(off, free))
        return later, at_once[0] if delay.ndim == 1 else at_once

    def _to_go(
        self,
        backlog: BacklogCost,
        seen: Seen,
        exchange: Exchange,
        error_price: Any,
        per_tail_ms: float = 0.0,
    ) -> Floats:
        """`BacklogCost.to_go` of frames whose exchanges go like this one."""
        slowed, per_busy_ms = self._slowed(seen)
        waiting = exchange.waiting_ms
        work = self._ahead_ms[START] * slowed + exchange.fallback_ms
        cost = per_busy_ms * work + self._per_wait_ms * waiting + self._sending
        if per_tail_ms:
            cost = cost + per_tail_ms * np.maximum(self._period_ms - waiting, 0.0)
        return backlog.to_go(work + waiting, cost, error_price)

    def _exchange(self, seen: Seen, standing: Floats, slowed: Any, promotion_ms: float) -> Exchange:
        """What is expected of every pair's exchange.

        Args:
            seen: one observation, or B.
            standing: time of the frame's work on the device, without a fallback, (A,) or (B, A).
            slowed: factor on the device's times, a float or (B, 1).
            promotion_ms: time to connect.
        """
        usual, link, wait = self._usual, self._link_ms(seen), self._wait_ms(seen)
        known = link + wait + self._server_ms
        # A promotion beyond the time-out leaves nothing to expect.
        if usual is None or promotion_ms >= self._timeout_ms:
            waiting, late = self._lasts(known + promotion_ms)
            fallback = late * self._fallback_ms * slowed
            missed = standing + fallback + waiting + seen.queue_ms > self._deadline_ms
            age_s = seen.transfer_age_s
            return Exchange(waiting, fallback, missed, age_s / (age_s + FORGET_TAU_S))
        news = np.exp(-seen.transfer_age_s / usual.link_memory_s)
        load = np.exp(-seen.server_age_s / usual.wait_memory_s)
        dead = np.isinf(wait)  # which is news of both
        news, load = np.where(dead, 1.0, news), np.where(dead, 1.0, load)
        served = wait + self._server_ms
        cases = (
            (news * load, known[..., None, :]),
            (news * (1.0 - load), link[..., None, :] + self._usual_served),
            ((1.0 - news) * load, usual.link_ms + served[..., None, :]),
            ((1.0 - news) * (1.0 - load), usual.exchange_ms),
        )
        fallback_ms = self._fallback_ms * slowed
        free = (standing + seen.queue_ms)[..., None, :]
        waits, fallbacks, missed = np.zeros((3, *standing.shape))
        for share, exchange in cases:
            waiting, late = self._lasts(exchange + promotion_ms)
            ends = free + waiting + late * fallback_ms[..., None, :]
            waits += share * _mean(waiting)
            fallbacks += share * (_mean(late) * fallback_ms)
            missed += share * _mean(ends > self._deadline_ms)
        return Exchange(waits, fallbacks, missed, 1.0 - news * load)

    def _lasts(self, exchange: Floats) -> tuple[Floats, Any]:
        """Wait for the answer of every pair, and whether none comes in time."""
        return np.minimum(exchange, self._timeout_ms) * self._sends, exchange > self._timeout_ms

    def _link_ms(self, seen: Seen) -> Floats:
        """Sending and round trip of every pair by the last estimates, as if all sent."""
        level: Any
        if isinstance(seen.rtt_ms, float):
            level = seen.transfer_mean_ms if seen.uplink_mbps > _CLIPPED_MBPS else np.inf
        else:
            level = np.where(seen.uplink_mbps > _CLIPPED_MBPS, seen.transfer_mean_ms, np.inf)
        line = self._ms_at_1_mbps / seen.uplink_mbps + seen.rtt_ms
        sending: Floats = np.minimum(line, level)
        return sending

    def _wait_ms(self, seen: Seen) -> Any:
        """Wait at the server by its last report, a float or (B, 1).

        Infinite for `HOLD_OFF_S` after an exchange that failed: the link counts as dead.
        """
        if isinstance(seen.rtt_ms, float):
            dead = seen.failures > 0.5 and seen.failure_age_s < HOLD_OFF_S
            return np.inf if dead else seen.server_wait_ms
        is_dead = (seen.failures > 0.5) & (seen.failure_age_s < HOLD_OFF_S)
        return np.where(is_dead, np.inf, seen.server_wait_ms)

    def _tails_ms(
        self, seen: Seen, busy: Floats, fallback: Floats, waiting: Floats, spent: Any
    ) -> tuple[Floats, Any]:
        """The modem's tail until the next frame: with every pair, and when answering now."""
        left = seen.tail_left_ms
        free_ms = self._period_ms - seen.queue_ms
        whole = np.maximum(free_ms, busy + waiting)
        sent = busy - fallback
        after = np.minimum(whole - sent - waiting, self._tail_ms)
        with_exchange = np.minimum(left, sent) + after
        tail = np.where(self._sends > 0, with_exchange, np.minimum(left, whole))
        return tail, np.minimum(left, np.maximum(free_ms, spent))
