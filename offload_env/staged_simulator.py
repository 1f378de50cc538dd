"""One episode in plain Python floats when a frame may be decided about several times.

`offload_env.staged_batch` does the same operations in the same order with arrays.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.topology import N_EXITS
from offload_env.outcome import FALLBACK, Exchange, Outcome
from offload_env.simulator import EXIT, SPLIT, Simulator
from offload_env.world import LOCAL, World
from testbed.policy.decision_points import ANSWER, CANONICAL, POINT

POINTS: Final[list[list[list[int]]]] = POINT.tolist()
PAIR: Final[list[int]] = CANONICAL.tolist()
"""Canonical pair that a staged action runs."""


class StagedSimulator(Simulator):
    """As `Simulator`; a frame may be looked at exit by exit before `answer` or `send` ends it.

    `step` still settles a frame at once.

    Args:
        world: shared and never changed.

    Attributes:
        exits: (exit, prediction, confidence) of the exits evaluated on this frame, in order.
    """

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._standing: list[float] = world.standing_ms.tolist()
        self._resumed: list[float] = world.resumed_ms.tolist()

    def _arrive(self) -> None:
        super()._arrive()
        self._compute = 0.0
        self._position = self._gave_up = 0
        self._waited = self._rest = self._wasted_mj = 0.0
        self.exits: list[tuple[int, int, float]] = []

    def take(self, chosen: int) -> Outcome | None:
        """Carry out a staged action that is legal at `point`.

        Returns:
            The frame's outcome, or None if it is still open. Whatever is decided about a frame
            that has waited too long skips it.
        """
        pair = PAIR[chosen]
        if self.will_skip:
            return self.step(pair)
        if chosen == ANSWER:
            return self.answer()
        if SPLIT[pair] < EXIT[pair]:
            return self.send(pair, early=chosen > ANSWER)
        self.evaluate_exit(EXIT[pair])
        return self.answer() if EXIT[pair] == N_EXITS else None

    def observe_staged(self) -> NDArray[np.float32]:
        """The device's staged observation now, float32 (`STAGED_OBS_DIM`,)."""
        return np.array(self.observe_list() + self.observe_stage_list(), np.float32)

    def observe_stage_list(self) -> list[float]:
        """The stage elements of the staged observation, as a plain list."""
        spent_ms = self._compute + self._waited + self._rest
        return self.observer.scaled_stage(self.exits, self._position, spent_ms, bool(self._gave_up))

    def evaluate_exit(self, exit: int) -> None:
        """Run on to `exit` (above the last one evaluated) and look at its answer."""
        local = LOCAL[exit - 1]
        # From block p on, not from the frame: blocks 1..p have run already.
        standing = self._resumed if self._gave_up else self._standing
        extra = self._device_ms[local] - standing[self._position]
        spent = (extra if extra > 0.0 else 0.0) * self._jitter
        if self._gave_up:
            self._rest = self._rest + spent
        else:
            self._compute = self._compute + spent
        self._position = exit
        seen = self._confidence[self._row][local]
        self.exits.append((exit, self._prediction[self._row][local], seen))
        self.observer.record_exit(exit, seen)

    def answer(self) -> Outcome:
        """Answer with the exit evaluated last."""
        local = LOCAL[self.exits[-1][0] - 1]
        if self._gave_up:
            return self._answer_after_giving_up(local)
        return self._finish(local, self._compute)

    def send(self, action: int, early: bool = False) -> Outcome | None:
        """Run on to the action's split and send from there to its exit.

        Returns:
            The frame's outcome, or None if no answer came before the time-out (if `early`,
            within the device's patience): the frame stays open.
        """
        extra = self._device_ms[action] - self._standing[self._position]
        compute = self._compute + (extra if extra > 0.0 else 0.0) * self._jitter
        patience = self._timeout
        if early:
            patience = min(self.observer.early_timeout_ms(), patience)
        exchange = self._exchange(action, self._start + compute)
        if exchange.total_ms > patience:
            self._give_up(action, compute, patience, exchange)
            return None
        return self._finish(action, compute, exchange)

    @property
    def point(self) -> int:
        """Where the device stands, see `testbed.policy.decision_points`; the frame is open."""
        evaluated = self.exits[-1][0] if self.exits else 0
        return POINTS[self._gave_up][self._position][evaluated]

    def _give_up(
        self, action: int, compute: float, patience: float, exchange: Exchange[float]
    ) -> None:
        """Send, wait for `patience` in vain; the frame stays open."""
        self._radio_free = exchange.left_ms
        self._compute, self._waited = compute, patience
        self._wasted_mj = self._mj_per_byte * exchange.size
        self._sent_action, self._position, self._gave_up = action, SPLIT[action], 1
        self.observer.record_failure(((self._start + compute) + patience) * 1e-3)

    def _answer_after_giving_up(self, local: int) -> Outcome:
        sent = self._start + self._compute
        end = sent + self._waited
        free = end + self._rest
        tail = self._tail_around(sent, end, free)
        self._last_end = end
        self._learn_answer(local)
        self._free = free
        return self._close(
            self._sent_action,
            local,
            FALLBACK,
            self._compute,
            self._waited,
            0.0,
            0.0,
            self._rest,
            self._wasted_mj,
            tail,
        )
