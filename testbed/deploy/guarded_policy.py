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
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.outside import said
from cnn.topology import Topology
from testbed.deploy.log import event
from testbed.policy.decision_points import START, DecisionPoints, DecisionSpace, decision_points
from testbed.policy.observation_fields import schema_of
from testbed.policy.policies import Policy

REMEMBERED: Final = 64
"""Number of observations kept for the self-test of a new policy."""
MAX_SHADOW_ERRORS: Final = 3

_log = logging.getLogger(__name__)


@lru_cache(maxsize=64)
def stage_start(topology: Topology) -> NDArray[np.float32]:
    """The elements that the staged observation adds, before any exit is evaluated.

    Returns:
        float32 (staged_obs_dim - obs_dim,), read-only.
    """
    schema = schema_of(topology)
    raw = {"stands_at_0": 1.0, "stage_agrees_track": 0.5, "stage_agrees_frame": 0.5}
    added = schema.staged_fields[schema.obs_dim :]
    start = schema.normalise([raw.get(field.name, 0.0) for field in added], schema.obs_dim)
    start.setflags(write=False)
    return start


@dataclass(slots=True)
class DecisionTrace:
    """The decisions of one policy on one frame, so far.

    Attributes:
        points: of the network.
        action: canonical action that they result in; None before the first.
        open: the policy wants to evaluate an exit, and its next decision is not known. True
            before the first decision. A trace that is neither decided nor open is of a policy that
            is not asked any more.
    """

    points: DecisionPoints
    action: int | None = None
    open: bool = True

    def reaches(self, point: int) -> bool:
        """Whether a shadow policy is asked at `point`."""
        if self.action is None or not self.open:
            return self.open and point == START
        exit = self.points.topology.actions[self.action].exit  # an early one: the trace is open
        return int(self.points.point[0, exit, exit]) == point

    def follow(self, number: int, space: DecisionSpace) -> None:
        """One more decision of the policy, in its `space`, as `ask` returns it."""
        if number == self.points.answer:
            self.open = False
            return
        action, topology = self.points.pair(number), self.points.topology
        if self.action is None or topology.is_local[self.action]:
            self.action = action.index
        self.open = space.is_staged and action.is_local and action.exit < topology.n_blocks


def ask(policy: Policy, observation: NDArray[np.float32], point: int = START) -> int:
    """The decision of a policy, checked.

    Args:
        policy: asked in its own space; a frame policy is asked as at the start of the frame.
        observation: float32 (obs_dim,) as the frame begins, or (staged_obs_dim,).
        point: where the device is within the frame.

    Raises:
        ValueError: if it is no action of the policy's space, or not legal at `point`.
    """
    space = policy.space
    points = decision_points(space.topology)
    if not space.is_staged:
        number = int(policy.decide(observation[: space.obs_dim]))
    else:
        if len(observation) == points.frame.obs_dim:
            observation = np.concatenate([observation, stage_start(space.topology)])
        number = int(policy.decide(observation, point))
    known = 0 <= number < space.n_actions
    if not known or (space.is_staged and not points.legal[point, number]):
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
        observation: float32 (obs_dim,), a copy, as the frame began.
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
        policy: makes the decisions; all later policies are of its network, too.
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
        self._points = decision_points(policy.space.topology)
        self._obs_dim = self._points.frame.obs_dim
        self.use(policy, policy_hash, bundle_hash, shadow)
        self.safe_action = safe_action
        self.trusted: Callable[[], bool] = lambda: True
        """Called at every frame: whether the guard lets the policy act."""
        self.roll_back: Callable[[str], bool] = lambda reason: False
        """Called when the policy failed: puts the previous one back if there is one."""
        self.errors = 0
        self._frame = 0
        self._settled = False
        self._acted = self._over()
        self._decisions: dict[int, Decision] = {}
        self._seen = np.zeros((REMEMBERED, self._obs_dim), np.float32)
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
        self._shadowed = self._over()

    def _over(self) -> DecisionTrace:
        return DecisionTrace(self._points, open=False)

    @property
    def space(self) -> DecisionSpace:
        """The acting policy's; the guard's safe action settles a whole frame."""
        staged = self.policy.space.is_staged and self.trusted()
        return self._points.staged if staged else self._points.frame

    def observations(self) -> NDArray[np.float32]:
        """The last observations, float32 (n, obs_dim), n at most `REMEMBERED`."""
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
            observation: float32 (`space.obs_dim`,).
            point: where the device is within the frame.
        """
        repair = self._points.repair
        if point == START:
            self._begin(observation[: self._obs_dim])
        if self._settled:
            self._ask_shadow(observation, point)
            # Nothing is left to decide: run on to the intended exit, or answer with it.
            return int(repair[point, self._decisions[self._frame].action])
        wanted = self._ask_policy(observation, point)
        self._ask_shadow(observation, point)
        if wanted is None:
            action, by = self.safe_action, "safe"
        elif not self.trusted():
            action, by = self.safe_action, "guard"
        else:
            action, by = wanted, "policy"
        taken = int(repair[point, action])  # a legal one is itself
        self._settled = by != "policy" or not self.policy.space.is_staged
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
        self._acted, self._shadowed = DecisionTrace(self._points), DecisionTrace(self._points)
        self._decisions[self._frame] = Decision(
            self.safe_action, None, None, "safe", self.policy_hash, self.bundle_hash, base.copy()
        )

    def _note(self, taken: int, wanted: int | None, by: str, point: int) -> None:
        """Update the frame's decision with this stage."""
        before, points = self._decisions[self._frame], self._points
        stays = taken == points.answer or points.has_timed_out(point)
        self._decisions[self._frame] = replace(
            before,
            action=before.action if stays else int(points.canonical[taken]),
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
            self._shadowed = self._over()
            self.shadow_errors += 1
            if self.shadow_errors >= MAX_SHADOW_ERRORS:
                event(_log, logging.ERROR, "shadow policy dropped", error=said(error))
                self.shadow = None
        trace = self._shadowed
        self._decisions[self._frame] = replace(
            self._decisions[self._frame], shadow_action=trace.action, shadow_open=trace.open
        )
