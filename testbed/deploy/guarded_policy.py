"""The policy as a deployed device runs it: checked, shadowed, guarded, replaceable.

`GuardedPolicy` is itself a policy, in the space of the one inside it, so the device
loop needs to know nothing of it. Whatever the policy inside does, it answers with an
action: a policy that raises or answers nonsense is rolled back if there is one before it, and
otherwise overruled by the safe action for this frame. Policies of either space may follow each
other, even within a frame: where the device is by then, a decision is carried out as nearly as it
can be.

Beside it a shadow policy may watch. A staged one is asked as the frame begins and again after every
exit that it wanted to evaluate, if that exit was in fact evaluated. The device evaluates what the
acting policy wants: a shadow that would go on elsewhere cannot be asked again, since nobody knows
what it would have seen there. Its trace is then left open. After a time-out only the acting policy
is asked, and what its frame amounts to stays the pair sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from cnn.common.outside import said
from cnn.topology import ACTIONS, N_EXITS
from testbed.deploy.log import event
from testbed.policy.decision_points import (
    ANSWER,
    CANONICAL,
    FRAME,
    LEGAL,
    REPAIR,
    STAGED,
    START,
    DecisionSpace,
    has_timed_out,
)
from testbed.policy.observer import OBS_DIM, normalise
from testbed.policy.policies import Policy

REMEMBERED: Final = 64
"""Observations kept for the self-test of a new policy."""
MAX_SHADOW_ERRORS: Final = 3

_log = logging.getLogger(__name__)

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

    def follow(self, number: int, space: DecisionSpace) -> None:
        """One more decision of the policy, in its `space`, as `ask` gives it."""
        if number == ANSWER:
            self.open = False
            return
        action = ACTIONS[int(CANONICAL[number])]
        if self.action is None or ACTIONS[self.action].is_local:
            self.action = action.index
        self.open = space is STAGED and action.is_local and action.exit < N_EXITS


def ask(policy: Policy, observation: NDArray[np.float32], point: int = START) -> int:
    """What a policy decides, checked.

    Args:
        policy: is asked in its own space; one that decides once a frame is asked as at its start.
        observation: float32 (OBS_DIM,) as the frame begins, or (STAGED_OBS_DIM,).
        point: where the device is within the frame.

    Raises:
        ValueError: if it is no action of the policy's space, or not legal at `point`.
    """
    space = policy.space
    if space is FRAME:
        number = int(policy.decide(observation[:OBS_DIM]))
    else:
        if len(observation) == OBS_DIM:
            observation = np.concatenate([observation, STAGE_START])
        number = int(policy.decide(observation, point))
    if not 0 <= number < space.n_actions or (space is STAGED and not LEGAL[point, number]):
        raise ValueError(f"action {number} at decision point {point}, expected a legal one")
    return number


@dataclass(frozen=True, slots=True)
class Decision:
    """How one frame's action came about; of a staged frame, how all its stages came out.

    Attributes:
        action: taken, canonical; in stages the one they amount to.
        policy_action: what the acting policy wanted; None if it failed.
        shadow_action: what the shadow policy would have done; None without one.
        decided_by: ``policy``, ``guard`` (it is not trusted) or ``safe`` (it failed).
        policy_hash: what stands for the acting policy's file.
        bundle_hash: what stands for the network.
        observation: float32 (OBS_DIM,), a copy, as the frame began.
        policy_open: `policy_action` is a look after which the policy was not asked again: what
            it amounts to is not known (a staged policy that did not act).
        shadow_open: the same of `shadow_action`.
    """

    action: int
    policy_action: int | None
    shadow_action: int | None
    decided_by: str
    policy_hash: str
    bundle_hash: str
    observation: NDArray[np.float32]
    policy_open: bool = False
    shadow_open: bool = False


class GuardedPolicy:
    """Runs a policy, and perhaps a second one that only watches.

    Args:
        policy: acts.
        policy_hash: what stands for it in records and metrics.
        bundle_hash: what stands for the network there.
        safe_action: canonical number, taken where the policy may not or cannot decide.
        shadow: is asked where the acting one is, without acting.
    """

    def __init__(
        self,
        policy: Policy,
        policy_hash: str,
        bundle_hash: str,
        safe_action: int,
        shadow: Policy | None = None,
    ) -> None:
        self.use(policy, policy_hash, bundle_hash, shadow)
        self.safe_action = safe_action
        self.trusted: Callable[[], bool] = lambda: True
        """Asked at every frame: may the policy act? The guard's word."""
        self.roll_back: Callable[[str], bool] = lambda reason: False
        """Called when the policy failed: puts the one before it back if there is one."""
        self.errors = 0
        self._frame = 0
        self._settled = False
        self._acted = DecisionTrace.over()
        self._decisions: dict[int, Decision] = {}
        self._seen = np.zeros((REMEMBERED, OBS_DIM), np.float32)
        self._n_seen = 0

    def use(
        self,
        policy: Policy,
        policy_hash: str,
        bundle_hash: str,
        shadow: Policy | None,
    ) -> None:
        """Change the policies, between two frames or, after a failure, within one."""
        self.name = policy.name
        self.policy, self.shadow = policy, shadow
        self.policy_hash, self.bundle_hash = policy_hash, bundle_hash
        self.shadow_errors = 0
        self._shadowed = DecisionTrace.over()

    @property
    def space(self) -> DecisionSpace:
        """The acting policy's; the guard's safe action settles a whole frame."""
        return STAGED if self.policy.space is STAGED and self.trusted() else FRAME

    def observations(self) -> NDArray[np.float32]:
        """The last observations met, float32 (n, OBS_DIM), n at most `REMEMBERED`."""
        return self._seen[: min(self._n_seen, REMEMBERED)].copy()

    def begin(self, frame_id: int) -> None:
        """The next decision is this frame's."""
        self._frame = frame_id

    def take(self, frame_id: int) -> Decision | None:
        """A frame's decision, once; None if it had none (skipped)."""
        return self._decisions.pop(frame_id, None)

    def reset(self) -> None:
        """Start a drive."""
        self._decisions.clear()
        self.policy.reset()
        if self.shadow is not None:
            self.shadow.reset()

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """An action that is legal at `point`, whatever happens inside.

        Args:
            observation: float32 (OBS_DIM,) in the frame space, else (STAGED_OBS_DIM,).
            point: where the device is within the frame.
        """
        if point == START:
            self._begin(observation[:OBS_DIM])
        if self._settled:
            self._ask_shadow(observation, point)
            # Nothing is left to decide: on to the exit that was meant, or its answer.
            return int(REPAIR[point, self._decisions[self._frame].action])
        wanted = self._ask_policy(observation, point)
        self._ask_shadow(observation, point)
        if wanted is None:
            action, by = self.safe_action, "safe"
        elif not self.trusted():
            action, by = self.safe_action, "guard"
        else:
            action, by = wanted, "policy"
        taken = int(REPAIR[point, action])  # a legal one is itself
        self._settled = by != "policy" or self.policy.space is FRAME
        self._note(taken, wanted, by, point)
        return taken

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """One decision a row, as `decide`."""
        at = [START] * len(observations) if points is None else points.tolist()
        pairs = zip(observations, at, strict=True)
        return np.array([self.decide(row, p) for row, p in pairs], np.int64)

    def _begin(self, base: NDArray[np.float32]) -> None:
        """A frame begins: its decision is still to be made."""
        self._seen[self._n_seen % REMEMBERED] = base
        self._n_seen += 1
        self._settled = False
        self._acted, self._shadowed = DecisionTrace(), DecisionTrace()
        self._decisions[self._frame] = Decision(
            self.safe_action, None, None, "safe", self.policy_hash, self.bundle_hash, base.copy()
        )

    def _note(self, taken: int, wanted: int | None, by: str, point: int) -> None:
        """Bring the frame's decision up to this stage."""
        before = self._decisions[self._frame]
        stays = taken == ANSWER or has_timed_out(point)
        self._decisions[self._frame] = replace(
            before,
            action=before.action if stays else int(CANONICAL[taken]),
            policy_action=None if wanted is None else self._acted.action,
            policy_open=wanted is not None and self._acted.open,
            decided_by=by,
            policy_hash=self.policy_hash,
            bundle_hash=self.bundle_hash,
        )

    def _ask_policy(self, observation: NDArray[np.float32], point: int) -> int | None:
        for _ in range(2):
            try:
                wanted = ask(self.policy, observation, point)
                self._acted.follow(wanted, self.policy.space)
                return wanted
            except Exception as error:  # a policy's bug must not cost a frame
                self.errors += 1
                reason = f"{type(error).__name__}: {said(error)}"
                if self.errors == 1 or self.errors % 1000 == 0:
                    event(_log, logging.ERROR, "policy failed", error=reason, count=self.errors)
                if not self.roll_back(reason):
                    break
        return None

    def _ask_shadow(self, observation: NDArray[np.float32], point: int) -> None:
        if self.shadow is None or not self._shadowed.reaches(point):
            return
        try:
            wanted = ask(self.shadow, observation, point)
            self._shadowed.follow(wanted, self.shadow.space)
        except Exception as error:  # it only watches
            self._shadowed = DecisionTrace.over()
            self.shadow_errors += 1
            if self.shadow_errors >= MAX_SHADOW_ERRORS:
                event(_log, logging.ERROR, "shadow policy dropped", error=said(error))
                self.shadow = None
        trace = self._shadowed
        self._decisions[self._frame] = replace(
            self._decisions[self._frame], shadow_action=trace.action, shadow_open=trace.open
        )
