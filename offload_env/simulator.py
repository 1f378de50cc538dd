"""One episode, frame by frame, in plain Python floats: the reference and the fast scalar path.

"One frame on the device" of docs/architecture.md, exactly: a sequential device, a FIFO
radio in which abandoned bytes leave first, time-outs, local fallback, skipped frames, the
modem's tail. `offload_env.batch_simulator` does the same operations in the same order with arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.topology import ACTIONS
from offload_env.outcome import FALLBACK, OK, SKIPPED, STATUS, Exchange, Outcome
from offload_env.server_load import CELL_MS
from offload_env.world import LOCAL, POOL, Plan, World
from testbed.policy.observer import Observer

LONG_AGO_MS: Final = -1e12
EXIT: Final = tuple(action.exit for action in ACTIONS)
SPLIT: Final = tuple(action.split for action in ACTIONS)
IS_LOCAL: Final = tuple(action.is_local for action in ACTIONS)

__all__ = ["FALLBACK", "LONG_AGO_MS", "OK", "SKIPPED", "STATUS", "Outcome", "Simulator"]


class Simulator:
    """Simulates episodes of one world, one at a time.

    Call `reset` with a plan, then `observe` and `step` in turn. Nothing ends by itself:
    the caller counts frames (`frame`).

    Args:
        world: shared and never changed.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        timing, price, cost = world.scenario.timing, world.scenario.price, world.cost
        self._period, self._timeout = timing.period_ms, timing.timeout_ms
        self._deadline, self._max_queue = timing.deadline_ms, timing.max_queue_ms
        self._delay_price = price.delay_weight / world.delay_ref_ms
        self._energy_price = price.energy_weight / world.energy_ref_mj
        self._miss_price, self._over_price = price.miss, price.over_budget
        self._budget = price.energy_budget_mj
        self._busy, self._idle, self._net = cost.busy_mw, cost.idle_mw, cost.net_ms
        self._active, self._tail_mw = cost.radio.active_mw, cost.radio.tail_mw
        self._tail = cost.radio.tail_ms
        # Plain lists: indexing them is several times faster than indexing an array.
        self._device_ms: list[float] = world.device_ms.tolist()
        self._fallback_ms: list[float] = world.fallback_ms.tolist()
        self._server_ms: list[float] = world.server_ms.tolist()
        self._sent_bytes: list[list[float]] = world.sent_bytes.tolist()
        self._mj_per_byte = cost.radio.tx_mw_per_mbps * 8e-6
        self._device_jitter: list[float] = world.device_jitter.tolist()
        self._server_jitter: list[float] = world.server_jitter.tolist()
        self._work: list[float] = world.server_work_ms.tolist()
        self._correct: list[list[bool]] = world.correct.tolist()
        self._prediction: list[list[int]] = world.table.prediction.tolist()
        self._confidence: list[list[float]] = world.table.confidence.astype(float).tolist()
        self._features: list[list[float]] = world.features.astype(float).tolist()
        self._ends: list[bool] = world.track_end.tolist()
        self.observer = Observer(world.settings)
        self.frame = -1  # until the first reset

    def reset(self, plan: Plan, rows: Sequence[int] | None = None) -> None:
        """Start an episode.

        Args:
            plan: from `World.plan`.
            rows: table rows of its frames instead of the tracks that the plan's key draws;
                a row that does not follow its predecessor starts a new track.
        """
        self._plan, self._rows = plan, None if rows is None else list(rows)
        self._send = self.world.pool.sender(plan.trace)
        self._offset, self._cell0 = plan.offset_ms, plan.server_cell
        self.frame = 0
        self._tracks = 1
        self._row = self._rows[0] if self._rows else self.world.track(plan.key, 0)
        self._free = 0.0
        self._radio_free = LONG_AGO_MS
        self._last_end = LONG_AGO_MS
        self._spent_mj = 0.0
        self.observer.reset(0.0)
        self._arrive()

    @property
    def row(self) -> int:
        """Table row of the frame that waits for a decision."""
        return self._row

    @property
    def now_ms(self) -> float:
        """Time of the decision, since the start of the episode."""
        return self._start

    @property
    def queue_ms(self) -> float:
        """How long the frame in front has waited for the device."""
        return self._queue

    @property
    def radio_free_ms(self) -> float:
        """When all payloads handed over so far have left, since the start of the episode."""
        return self._radio_free

    @property
    def tail_left_ms(self) -> float:
        """How long the modem will still stay up by itself."""
        left = self._last_end + self._tail - self._start
        return left if left > 0.0 else 0.0

    @property
    def will_skip(self) -> bool:
        """The frame in front has waited too long: whatever is decided, it is skipped."""
        return self._queue > self._max_queue

    def _arrive(self) -> None:
        """The next frame comes to the front of the queue."""
        self._captured = captured = self.frame * self._period
        self._start = self._free if self._free > captured else captured
        self._queue = self._start - captured
        jitter_at = (self._plan.jitter_at + self.frame) & (POOL - 1)
        self._jitter = self._device_jitter[jitter_at]
        self._far_jitter = self._server_jitter[jitter_at]

    def observe(self) -> NDArray[np.float32]:
        """The device's observation now, float32 (`OBS_DIM`,)."""
        return np.array(self.observe_list(), np.float32)

    def observe_list(self) -> list[float]:
        """`observe` as a plain list."""
        return self.observer.scaled(
            self._start * 1e-3, self._features[self._row], self._queue, self.tail_left_ms
        )

    def step(self, action: int) -> Outcome:
        """Decide `action` (0..19) for the frame in front and let it run to its answer."""
        if self._queue > self._max_queue:
            return self._skip(action)
        return self._finish(action, self._device_ms[action] * self._jitter)

    def _exchange(self, action: int, sent: float) -> Exchange[float]:
        """What would come of handing the action's payload to the radio at `sent`."""
        radio = sent if sent > self._radio_free else self._radio_free
        size = self._sent_bytes[self._row][action]
        left, up = self._send(radio + self._offset, 8.0 * size)
        left -= self._offset
        arrive = left + up
        cell = int(arrive / CELL_MS)
        at = self._cell0 + cell
        wait = self._work[at if at < POOL else POOL - 1] - (arrive - cell * CELL_MS)
        wait = wait if wait > 0.0 else 0.0
        far = self._server_ms[action] * self._far_jitter
        down = self._send.one_way(((arrive + wait) + far) + self._offset)
        transfer = (left - sent) + up + down + self._net
        return Exchange(size, left, transfer, wait, transfer + wait + far)

    def _finish(
        self, action: int, compute: float, exchanged: Exchange[float] | None = None
    ) -> Outcome:
        used, status = action, OK
        sent = self._start + compute
        exchange = transfer = wait = fallback = send_mj = 0.0
        observer = self.observer
        if IS_LOCAL[action]:
            end = free = sent
            tail = min(self._next_start(free), self._last_end + self._tail) - self._start
            tail = tail if tail > 0.0 else 0.0
        else:
            size, left, transfer, wait, exchange = exchanged or self._exchange(action, sent)
            self._radio_free = left
            send_mj = self._mj_per_byte * size
            if exchange > self._timeout:
                exchange, transfer, wait = self._timeout, 0.0, 0.0
                used, status = LOCAL[EXIT[action] - 1], FALLBACK
                fallback = self._fallback_ms[action] * self._jitter
            end = sent + exchange
            free = end + fallback
            tail = self._tail_around(sent, end, free)
            self._last_end = end
            if status == OK:
                observer.record_transfer(end * 1e-3, size, transfer)
                observer.record_server(end * 1e-3, wait)
            else:
                observer.record_failure(end * 1e-3)
        self._learn_answer(used)
        self._free = free
        return self._close(
            action, used, status, compute, exchange, transfer, wait, fallback, send_mj, tail
        )

    def _next_start(self, free: float) -> float:
        """When the next frame starts, if the device is free at `free`."""
        next_captured = (self.frame + 1) * self._period
        return free if free > next_captured else next_captured

    def _tail_around(self, sent: float, end: float, free: float) -> float:
        """What of this frame's time the modem spends in a tail, before and after an exchange."""
        before = min(sent, self._last_end + self._tail) - self._start
        after = self._next_start(free) - end
        return (before if before > 0.0 else 0.0) + (after if after < self._tail else self._tail)

    def _learn_answer(self, used: int) -> None:
        row = self._row
        self.observer.record_answer(
            EXIT[used], self._prediction[row][used], self._confidence[row][used]
        )

    def _skip(self, action: int) -> Outcome:
        self._free = self._start
        tail = min(self._next_start(self._start), self._last_end + self._tail) - self._start
        self.observer.record_skipped()
        tail = tail if tail > 0.0 else 0.0
        return self._close(action, action, SKIPPED, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, tail)

    def _close(
        self,
        action: int,
        used: int,
        status: int,
        compute: float,
        exchange: float,
        transfer: float,
        wait: float,
        fallback: float,
        send_mj: float,
        tail: float,
    ) -> Outcome:
        """Add up the frame, go on to the next one."""
        row, queue = self._row, self._queue
        delay = self._free - self._captured
        compute_mj = self._busy * (compute + fallback) / 1e3
        radio_mj = self._active * exchange / 1e3 + send_mj + self._tail_mw * tail / 1e3
        idle_mj = self._idle * exchange / 1e3
        energy = compute_mj + radio_mj + idle_mj
        miss = status == SKIPPED or delay > self._deadline
        cost = self._delay_price * delay + self._energy_price * energy + self._miss_price * miss
        if self._budget:
            self._spent_mj += energy
            self.observer.record_energy(energy)
            if self._spent_mj > self._budget:
                cost += self._over_price
        outcome = Outcome(
            row,
            action,
            used,
            status,
            queue,
            compute,
            exchange,
            transfer,
            wait,
            fallback,
            delay,
            compute_mj,
            radio_mj,
            idle_mj,
            energy,
            status != SKIPPED and self._correct[row][used],
            miss,
            cost,
        )
        self.frame += 1
        self._advance_row()
        self._arrive()
        return outcome

    def _advance_row(self) -> None:
        row = self._row
        if self._rows is not None:
            following = self._rows[self.frame] if self.frame < len(self._rows) else row
            new_track = following != row + 1 or self._ends[row]
            self._row = following
        else:
            new_track = self._ends[row]
            if new_track:
                self._row = self.world.track(self._plan.key, self._tracks)
                self._tracks += 1
            else:
                self._row = row + 1
        if new_track:
            self.observer.new_track()
