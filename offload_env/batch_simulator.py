"""Many episodes at once: `offload_env.simulator` with arrays instead of floats.

Every line follows its scalar twin with the same floating-point operations in the same
order, so that lane k of a batch and a `Simulator` on the same plan agree exactly in every
time, energy and answer; observations agree to float32 rounding of the logarithm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cnn.frame_table import Correct
from offload_env.episode import Keys
from offload_env.exchange import BatchExchanges, Exchange
from offload_env.heat import slowed_mw
from offload_env.lanes import BatchObserver, Indices, Lanes, learn_answer, learn_link
from offload_env.outcome import FALLBACK, OK, SKIPPED, BatchOutcome
from offload_env.world import POOL, World
from testbed.policy.decision_points import DecisionSpace, decision_points
from testbed.policy.estimators import early_timeout_ms

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

__all__ = ["FALLBACK", "OK", "SKIPPED", "BatchOutcome", "BatchSimulator"]


class BatchSimulator:
    """Simulates B episodes of one world in step.

    Args:
        world: shared and never changed.
        n: number of lanes.
    """

    def __init__(self, world: World, n: int) -> None:
        self.world, self.n = world, n
        cost, table, topology = world.cost, world.table, world.topology
        self._points, self._n_actions = decision_points(topology), topology.n_actions
        # By action: exit, split, place of the exit, whether it sends, its exit's local action.
        self._exit, self._split = topology.exit_of, topology.split_of
        self._place, self._offloads = topology.exit_place[self._exit], ~topology.is_local
        self._fallback = topology.local_of[self._exit]
        radio = cost.radio
        self._has_tail, self._promotes = radio.tail_ms > 0, radio.promotion_ms > 0
        self._heat = world.scenario.heat if world.scenario.heat.is_on else None
        self._exchanges = BatchExchanges(world)
        self._mj_per_byte = radio.mj_per_byte
        sizes = world.sent_bytes
        self._sent_bytes = sizes.ravel()
        # Without a per-frame codec every frame sends the same bytes: one figure an action.
        self._sizes = sizes[0].copy() if bool((sizes == sizes[0]).all()) else None
        # Prediction and correctness share one element: one gather instead of two. Qualities do not
        # fit in.
        answers = table.prediction.astype(np.int32) * 2
        self._quality: Floats | None = None
        if table.quality is None:
            answers += world.correct.astype(np.int32)
        else:
            self._quality = world.correct.astype(np.float64).ravel()
        self._answers = answers.ravel()
        self._confidence = table.confidence.ravel()
        self._observer = BatchObserver(world, n)
        self._lane_numbers = np.arange(n)

    def reset(self, keys: Keys, lanes: Indices | None = None) -> None:
        """Start the episodes of `keys`, uint64 (B,), in some lanes only or in all."""
        if lanes is None:
            self.lanes = self._begin(keys)
        else:
            self.lanes.put(lanes, self._begin(keys))

    @property
    def started(self) -> bool:
        """Whether all lanes have begun an episode."""
        return hasattr(self, "lanes")

    @property
    def frame(self) -> NDArray[np.int64]:
        """Number of the current frame, int64 (B,)."""
        return self.lanes.frame

    @property
    def row(self) -> NDArray[np.int64]:
        """Table row of the current frame, int64 (B,)."""
        return self.lanes.row

    def _begin(self, keys: Keys) -> Lanes:
        plans = self.world.plans(keys)
        s = Lanes.begin(plans, self.world.pool.lanes(plans.trace), self.world.topology.n_exits)
        s.floor[:] = self.world.settings.accuracy_floor
        s.delay_price[:], s.energy_price[:] = self.world.delay_price, self.world.energy_price
        s.row = self.world.track_batch(keys, np.zeros(len(keys), np.int64))
        if self._heat is not None:
            s.celsius = self.world.beginning_c_batch(keys)
        self._draw_jitter(s)
        return s

    def _draw_jitter(self, s: Lanes) -> None:
        at = (s.jitter_at + s.frame) & (POOL - 1)
        s.jitter = self.world.device_jitter.take(at)
        s.server_factor = self.world.server_jitter.take(at)
        if self._heat is not None:
            s.jitter = s.jitter / self._heat.clock(s.celsius)

    @property
    def point(self) -> NDArray[np.int64]:
        """Decision point of each lane, int64 (B,), see `testbed.policy.decision_points`."""
        s = self.lanes
        points: NDArray[np.int64] = self._points.point[s.timed_out, s.position, s.evaluated]
        return points

    def observe(self, space: DecisionSpace | None = None) -> NDArray[np.float32]:
        """Observations now, float32 (B, ``space.obs_dim``), a new array.

        Args:
            space: the frame or the staged one of the world's network; None is the frame space.
        """
        return self._observer.observe(self.lanes, space)

    def settle(self, actions: NDArray[np.int64]) -> BatchOutcome:
        """Decide canonical `actions`, int (B,), for the current frame of every lane."""
        s = self.lanes
        actions = np.asarray(actions, np.int64)
        skip = s.queue > self.world.scenario.timing.max_queue_ms
        compute = self.world.device_ms.take(actions) * s.jitter
        return self._finish(s, actions, compute, skip)

    def advance(
        self, chosen: NDArray[np.int64], lanes: Indices | None = None
    ) -> tuple[Indices, BatchOutcome]:
        """Carry out staged actions that are legal at `point`, in some lanes or in all.

        Args:
            chosen: int64 (K,).
            lanes: intp (K,), ascending; the others wait.

        Returns:
            (ended, outcome): intp (M,), the lanes whose frame ended, and what it cost there.
            A frame that has waited too long is skipped, whatever the decision.
        """
        lanes = self._lane_numbers if lanes is None else lanes
        skip = self.lanes.queue[lanes] > self.world.scenario.timing.max_queue_ms
        points = self._points
        pair, answer = points.canonical[chosen], chosen == points.answer
        evaluates = ~self._offloads[pair] & ~answer & ~skip
        if evaluates.any():
            self._evaluate(lanes[evaluates], pair[evaluates])
        answer |= evaluates & (pair == self.world.topology.main)
        ends = answer | ~evaluates
        ending = lanes[ends]
        # A skipped frame spends nothing, whatever its action.
        ended, outcome = self._answer_or_send(
            ending, pair[ends], (answer & ~skip)[ends], points.times_out_early[chosen[ends]]
        )
        return ending[ended], outcome.part(ended)

    def _evaluate(self, lanes: Indices, local: NDArray[np.int64]) -> None:
        """In `lanes`, run on to the exits of the actions `local` and learn their answers."""
        s, w, exits = self.lanes, self.world, self._exit[local]
        timed_out, block = s.timed_out[lanes] > 0, s.position[lanes]
        extra = w.device_ms[local] - np.where(timed_out, w.resumed_ms[block], w.standing_ms[block])
        spent = np.maximum(extra, 0.0) * s.jitter[lanes]
        s.compute[lanes] = s.compute[lanes] + np.where(timed_out, 0.0, spent)
        s.rest[lanes] = s.rest[lanes] + np.where(timed_out, spent, 0.0)
        at = s.row[lanes] * self._n_actions + local
        seen = self._confidence.take(at).astype(np.float64)
        prediction = (self._answers.take(at) >> 1).astype(np.int64)
        before, last = s.stage_prediction[lanes], s.last_prediction[lanes]
        s.stage_frame[lanes] = np.where(before < 0, 0.0, np.where(before == prediction, 1.0, -1.0))
        s.stage_track[lanes] = np.where(last < 0, 0.0, np.where(last == prediction, 1.0, -1.0))
        s.stage_confidence[lanes] = seen
        s.stage_prediction[lanes] = prediction
        s.position[lanes] = exits
        s.evaluated[lanes] = exits
        s.confidences[self._place[local], lanes] = seen

    def _answer_or_send(
        self, lanes: Indices, actions: NDArray[np.int64], answer: Bools, early: Bools
    ) -> tuple[Bools, BatchOutcome]:
        """In `lanes`, answer with the exit evaluated last, or send.

        A frame whose answer does not come in time stays open: the device may evaluate exits from
        where it sent.

        Args:
            lanes: intp (K,), ascending.
            actions: int64 (K,), canonical actions; where `answer`, ignored.
            answer: bool (K,), answer with the last exit; elsewhere send.
            early: bool (K,), where it sends, time out early.

        Returns:
            (ended, outcome): bool (K,), lanes whose frame ended, and what it cost; in other lanes
            the outcome's figures mean nothing.
        """
        whole = len(lanes) == self.n
        s, w = self.lanes if whole else self.lanes.take(lanes), self.world
        actions = np.where(answer, w.topology.local_of[s.evaluated], actions)
        extra = np.maximum(w.device_ms[actions] - w.standing_ms[s.position], 0.0)
        compute = np.where(answer, s.compute, s.compute + extra * s.jitter)
        skip = s.queue > w.scenario.timing.max_queue_ms
        exchanges = self._exchange(s, actions, s.start + compute)
        timeout_ms = w.scenario.timing.timeout_ms
        early_ms = early_timeout_ms(s.mean_ms, s.spread_ms, s.server_wait_ms)
        timeout = np.where(early, np.minimum(early_ms, timeout_ms), timeout_ms)
        times_out = self._offloads.take(actions) & ~skip & (exchanges.total_ms > timeout)
        late = np.flatnonzero(times_out)
        kept = s.take(late)
        waiting = Exchange(*(part[late] for part in exchanges))
        self._time_out(kept, actions[late], compute[late], timeout[late], waiting)
        outcome = self._finish(s, actions, compute, skip, exchanges)
        if not whole:
            self.lanes.put(lanes, s)
        self.lanes.put(lanes[late], kept)
        return ~times_out, outcome

    def _time_out(
        self,
        s: Lanes,
        action: NDArray[np.int64],
        compute: Floats,
        timeout: Floats,
        exchanges: Exchange[Floats],
    ) -> None:
        """Send, and wait for `timeout` without an answer; the frame stays open."""
        s.radio_free = exchanges.left_ms
        s.compute, s.waited = compute, timeout
        s.wasted_mj = self._mj_per_byte * exchanges.size
        s.sent_action, s.position = action, self._split.take(action)
        s.timed_out[:] = 1
        s.failure_s = ((s.start + compute) + timeout) * 1e-3
        s.failures = s.failures + 1.0

    def _exchange(self, s: Lanes, action: NDArray[np.int64], sent: Floats) -> Exchange[Floats]:
        """The exchange that follows if the radio gets the payloads of `action` at `sent`."""
        if self._sizes is not None:
            size = self._sizes.take(action)
        else:
            size = self._sent_bytes.take(s.row * self._n_actions + action)
        server_ms = self.world.server_ms.take(action) * s.server_factor
        ready = s.radio_free
        if self._promotes:
            radio = self.world.cost.radio
            connected = sent <= s.last_end + radio.tail_ms
            ready = np.where(connected, ready, np.maximum(ready, sent + radio.promotion_ms))
        return self._exchanges.of(s.lane, s.offset, s.cell0, sent, ready, size, server_ms)

    def _finish(
        self,
        s: Lanes,
        action: NDArray[np.int64],
        compute: Floats,
        skip: Bools,
        exchanges: Exchange[Floats] | None = None,
    ) -> BatchOutcome:
        w, cost, timing = self.world, self.world.cost, self.world.scenario.timing
        off = self._offloads.take(action)
        any_skip = bool(skip.any())
        if any_skip:
            off &= ~skip
            compute = np.where(skip, 0.0, compute)
        start = s.start
        sent = start + compute
        size, left, transfer, wait, exchange = exchanges or self._exchange(s, action, sent)
        np.copyto(s.radio_free, left, where=off)
        fell = exchange > timing.timeout_ms
        answered = off & ~fell
        fell &= off
        exchange = np.minimum(exchange, timing.timeout_ms) * off
        end = sent + exchange
        if fell.any():
            fallback = w.fallback_ms.take(action) * s.jitter * fell
            free = end + fallback
            used = np.where(fell, self._fallback.take(action), action)
        else:
            fallback = np.zeros(len(sent))
            free, used = end, action
        timed_out = s.timed_out > 0
        if timed_out.any():  # on an exchange earlier in this frame; now it answers
            exchange = np.where(timed_out, s.waited, exchange)
            end = sent + exchange
            fallback = np.where(timed_out, s.rest, fallback)
            free = end + fallback
            action = np.where(timed_out, s.sent_action, action)
        next_frame = s.frame + 1
        next_captured: Floats = np.multiply(next_frame, timing.period_ms, dtype=np.float64)
        next_start: Floats = np.maximum(free, next_captured)
        tail = self._tail(s, off | timed_out, sent, end, next_start)
        learn_link(s, size, answered, fell, end, transfer, wait)
        at = s.row * self._n_actions + used
        answer = self._answers.take(at)
        exit, place = self._exit.take(used), self._place.take(used)
        seen = self._confidence.take(at)
        learn_answer(s, exit, place, answer, seen, skip, any_skip, self._lane_numbers)
        correct: Correct
        correct = (answer & 1).astype(bool) if self._quality is None else self._quality.take(at)
        if any_skip:
            correct = correct * ~skip

        delay = free - s.captured
        busy_ms = compute + fallback
        if self._heat is None:
            compute_mj = cost.busy_mw * busy_ms / 1e3
        else:
            busy_mw = slowed_mw(self._heat.clock(s.celsius), cost.busy_mw, cost.idle_mw)
            compute_mj = busy_mw * busy_ms / 1e3
            idle_ms = (next_start - start) - busy_ms
            s.celsius = self._heat.later_c(s.celsius, busy_ms, busy_mw, idle_ms, cost.idle_mw)
        radio_mj = cost.radio.active_mw * exchange / 1e3 + self._mj_per_byte * size * off
        radio_mj += s.wasted_mj
        if self._has_tail:
            radio_mj += cost.radio.tail_mw * tail / 1e3
        idle_mj = cost.idle_mw * exchange / 1e3
        energy = compute_mj + radio_mj + idle_mj
        miss = (delay > timing.deadline_ms) | skip
        price = w.scenario.price
        total = s.delay_price * delay + s.energy_price * energy + price.miss * miss
        if price.energy_budget_mj:
            s.spent_mj += energy
            total += price.over_budget * (s.spent_mj > price.energy_budget_mj)
        status = (fell | timed_out) * np.int8(FALLBACK) + skip * np.int8(SKIPPED)
        outcome = BatchOutcome(
            s.row,
            action,
            used,
            status,
            s.queue,
            compute,
            exchange,
            transfer * answered,
            wait * answered,
            fallback,
            delay,
            compute_mj,
            radio_mj,
            idle_mj,
            energy,
            correct,
            miss,
            total,
        )
        s.frame, s.captured, s.start = next_frame, next_captured, next_start
        s.queue = next_start - next_captured
        self._draw_jitter(s)
        self._next_row(s)
        return outcome

    def _tail(self, s: Lanes, off: Bools, sent: Floats, end: Floats, next_start: Floats) -> Floats:
        tail_ms = self.world.cost.radio.tail_ms
        if not self._has_tail:
            np.copyto(s.last_end, end, where=off)
            return np.zeros(0)
        until = np.where(off, sent, next_start)
        before = np.maximum(np.minimum(until, s.last_end + tail_ms) - s.start, 0.0)
        after = np.minimum(next_start - end, tail_ms) * off
        np.copyto(s.last_end, end, where=off)
        tail: Floats = before + after
        return tail

    def _next_row(self, s: Lanes) -> None:
        ended = np.flatnonzero(self.world.track_end.take(s.row))
        s.row = s.row + 1
        if s.position.any() or s.timed_out.any():
            s.forget_decisions()
        if len(ended) == 0:
            return
        s.row[ended] = self.world.track_batch(s.key[ended], s.tracks[ended])
        s.tracks[ended] += 1
        s.confidences[:, ended] = 0.0
        s.recent[:, ended] = -1
        for array in (s.last_confidence, s.last_exit, s.agreement, s.answers):
            array[ended] = 0.0
        s.last_prediction[ended] = -1
