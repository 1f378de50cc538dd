"""The ways through a frame and how it can end, as the bound counts them, and their prices.

A staged device may evaluate exits on its way. Each set of evaluated exits leads to the same
actions, later: `EVALUATED` names the sets, `compute_ms` the times, as the simulator adds them up.

A *frame outcome* is an action that was answered, an exchange that timed out (one for each exit,
whose local answer is used), or a frame that is skipped. Outcomes that send nothing come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnn.topology import ACTIONS, N_ACTIONS, N_EXITS
from offload_env.world import LOCAL, World

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EVALUATED: Final = tuple(
    exits for k in range(N_EXITS) for exits in combinations(range(1, N_EXITS), k)
)
"""Sets of evaluated exits, in rising order; the first is empty: one decision a frame."""

SENDS: Final = np.array([not a.is_local for a in ACTIONS])
"""bool (20,), actions that send something."""
SENDING: Final = tuple(np.flatnonzero(SENDS).tolist())
SKIP: Final = N_EXITS
"""Outcome of a skipped frame."""
N_QUIET: Final = N_EXITS + 1
"""Outcomes 0..4 are the local answers of exits 1..5, then `SKIP`."""
TIMED_OUT: Final = N_QUIET + len(SENDING)
"""First of the five outcomes of a time-out, by exit."""
N_OUTCOMES: Final = TIMED_OUT + N_EXITS
ANSWERED_BY: Final = np.array([*LOCAL, LOCAL[0], *SENDING, *LOCAL])
"""int64 (26,), canonical action whose answer is used; e1s1 for `SKIP`, which has no answer."""
TIME_OUT_OF: Final = np.array([TIMED_OUT + a.exit - 1 for a in ACTIONS])
"""int64 (20,), outcome of an action whose exchange times out."""


def _outcome_of() -> Ints:
    of = np.empty(N_ACTIONS, np.int64)
    of[list(LOCAL)] = np.arange(N_EXITS)
    of[list(SENDING)] = np.arange(N_QUIET, TIMED_OUT)
    return of


OUTCOME_OF: Final = _outcome_of()
"""int64 (20,), outcome of an action that is answered."""


class Costs(NamedTuple):
    """Lowest cost of every frame outcome, float64 (K, ..., 26), by the state of the next frame.

    Where K is 2, index 0 is for a next frame on time and 1 for a delayed one; inf where an outcome
    does not lead there. With A the end of the exchange and T the price of the tail:

    Attributes:
        after_tail: cost without tail + T (capture of the next frame - A), for an exchange after
            the tail of the last one has run out; without an exchange the cost alone.
        within_tail: `after_tail` + T * hand-over, for one that begins within that tail.
    """

    after_tail: Floats
    within_tail: Floats

    @classmethod
    def none(cls, *shape: int) -> Costs:
        """No outcome leads anywhere yet; `shape` without the outcomes."""
        return cls(np.full((*shape, N_OUTCOMES), np.inf), np.full((*shape, N_OUTCOMES), np.inf))

    def keep(
        self, to: int, outcome: int, cost: Floats, handed: Floats | float, where: NDArray[np.bool_]
    ) -> None:
        """Keep `cost` (and with `handed` more, the price of the hand-over) where it is less."""
        for least, new in ((self.after_tail, cost), (self.within_tail, cost + handed)):
            kept = least[to, ..., outcome]
            np.minimum(kept, new, out=kept, where=where)


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of a millisecond and of a millijoule.

    Attributes:
        delay: of a millisecond of delay.
        energy: of a millijoule, the premium included.
        tail: of a millisecond of the modem's tail; 0 if there is none, or if the bound leaves
            the tail out because a later answer would be cheaper (`offload_env.bound.proof`).
        miss: of a missed deadline.
    """

    delay: float
    energy: float
    tail: float
    miss: float

    @classmethod
    def of(cls, world: World, premium: float = 0.0) -> Prices:
        """A world's prices; `premium` is added to that of energy."""
        price, radio = world.scenario.price, world.cost.radio
        delay = price.delay_weight / world.delay_ref_ms
        energy = price.energy_weight / world.energy_ref_mj + premium
        tail = energy * radio.tail_mw / 1e3 if radio.tail_ms > 0 else 0.0
        return cls(delay, energy, tail if tail <= delay else 0.0, price.miss)

    def cost(self, delay_ms: Floats, energy_mj: Floats, deadline_ms: float) -> Floats:
        """Cost of answered frames without the modem's tail."""
        return (
            self.delay * delay_ms + self.energy * energy_mj + self.miss * (delay_ms > deadline_ms)
        )


def open_actions(evaluated: tuple[int, ...]) -> Ints:
    """Canonical actions that are still open after the evaluated exits, int64 (K,)."""
    at = evaluated[-1] if evaluated else 0
    return np.array([a.index for a in ACTIONS if a.split >= at and a.exit > at])


def compute_ms(world: World, jitter: Floats, evaluated: tuple[int, ...]) -> Floats:
    """Device time up to the answer or the hand-over to the radio, for `open_actions`.

    Args:
        world: for the cost model.
        jitter: float64 (...), of each frame.
        evaluated: exits, rising.

    Returns:
        float64 (..., K).
    """
    device, standing = world.device_ms, world.standing_ms
    spent, at = np.zeros_like(jitter), 0
    for exit in evaluated:
        spent = spent + max(device[LOCAL[exit - 1]] - standing[at], 0.0) * jitter
        at = exit
    extra = np.maximum(device[open_actions(evaluated)] - standing[at], 0.0)
    times: Floats = spent[..., None] + extra * jitter[..., None]
    return times


def least_and_most(world: World) -> tuple[Floats, Floats]:
    """Shortest and longest device time of each action over `EVALUATED`, jitter 1, (20,) each."""
    least, most = np.full(N_ACTIONS, np.inf), np.zeros(N_ACTIONS)
    for evaluated in EVALUATED:
        actions, times = open_actions(evaluated), compute_ms(world, np.ones(1), evaluated)[0]
        least[actions] = np.minimum(least[actions], times)
        most[actions] = np.maximum(most[actions], times)
    return least, most
