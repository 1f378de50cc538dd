"""The ways in which a frame can end, as the bound counts them, and their prices.

A *choice* is an action that was answered, an exchange that timed out (told apart by its exit,
whose local answer stands), or giving the frame up. Choices that send nothing come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.topology import ACTIONS, N_EXITS
from offload_env.world import LOCAL, World

Floats = NDArray[np.float64]

SENDING: Final = tuple(a.index for a in ACTIONS if not a.is_local)
SKIP: Final = N_EXITS
"""Choice of giving the frame up."""
N_QUIET: Final = N_EXITS + 1
"""Choices 0..4 are the local answers of exits 1..5, then `SKIP`."""
TIMED_OUT: Final = N_QUIET + len(SENDING)
"""First of the five choices of a time-out, by exit."""
N_CHOICES: Final = TIMED_OUT + N_EXITS
ANSWERED_BY: Final = np.array([*LOCAL, LOCAL[0], *SENDING, *LOCAL])
"""int64 (26,), canonical action whose answer stands; of `SKIP`, which has none, e1s1."""


def _choice_of() -> NDArray[np.int64]:
    of = np.empty(len(ACTIONS), np.int64)
    of[list(LOCAL)] = np.arange(N_EXITS)
    of[list(SENDING)] = np.arange(N_QUIET, TIMED_OUT)
    return of


CHOICE_OF: Final = _choice_of()
"""int64 (20,), choice of an action that is answered."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What a millisecond and a millijoule cost.

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
