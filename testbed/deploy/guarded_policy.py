"""The policy as a deployed device runs it: checked, shadowed, guarded, replaceable.

`GuardedPolicy` is itself a policy, once a frame or in stages as the one inside it is, so the
device loop needs to know nothing of it. Whatever the policy inside does, it answers with an
action: a policy that raises or answers nonsense is rolled back if there is one before it, and
otherwise overruled by the safe action for this frame. Policies of either kind may follow each
other, even within a frame: from where the device is, a decision is carried out as nearly as it can
be.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.outside import said
from testbed.deploy.decision_trace import DecisionTrace, ask
from testbed.deploy.log import event
from testbed.policy.decision_points import ANSWER, CANONICAL, REPAIR, has_timed_out
from testbed.policy.observer import OBS_DIM
from testbed.policy.staged_policies import AnyPolicy, is_staged

REMEMBERED: Final = 64
"""Observations kept for the self-test of a new policy."""
MAX_SHADOW_ERRORS: Final = 3

_log = logging.getLogger(__name__)


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
        shadow: is asked where the acting one is, without acting (`testbed.deploy.decision_trace`).
    """

    def __init__(
        self,
        policy: AnyPolicy,
        policy_hash: str,
        bundle_hash: str,
        safe_action: int,
        shadow: AnyPolicy | None = None,
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
        policy: AnyPolicy,
        policy_hash: str,
        bundle_hash: str,
        shadow: AnyPolicy | None,
    ) -> None:
        """Change the policies, between two frames or, after a failure, within one."""
        self.name = policy.name
        self.policy, self.shadow = policy, shadow
        self.policy_hash, self.bundle_hash = policy_hash, bundle_hash
        self.shadow_errors = 0
        self._shadowed = DecisionTrace.over()

    @property
    def staged(self) -> bool:
        """Whether the next frame is decided in stages; the guard's safe action is not."""
        return is_staged(self.policy) and self.trusted()

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

    def decide(self, observation: NDArray[np.float32], point: int | None = None) -> int:
        """An action, whatever happens inside.

        Args:
            observation: float32 (OBS_DIM,), or (STAGED_OBS_DIM,) with a stand.
            point: where the device is within the frame (`testbed.policy.decision_points`); None
            decides the whole frame.

        Returns:
            A canonical number, or with a stand a legal staged action.
        """
        if not point:
            self._begin(observation[:OBS_DIM])
        if self._settled:
            self._ask_shadow(observation, point)
            # Nothing is left to decide: on to the exit that was meant, or its answer.
            return int(REPAIR[point or 0, self._decisions[self._frame].action])
        wanted = self._ask_policy(observation, point)
        self._ask_shadow(observation, point)
        if wanted is None:
            action, by = self.safe_action, "safe"
        elif not self.trusted():
            action, by = self.safe_action, "guard"
        else:
            action, by = wanted, "policy"
        # Elsewhere than at the start a frame's action is repaired, a legal staged one is itself.
        taken = action if point is None else int(REPAIR[point, action])
        self._settled = by != "policy" or not is_staged(self.policy)
        self._note(taken, wanted, by, point)
        return taken

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """One decision a row, as `decide`."""
        at = [None] * len(observations) if points is None else points.tolist()
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

    def _note(self, taken: int, wanted: int | None, by: str, point: int | None) -> None:
        """Bring the frame's decision up to this stage."""
        before = self._decisions[self._frame]
        stays = taken == ANSWER or has_timed_out(point or 0)
        self._decisions[self._frame] = replace(
            before,
            action=before.action if stays else int(CANONICAL[taken]),
            policy_action=None if wanted is None else self._acted.action,
            policy_open=wanted is not None and self._acted.open,
            decided_by=by,
            policy_hash=self.policy_hash,
            bundle_hash=self.bundle_hash,
        )

    def _ask_policy(self, observation: NDArray[np.float32], point: int | None) -> int | None:
        for _ in range(2):
            try:
                wanted = ask(self.policy, observation, point)
                self._acted.follow(wanted, is_staged(self.policy))
                return wanted
            except Exception as error:  # a policy's bug must not cost a frame
                self.errors += 1
                reason = f"{type(error).__name__}: {said(error)}"
                if self.errors == 1 or self.errors % 1000 == 0:
                    event(_log, logging.ERROR, "policy failed", error=reason, count=self.errors)
                if not self.roll_back(reason):
                    break
        return None

    def _ask_shadow(self, observation: NDArray[np.float32], point: int | None) -> None:
        if self.shadow is None or not self._shadowed.reaches(point or 0):
            return
        try:
            wanted = ask(self.shadow, observation, point)
            self._shadowed.follow(wanted, is_staged(self.shadow))
        except Exception as error:  # it only watches
            self._shadowed = DecisionTrace.over()
            self.shadow_errors += 1
            if self.shadow_errors >= MAX_SHADOW_ERRORS:
                event(_log, logging.ERROR, "shadow policy dropped", error=said(error))
                self.shadow = None
        course = self._shadowed
        self._decisions[self._frame] = replace(
            self._decisions[self._frame], shadow_action=course.action, shadow_open=course.open
        )
