"""Many episodes at once: `offload_env.simulator` with arrays instead of floats.

Every line follows its scalar twin with the same floating-point operations in the same
order, so that lane k of a batch and a `Simulator` on the same plan agree exactly in every
time, energy and answer; observations agree to float32 rounding of the logarithm.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.topology import ACTIONS, N_ACTIONS
from offload_env.batch_learning import learn_answer, learn_link
from offload_env.batch_observer import BatchObserver
from offload_env.hashing import Keys
from offload_env.lanes import Indices, Lanes
from offload_env.outcome import FALLBACK, OK, SKIPPED, BatchOutcome, Exchange
from offload_env.server_load import CELL_MS
from offload_env.world import LOCAL, POOL, World

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

OFFLOADS: Final = np.array([not a.is_local for a in ACTIONS])
EXIT: Final = np.array([a.exit for a in ACTIONS])
LOCAL_OF: Final = np.array([LOCAL[a.exit - 1] for a in ACTIONS])
LOCAL_ARRAY: Final = np.array(LOCAL)

__all__ = ["FALLBACK", "OK", "SKIPPED", "BatchOutcome", "BatchSimulator"]


class BatchSimulator:
    """Simulates B episodes of one world in step.

    Args:
        world: shared and never changed.
        n: number of lanes.
    """

    def __init__(self, world: World, n: int) -> None:
        self.world, self.n = world, n
        cost, table = world.cost, world.table
        radio = cost.radio
        self._has_tail = radio.tail_ms > 0
        self._has_load = bool(world.server_work_ms.any())
        self._mj_per_byte = radio.tx_mw_per_mbps * 8e-6
        sizes = world.sent_bytes
        self._sent_bytes = sizes.ravel()
        # Without a per-frame codec every frame sends the same bytes: a table of 20.
        self._sizes = sizes[0].copy() if bool((sizes == sizes[0]).all()) else None
        # Prediction and correctness share one element: one gather instead of two.
        self._answers = (table.prediction.astype(np.int32) * 2 + world.correct).ravel()
        self._confidence = table.confidence.ravel()
        self._observer = BatchObserver(world, n)
        self._lane_numbers = np.arange(n)

    def reset(self, keys: Keys) -> None:
        """Start the episodes of `keys`, uint64 (B,), in all lanes."""
        self.lanes = self._begin(keys)

    def reset_some(self, lanes: Indices, keys: Keys) -> None:
        """Start new episodes in some lanes only."""
        self.lanes.put(lanes, self._begin(keys))

    @property
    def started(self) -> bool:
        """Whether all lanes have begun an episode."""
        return hasattr(self, "lanes")

    @property
    def frame(self) -> NDArray[np.int64]:
        """Number of the frame in front, int64 (B,)."""
        return self.lanes.frame

    @property
    def row(self) -> NDArray[np.int64]:
        """Table row of the frame in front, int64 (B,)."""
        return self.lanes.row

    def _begin(self, keys: Keys) -> Lanes:
        plans = self.world.plans(keys)
        s = Lanes.begin(plans, self.world.pool.lanes(plans.trace))
        price = self.world.scenario.price
        s.floor[:] = self.world.settings.accuracy_floor
        s.delay_price[:] = price.delay_weight / self.world.delay_ref_ms
        s.energy_price[:] = price.energy_weight / self.world.energy_ref_mj
        s.row = self.world.track_batch(keys, np.zeros(len(keys), np.int64))
        self._draw_jitter(s)
        return s

    def _draw_jitter(self, s: Lanes) -> None:
        at = (s.jitter_at + s.frame) & (POOL - 1)
        s.jitter = self.world.device_jitter.take(at)
        s.far_jitter = self.world.server_jitter.take(at)

    def step(self, actions: NDArray[np.int64]) -> BatchOutcome:
        """Decide `actions` (int (B,), 0..19) for the frames in front of all lanes."""
        s = self.lanes
        actions = np.asarray(actions, np.int64)
        skip = s.queue > self.world.scenario.timing.max_queue_ms
        compute = self.world.device_ms.take(actions) * s.jitter
        return self._finish(s, actions, compute, skip)

    def _exchanges(self, s: Lanes, action: NDArray[np.int64], sent: Floats) -> Exchange[Floats]:
        """Hand the payloads of `action` to the radio at `sent`; nothing changes in `s`."""
        w = self.world
        radio = np.maximum(sent, s.radio_free)
        if self._sizes is not None:
            size = self._sizes.take(action)
        else:
            size = self._sent_bytes.take(s.row * N_ACTIONS + action)
        left, up = w.pool.send(s.lane, radio + s.offset, 8.0 * size)
        left -= s.offset
        arrive = left + up
        wait = self._wait(s, arrive) if self._has_load else self._nothing(s)
        far = w.server_ms.take(action) * s.far_jitter
        down = w.pool.one_way(s.lane, ((arrive + wait) + far) + s.offset)
        transfer = (left - sent) + up + down + w.cost.net_ms
        return Exchange(size, left, transfer, wait, transfer + wait + far)

    def _finish(
        self,
        s: Lanes,
        action: NDArray[np.int64],
        compute: Floats,
        skip: Bools,
        exchanges: Exchange[Floats] | None = None,
    ) -> BatchOutcome:
        w, cost, timing = self.world, self.world.cost, self.world.scenario.timing
        off = OFFLOADS.take(action)
        any_skip = bool(skip.any())
        if any_skip:
            off &= ~skip
            compute = np.where(skip, 0.0, compute)
        start = s.start
        sent = start + compute
        size, left, transfer, wait, exchange = exchanges or self._exchanges(s, action, sent)
        np.copyto(s.radio_free, left, where=off)
        fell = exchange > timing.timeout_ms
        answered = off & ~fell
        fell &= off
        exchange = np.minimum(exchange, timing.timeout_ms) * off
        end = sent + exchange
        if fell.any():
            fallback = w.fallback_ms.take(action) * s.jitter * fell
            free = end + fallback
            used = np.where(fell, LOCAL_OF.take(action), action)
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
        at = s.row * N_ACTIONS + used
        answer = self._answers.take(at)
        learn_answer(s, used, answer, self._confidence.take(at), skip, any_skip, self._lane_numbers)
        correct = (answer & 1).astype(bool)
        if any_skip:
            correct &= ~skip

        delay = free - s.captured
        compute_mj = cost.busy_mw * (compute + fallback) / 1e3
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

    def _nothing(self, s: Lanes) -> Floats:
        return np.zeros(len(s))

    def _wait(self, s: Lanes, arrive: Floats) -> Floats:
        cell = (arrive / CELL_MS).astype(np.int64)
        work = self.world.server_work_ms.take(np.minimum(s.cell0 + cell, POOL - 1))
        wait: Floats = np.maximum(work - (arrive - cell * CELL_MS), 0.0)
        return wait

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
        if s.position.any() or s.compute.any():
            for array in (s.position, s.evaluated, s.timed_out, s.stage_confidence, s.stage_track):
                array[:] = 0
            for array in (s.stage_frame, s.compute, s.waited, s.wasted_mj, s.rest):
                array[:] = 0.0
            s.stage_prediction[:] = -1
        if len(ended) == 0:
            return
        s.row[ended] = self.world.track_batch(s.key[ended], s.tracks[ended])
        s.tracks[ended] += 1
        s.confidences[:, ended] = 0.0
        s.recent[:, ended] = -1
        for array in (s.last_confidence, s.last_exit, s.agreement, s.answers):
            array[ended] = 0.0
        s.last_prediction[ended] = -1

    def observe(self) -> NDArray[np.float32]:
        """Observations now, float32 (B, `OBS_DIM`), a new array."""
        return self._observer.observe(self.lanes)
