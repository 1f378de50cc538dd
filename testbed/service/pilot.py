"""The policy as a deployed device runs it: checked, shadowed, guarded, replaceable.

`Pilot` is itself a `testbed.decide.policy.Policy`, so the device loop needs to know nothing of it.
Whatever the policy inside does, the pilot answers with an action: a policy that raises or
answers nonsense is rolled back if there is one before it, and otherwise overruled by the safe
action for this frame.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.action import N_ACTIONS
from testbed.decide.observation import OBS_DIM
from testbed.decide.policy import Policy
from testbed.service.log import event

REMEMBERED: Final = 64
"""Observations kept for the self-test of a new policy."""
MAX_SHADOW_ERRORS: Final = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Decision:
    """How one frame's action came about.

    Attributes:
        action: taken.
        policy_action: what the acting policy wanted; None if it failed.
        shadow_action: what the shadow policy would have done; None without one.
        decided_by: ``policy``, ``guard`` (it is not trusted) or ``safe`` (it failed).
        policy_hash: what stands for the acting policy's file.
        bundle_hash: what stands for the network.
        observation: float32 (OBS_DIM,), a copy.
    """

    action: int
    policy_action: int | None
    shadow_action: int | None
    decided_by: str
    policy_hash: str
    bundle_hash: str
    observation: NDArray[np.float32]


class Pilot:
    """Runs a policy, and perhaps a second one that only watches.

    Args:
        policy: acts.
        policy_hash: what stands for it in records and metrics.
        bundle_hash: what stands for the network there.
        safe_action: canonical number, taken where the policy may not or cannot decide.
        shadow: decides on the same observations without acting.
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
        self._decisions: dict[int, Decision] = {}
        self._seen = np.zeros((REMEMBERED, OBS_DIM), np.float32)
        self._n_seen = 0

    def use(
        self, policy: Policy, policy_hash: str, bundle_hash: str, shadow: Policy | None
    ) -> None:
        """Change the policies; call it between two frames."""
        self.name = policy.name
        self.policy, self.shadow = policy, shadow
        self.policy_hash, self.bundle_hash = policy_hash, bundle_hash
        self.shadow_errors = 0

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

    def decide(self, observation: NDArray[np.float32]) -> int:
        """An action for one observation, whatever happens inside."""
        self._seen[self._n_seen % REMEMBERED] = observation
        self._n_seen += 1
        wanted = self._ask_policy(observation)
        shadow = self._ask_shadow(observation)
        action, by = (self.safe_action, "safe") if wanted is None else (wanted, "policy")
        if wanted is not None and not self.trusted():
            action, by = self.safe_action, "guard"
        self._decisions[self._frame] = Decision(
            action,
            wanted,
            shadow,
            by,
            self.policy_hash,
            self.bundle_hash,
            observation.copy(),
        )
        return action

    def decide_batch(self, observations: NDArray[np.float32]) -> NDArray[np.int64]:
        """One decision a row, as `decide`."""
        return np.array([self.decide(row) for row in observations], np.int64)

    def _ask_policy(self, observation: NDArray[np.float32]) -> int | None:
        for _ in range(2):
            try:
                return checked_action(self.policy.decide(observation))
            except Exception as error:  # a policy's bug must not cost a frame
                self.errors += 1
                reason = f"{type(error).__name__}: {error}"
                if self.errors == 1 or self.errors % 1000 == 0:
                    event(_log, logging.ERROR, "policy failed", error=reason, count=self.errors)
                if not self.roll_back(reason):
                    break
        return None

    def _ask_shadow(self, observation: NDArray[np.float32]) -> int | None:
        if self.shadow is None:
            return None
        try:
            return checked_action(self.shadow.decide(observation))
        except Exception as error:  # it only watches
            self.shadow_errors += 1
            if self.shadow_errors >= MAX_SHADOW_ERRORS:
                event(_log, logging.ERROR, "shadow policy dropped", error=str(error))
                self.shadow = None
            return None


def checked_action(action: int) -> int:
    """The canonical number as an int; raises ValueError if it is none."""
    number = int(action)
    if not 0 <= number < N_ACTIONS:
        raise ValueError(f"action {action}, expected 0..{N_ACTIONS - 1}")
    return number
