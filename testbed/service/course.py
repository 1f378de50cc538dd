"""What one policy decides along a frame, whether it acts or only watches.

A policy that decides once a frame is asked as the frame begins. A staged one is asked there and
again after every exit it wanted to look at, if that exit was in fact looked at. The device looks
where the acting policy wants: a staged shadow that would look elsewhere cannot be asked on, since
nobody knows what it would have seen there. Its course is then left open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self, cast

import numpy as np
from numpy.typing import NDArray

from cnn.action import ACTIONS, N_ACTIONS, N_EXITS
from testbed.decide.observation import OBS_DIM, normalise
from testbed.decide.policy import Policy
from testbed.decide.staged_policy import AnyPolicy, is_staged
from testbed.decide.stages import ANSWER, LEGAL, N_STAGED

STAGE_START: Final[NDArray[np.float32]] = normalise([1, 0, 0, 0, 0, 0, 0.5, 0.5, 0], OBS_DIM)
"""float32 (9,): what the staged observation adds before anything was looked at."""


@dataclass(slots=True)
class Course:
    """The decisions of one policy on one frame, so far.

    Attributes:
        action: canonical action that they amount to; None before the first.
        open: the policy wants to look, and has not said what it would do then. True before
            the first decision.
    """

    action: int | None = None
    open: bool = True

    @classmethod
    def over(cls) -> Self:
        """A course on which nobody will be asked any more, and of which nothing is known."""
        return cls(None, False)

    def reaches(self, position: int) -> bool:
        """Whether the policy is to be asked after block `position`."""
        if self.action is None:
            return self.open and position == 0
        return self.open and ACTIONS[self.action].exit == position

    def follow(self, number: int, staged: bool) -> None:
        """One more decision of the policy, a `staged` one or not, as `ask` gives it."""
        if number == ANSWER:
            self.open = False
            return
        action = ACTIONS[number]
        self.action = number
        self.open = staged and action.is_local and action.exit < N_EXITS


def ask(policy: AnyPolicy, observation: NDArray[np.float32], position: int | None) -> int:
    """What a policy of either kind decides, checked.

    Args:
        policy: is asked; one that decides once a frame sees the first OBS_DIM elements.
        observation: float32 (OBS_DIM,), or (STAGED_OBS_DIM,) with a position.
        position: block after which the device stands; None as the frame begins.

    Raises:
        ValueError: if it is no canonical action or, of a staged policy, none that is legal there.
    """
    if not is_staged(policy):
        return checked_action(cast(Policy, policy).decide(observation[:OBS_DIM]))
    if position is None:
        observation = np.concatenate([observation, STAGE_START])
    return checked_staged(policy.decide(observation, position or 0), position or 0)


def checked_action(action: int) -> int:
    """The canonical number as an int; raises ValueError if it is none."""
    number = int(action)
    if not 0 <= number < N_ACTIONS:
        raise ValueError(f"action {action}, expected 0..{N_ACTIONS - 1}")
    return number


def checked_staged(action: int, position: int) -> int:
    """The staged action as an int; raises ValueError unless it is legal after `position`."""
    number = int(action)
    if not 0 <= number < N_STAGED or not LEGAL[position, number]:
        raise ValueError(f"staged action {action} after block {position}, expected a legal one")
    return number
