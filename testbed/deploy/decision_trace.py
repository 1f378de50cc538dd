"""What one policy decides along a frame, whether it acts or only watches.

A policy that decides once a frame is asked as the frame begins. A staged one is asked there and
again after every exit it wanted to look at, if that exit was in fact looked at. The device looks
where the acting policy wants: a staged shadow that would look elsewhere cannot be asked on, since
nobody knows what it would have seen there. Its course is then left open. After giving up waiting
for an answer only the acting policy is asked, and what its frame amounts to stays the pair sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self, cast

import numpy as np
from numpy.typing import NDArray

from cnn.topology import ACTIONS, N_ACTIONS, N_EXITS
from testbed.policy.decision_points import ANSWER, CANONICAL, LEGAL, N_STAGED
from testbed.policy.observer import OBS_DIM, normalise
from testbed.policy.policies import Policy
from testbed.policy.staged_policies import AnyPolicy, is_staged

STAGE_START: Final[NDArray[np.float32]] = normalise([1, 0, 0, 0, 0, 0, 0.5, 0.5, 0, 0], OBS_DIM)
"""float32 (10,): what the staged observation adds before anything was looked at."""


@dataclass(slots=True)
class DecisionTrace:
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

    def reaches(self, point: int) -> bool:
        """Whether a policy that only watches is to be asked at `point`."""
        if self.action is None:
            return self.open and point == 0
        return self.open and ACTIONS[self.action].exit == point

    def follow(self, number: int, staged: bool) -> None:
        """One more decision of the policy, a `staged` one or not, as `ask` gives it."""
        if number == ANSWER:
            self.open = False
            return
        action = ACTIONS[int(CANONICAL[number])]
        if self.action is None or ACTIONS[self.action].is_local:
            self.action = action.index
        self.open = staged and action.is_local and action.exit < N_EXITS


def ask(policy: AnyPolicy, observation: NDArray[np.float32], point: int | None) -> int:
    """What a policy of either kind decides, checked.

    Args:
        policy: is asked; one that decides once a frame sees the first OBS_DIM elements.
        observation: float32 (OBS_DIM,), or (STAGED_OBS_DIM,) with a stand.
        point: where the device is within the frame; None as the frame begins.

    Raises:
        ValueError: if it is no canonical action or, of a staged policy, none that is legal there.
    """
    if not is_staged(policy):
        return checked_action(cast(Policy, policy).decide(observation[:OBS_DIM]))
    if point is None:
        observation = np.concatenate([observation, STAGE_START])
    return checked_staged(policy.decide(observation, point or 0), point or 0)


def checked_action(action: int) -> int:
    """The canonical number as an int; raises ValueError if it is none."""
    number = int(action)
    if not 0 <= number < N_ACTIONS:
        raise ValueError(f"action {action}, expected 0..{N_ACTIONS - 1}")
    return number


def checked_staged(action: int, point: int) -> int:
    """The staged action as an int; raises ValueError unless it is legal at `point`."""
    number = int(action)
    if not 0 <= number < N_STAGED or not LEGAL[point, number]:
        raise ValueError(f"staged action {action} at stand {point}, expected a legal one")
    return number
