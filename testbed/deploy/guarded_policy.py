"""The policy of a deployed device: checked, shadowed, guarded, replaceable.

`GuardedPolicy` is itself a policy, in the space of its inner policy, so the device loop does not
need to know about it. It always answers with a valid action: a policy that raises or returns an
invalid action is rolled back if there is an earlier one, and otherwise the safe action replaces its
decision for this frame. Policies of either space may follow each other, even within a frame: a
decision is then carried out as closely as the current decision point allows.

A shadow policy may watch beside it. A staged shadow is asked at the start of a frame and again
after every exit that it wanted to evaluate, if that exit was in fact evaluated. The device
evaluates the exits of the acting policy: if the shadow would continue elsewhere it cannot be asked
again, since its next observation is not known. Its trace is then left open. After a time-out only
the acting policy is asked, and the result of its frame stays the pair sent.
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
"""Number of observations kept for the self-test of a new policy."""
MAX_SHADOW_ERRORS: Final = 3

_log = logging.getLogger(__name__)

STAGE_START: Final[NDArray[np.float32]] = normalise([1, 0, 0, 0, 0, 0, 0.5, 0.5, 0, 0], OBS_DIM)
"""float32 (10,): the elements that the staged observation adds, before any exit is evaluated."""


@dataclass(slots=True)
class DecisionTrace:
    """The decisions of one policy on one frame, so far.

    Attributes:
        action: canonical action that they result in; None before the first.
        open: the policy wants to evaluate an exit, and its next decision is not known. True
            before the first decision.
    """

    action: int | None = None
    open: bool = True

    @classmethod
    def over(cls) -> Self:
        """A trace without any known decision, whose policy is not asked any more."""
        return cls(None, False)

    def reaches(self, point: int) -> bool:
        """Whether a shadow policy is asked at `point`."""
        if self.action is None:
            return self.open and point == 0
        return self.open and ACTIONS[self.action].exit == point

    def follow(self, number: int, space: DecisionSpace) -> None:
        """One more decision of the policy, in its `space`, as `ask` returns it."""
        if number == ANSWER:
            self.open = False
            return
        action = ACTIONS[int(CANONICAL[number])]
        if self.action is None or ACTIONS[self.action].is_local:
            self.action = action.index
        self.open = space is STAGED and action.is_local and action.exit < N_EXITS


def ask(policy: Policy, observation: NDArray[np.float32], point: int = START) -> int:
    """The decision of a policy, checked.

    Args:
        policy: asked in its own space; a frame policy is asked as at the start of the frame.
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
    """The origin of one frame's action; of a staged frame, the result of all its decisions.

    Attributes:
        action: taken, canonical; of a staged frame, the result of its decisions.
        policy_action: the acting policy's choice; None if it failed.
        shadow_action: the shadow policy's choice; None without one.
        decided_by: ``policy``, ``guard`` (it is not trusted) or ``safe`` (it failed).
        policy_hash: identifies the acting policy's file.
        bundle_hash: identifies the network.
        observation: float32 (OBS_DIM,), a copy, as the frame began.
        policy_open: `policy_action` evaluates an exit, and the policy was not asked again: its
            final action is not known (a staged policy that did not act).
        shadow_open: the same for `shadow_action`.
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
    """Runs a policy, and perhaps a second one as a shadow.

    Args:
        policy: makes the decisions.
        policy_hash: identifies it in records and metrics.
        bundle_hash: identifies the network there.
        safe_action: canonical number, taken if the policy may not or cannot decide.
        shadow: asked like the acting policy, without acting.
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
        """Called at every frame: whether the guard lets the policy act."""
        self.roll_back: Callable[[str], bool] = lambda reason: False
        """Called when the policy failed: puts the previous one back if there is one."""
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
        """The last observations, float32 (n, OBS_DIM), n at most `REMEMBERED`."""
        return self._seen[: min(self._n_seen, REMEMBERED)].copy()

    def begin(self, frame_id: int) -> None:
        """The next decision belongs to this frame."""
        self._frame = frame_id

    def take(self, frame_id: int) -> Decision | None:
        """A frame's decision, returned once; None if it had none (skipped)."""
        return self._decisions.pop(frame_id, None)

    def reset(self) -> None:
        """Start a drive."""
        self._decisions.clear()
        self.policy.reset()
        if self.shadow is not None:
            self.shadow.reset()

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """An action that is legal at `point`, whatever the inner policy does.

        Args:
            observation: float32 (OBS_DIM,) in the frame space, else (STAGED_OBS_DIM,).
            point: where the device is within the frame.
        """
        if point == START:
            self._begin(observation[:OBS_DIM])
        if self._settled:
            self._ask_shadow(observation, point)
            # Nothing is left to decide: run on to the intended exit, or answer with it.
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
        """Update the frame's decision with this stage."""
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
        except Exception as error:  # the shadow only watches
            self._shadowed = DecisionTrace.over()
            self.shadow_errors += 1
            if self.shadow_errors >= MAX_SHADOW_ERRORS:
                event(_log, logging.ERROR, "shadow policy dropped", error=said(error))
                self.shadow = None
        trace = self._shadowed
        self._decisions[self._frame] = replace(
            self._decisions[self._frame], shadow_action=trace.action, shadow_open=trace.open
        )
