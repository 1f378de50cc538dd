"""One episode, frame by frame, in plain Python floats: the reference and the fast scalar path.

"One frame on the device" of docs/architecture.md, exactly: a sequential device, a FIFO
radio in which abandoned bytes leave first, time-outs, local fallback, skipped frames, the
modem's tail. `offload_env.batch_simulator` does the same operations in the same order with arrays.

One action settles a frame at once, or the frame advances decision by decision: exits are evaluated
one after the other until the device answers or sends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from offload_env.episode import Plan
from offload_env.exchange import Exchange, Exchanges
from offload_env.heat import slowed_mw
from offload_env.outcome import FALLBACK, OK, SKIPPED, STATUS, Outcome
from offload_env.world import POOL, World
from testbed.policy.decision_points import DecisionSpace, decision_points
from testbed.policy.observer import Observer

LONG_AGO_MS: Final = -1e12

__all__ = ["FALLBACK", "LONG_AGO_MS", "OK", "SKIPPED", "STATUS", "Outcome", "Simulator"]


class Simulator:
    """Simulates episodes of one world, one at a time.

    Call `reset` with a plan, then `observe` and `settle` (or `advance`) in turn. Nothing ends by
    itself: the caller counts frames (`frame`).

    Args:
        world: shared and never changed.

    Attributes:
        exits: (exit, prediction, confidence) of the exits evaluated on this frame, in order.
        exit_of: exit of every canonical action.
        pair_of: canonical action that every staged action runs.
        celsius: temperature of the processor at the frame's start; 0 without heat.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        topology, points = world.topology, decision_points(world.topology)
        timing, price, cost = world.scenario.timing, world.scenario.price, world.cost
        self._period, self._timeout = timing.period_ms, timing.timeout_ms
        self._deadline, self._max_queue = timing.deadline_ms, timing.max_queue_ms
        self._delay_price, self._energy_price = world.delay_price, world.energy_price
        self._miss_price, self._over_price = price.miss, price.over_budget
        self._budget = price.energy_budget_mj
        self._busy, self._idle = cost.busy_mw, cost.idle_mw
        self._heat = world.scenario.heat if world.scenario.heat.is_on else None
        self._active, self._tail_mw = cost.radio.active_mw, cost.radio.tail_mw
        self._tail, self._promotion = cost.radio.tail_ms, cost.radio.promotion_ms
        # Plain lists: indexing them is several times faster than indexing an array.
        self.exit_of: list[int] = topology.exit_of.tolist()
        self.pair_of: list[int] = points.canonical.tolist()
        self._split_of: list[int] = topology.split_of.tolist()
        self._is_local: list[bool] = topology.is_local.tolist()
        self._local_of: list[int] = topology.local_of.tolist()
        self._last_exit, self._answer = topology.n_blocks, points.answer
        self._points: list[list[list[int]]] = points.point.tolist()
        self._device_ms: list[float] = world.device_ms.tolist()
        self._fallback_ms: list[float] = world.fallback_ms.tolist()
        self._standing: list[float] = world.standing_ms.tolist()
        self._resumed: list[float] = world.resumed_ms.tolist()
        self._server_ms: list[float] = world.server_ms.tolist()
        self._sent_bytes: list[list[float]] = world.sent_bytes.tolist()
        self._mj_per_byte = cost.radio.mj_per_byte
        self._device_jitter: list[float] = world.device_jitter.tolist()
        self._server_jitter: list[float] = world.server_jitter.tolist()
        self._exchanges = Exchanges(world)
        self._correct: list[list[float]] = world.correct.tolist()
        self._prediction: list[list[int]] = world.table.prediction.tolist()
        self._confidence: list[list[float]] = world.table.confidence.astype(float).tolist()
        self._features: list[list[float]] = world.features.astype(float).tolist()
        self._ends: list[bool] = world.track_end.tolist()
        self.observer = Observer(world.settings, topology)
        self.frame = -1  # until the first reset

    def reset(self, plan: Plan, rows: Sequence[int] | None = None) -> None:
        """Start an episode.

        Args:
            plan: from `World.plan`.
            rows: table rows of its frames instead of the tracks that the plan's key draws;
                a row that does not follow its predecessor starts a new track.
        """
        self._plan, self._rows = plan, None if rows is None else list(rows)
        self._exchanges.start(plan)
        self.frame = 0
        self._tracks = 1
        self._row = self._rows[0] if self._rows else self.world.track(plan.key, 0)
        self._free = 0.0
        self._radio_free = LONG_AGO_MS
        self._last_end = LONG_AGO_MS
        self._spent_mj = 0.0
        self.celsius = self.world.beginning_c(plan.key) if self._heat is not None else 0.0
        self.observer.reset(0.0)
        self._forget_decisions()
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
        """How long the current frame has waited for the device."""
        return self._queue

    @property
    def radio_free_ms(self) -> float:
        """When all payloads handed over so far have left, since the start of the episode."""
        return self._radio_free

    @property
    def tail_left_ms(self) -> float:
        """Time that is left of the modem's tail."""
        left = self._last_end + self._tail - self._start
        return left if left > 0.0 else 0.0

    @property
    def will_skip(self) -> bool:
        """Whether the current frame has waited too long: it is skipped, whatever the decision."""
        return self._queue > self._max_queue

    def _arrive(self) -> None:
        """The next frame comes to the front of the queue."""
        self._captured = captured = self.frame * self._period
        self._start = self._free if self._free > captured else captured
        self._queue = self._start - captured
        jitter_at = (self._plan.jitter_at + self.frame) & (POOL - 1)
        self._jitter = self._device_jitter[jitter_at]
        self._server_factor = self._server_jitter[jitter_at]
        if self._heat is not None:
            self._slow_down(float(self._heat.clock(self.celsius)))

    def _slow_down(self, clock: float) -> None:
        """Run the frame at this share of the full clock."""
        self._jitter = self._jitter / clock
        self._busy = slowed_mw(clock, self.world.cost.busy_mw, self._idle)
        self.observer.record_full_local(self.world.delay_ref_ms / clock)

    def _warm_up(self, busy_ms: float) -> None:
        """From the frame's start to the next one's the device computed for `busy_ms`."""
        assert self._heat is not None
        idle_ms = (self._next_start(self._free) - self._start) - busy_ms
        later = self._heat.later_c(self.celsius, busy_ms, self._busy, idle_ms, self._idle)
        self.celsius = float(later)

    def _forget_decisions(self) -> None:
        """Clear the decisions: there is none about the current frame yet."""
        self._compute = 0.0
        self._position = self._timed_out = 0
        self._waited = self._rest = self._wasted_mj = 0.0
        self.exits: list[tuple[int, int, float]] = []

    @property
    def point(self) -> int:
        """Decision point of the current frame, see `testbed.policy.decision_points`."""
        evaluated = self.exits[-1][0] if self.exits else 0
        return self._points[self._timed_out][self._position][evaluated]

    def observe(self, space: DecisionSpace | None = None) -> NDArray[np.float32]:
        """The device's observation now, float32 (``space.obs_dim``,).

        Args:
            space: the frame or the staged one of the world's network; None is the frame space.
        """
        seen = self.observer.scaled(
            self._start * 1e-3, self._features[self._row], self._queue, self.tail_left_ms
        )
        if space is not None and space.name == "staged":
            spent_ms = self._compute + self._waited + self._rest
            seen += self.observer.scaled_stage(
                self.exits, self._position, spent_ms, bool(self._timed_out)
            )
        return np.array(seen, np.float32)

    def settle(self, action: int) -> Outcome:
        """Decide canonical `action` for the current frame and run it to its answer."""
        if self._queue > self._max_queue:
            return self._skip(action)
        return self._finish(action, self._device_ms[action] * self._jitter)

    def advance(self, chosen: int) -> Outcome | None:
        """Carry out a staged action that is legal at `point`.

        Returns:
            The frame's outcome, or None if it is still open. A frame that has waited too long is
            skipped, whatever the decision.
        """
        pair = self.pair_of[chosen]
        if self.will_skip:
            return self._skip(pair)
        if chosen == self._answer:
            return self.answer()
        if not self._is_local[pair]:
            return self.send(pair, early=chosen > self._answer)
        exit = self.exit_of[pair]
        self.evaluate_exit(exit)
        return self.answer() if exit == self._last_exit else None

    def evaluate_exit(self, exit: int) -> None:
        """Run on to `exit` (above the last one evaluated) and learn its answer."""
        local = self._local_of[exit]
        # From block p on, not from the frame: blocks 1..p have run already.
        before = self._resumed if self._timed_out else self._standing
        extra = self._device_ms[local] - before[self._position]
        spent = (extra if extra > 0.0 else 0.0) * self._jitter
        if self._timed_out:
            self._rest = self._rest + spent
        else:
            self._compute = self._compute + spent
        self._position = exit
        seen = self._confidence[self._row][local]
        self.exits.append((exit, self._prediction[self._row][local], seen))
        self.observer.record_exit(exit, seen)

    def answer(self) -> Outcome:
        """Answer with the exit evaluated last."""
        return self._finish(self._local_of[self.exits[-1][0]], self._compute)

    def send(self, action: int, early: bool = False) -> Outcome | None:
        """Run on to the action's split and send from there to its exit.

        Returns:
            The frame's outcome, or None if no answer came before the time-out (the early one if
            `early`): the frame stays open.
        """
        extra = self._device_ms[action] - self._standing[self._position]
        compute = self._compute + (extra if extra > 0.0 else 0.0) * self._jitter
        timeout = self._timeout
        if early:
            timeout = min(self.observer.early_timeout_ms(), timeout)
        exchange = self._exchange(action, self._start + compute)
        if exchange.total_ms <= timeout:
            return self._finish(action, compute, exchange)
        self._radio_free = exchange.left_ms
        self._compute, self._waited = compute, timeout
        self._wasted_mj = self._mj_per_byte * exchange.size
        self._sent_action, self._position, self._timed_out = action, self._split_of[action], 1
        self.observer.record_failure(((self._start + compute) + timeout) * 1e-3)
        return None

    def _exchange(self, action: int, sent: float) -> Exchange[float]:
        """The exchange that follows if the radio gets the action's payload at `sent`."""
        return self._exchanges.of(
            sent,
            self._radio_ready(sent),
            self._sent_bytes[self._row][action],
            self._server_ms[action] * self._server_factor,
        )

    def _radio_ready(self, sent: float) -> float:
        """When the radio is connected and free for a payload that is handed over at `sent`."""
        if sent <= self._last_end + self._tail:
            return self._radio_free
        return max(self._radio_free, sent + self._promotion)

    def _finish(
        self, action: int, compute: float, exchanged: Exchange[float] | None = None
    ) -> Outcome:
        used, status = action, OK
        sent = self._start + compute
        exchange = transfer = wait = fallback = send_mj = 0.0
        observer = self.observer
        if self._timed_out:  # on an exchange earlier in this frame; now it answers
            action, status = self._sent_action, FALLBACK
            exchange, fallback, send_mj = self._waited, self._rest, self._wasted_mj
            end = sent + exchange
            free = end + fallback
            tail = self._tail_around(sent, end, free)
            self._last_end = end
        elif self._is_local[action]:
            free = sent
            tail = self._tail_without_exchange(free)
        else:
            size, left, transfer, wait, exchange = exchanged or self._exchange(action, sent)
            self._radio_free = left
            send_mj = self._mj_per_byte * size
            if exchange > self._timeout:
                exchange, transfer, wait = self._timeout, 0.0, 0.0
                used, status = self._local_of[self.exit_of[action]], FALLBACK
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
        row = self._row
        observer.record_answer(
            self.exit_of[used], self._prediction[row][used], self._confidence[row][used]
        )
        self._free = free
        return self._close(
            action, used, status, compute, exchange, transfer, wait, fallback, send_mj, tail
        )

    def _next_start(self, free: float) -> float:
        """Time at which the next frame starts, if the device is free at `free`."""
        next_captured = (self.frame + 1) * self._period
        return free if free > next_captured else next_captured

    def _tail_without_exchange(self, free: float) -> float:
        """Part of this frame's time that the modem spends in the tail of an earlier exchange."""
        tail = min(self._next_start(free), self._last_end + self._tail) - self._start
        return tail if tail > 0.0 else 0.0

    def _tail_around(self, sent: float, end: float, free: float) -> float:
        """Part of this frame that the modem spends in a tail, before and after an exchange."""
        before = min(sent, self._last_end + self._tail) - self._start
        after = self._next_start(free) - end
        return (before if before > 0.0 else 0.0) + (after if after < self._tail else self._tail)

    def _skip(self, action: int) -> Outcome:
        self._free = self._start
        self.observer.record_skipped()
        tail = self._tail_without_exchange(self._start)
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
        """Add up the frame's outcome and start the next frame."""
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
        if self.exits or self._timed_out:
            self._forget_decisions()
        if self._heat is not None:
            self._warm_up(compute + fallback)
        self.frame += 1
        self._next_row()
        self._arrive()
        return outcome

    def _next_row(self) -> None:
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
