"""A policy that sometimes explores, and records the propensity of each decision.

With probability epsilon the action is drawn uniformly from all of the network's (epsilon-greedy).
Records that hold every decision's propensity and observation let another policy's cost be
estimated without driving it (`agents.off_policy`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnn.common.errors import ConfigError
from testbed.policy.decision_points import START
from testbed.policy.policies import Feedback, Learner, Policy

Frame = TypeVar("Frame")


class ExploringPolicy:
    """Another policy, except that each decision is random with probability `epsilon`.

    Args:
        policy: decides otherwise.
        epsilon: share of random decisions, [0, 1].
        seed: of the random decisions.

    Attributes:
        propensities: float64 (B,), of the last decisions.

    Raises:
        ConfigError: if epsilon is no share.
    """

    def __init__(self, policy: Policy, epsilon: float, seed: int = 0) -> None:
        if not 0 <= epsilon <= 1:
            raise ConfigError(
                f"explore {epsilon}", expected="a share in 0..1", hint="try 0.05, or 0 for never"
            )
        self.name = f"{policy.name} explore {epsilon:g}"
        self.policy, self.epsilon, self._seed = policy, epsilon, seed
        self.space = policy.space
        self.reset()

    def reset(self) -> None:
        """Start a drive; the random decisions begin anew."""
        self.policy.reset()
        self._rng = np.random.default_rng(self._seed)
        self.propensities = np.ones(0)
        self._frame = 0
        self._decisions: dict[int, tuple[float, NDArray[np.float32]]] = {}

    def following(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames of a run, counted: the decision after each one is kept as its own."""
        for self._frame, frame in enumerate(frames):
            yield frame

    def column_types(self) -> dict[str, pa.DataType]:
        """Columns that records hold besides `Measurement`."""
        return {
            "propensity": pa.float64(),
            "observation": pa.list_(pa.float32(), self.space.obs_dim),
        }

    def columns(self, frame_id: int) -> dict[str, Any]:
        """Their values for a frame of `following`, once; NaN and zeros if it had no decision."""
        nothing = np.nan, np.zeros(self.space.obs_dim, np.float32)
        propensity, observation = self._decisions.pop(frame_id, nothing)
        return {"propensity": propensity, "observation": observation}

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """An action for one observation; kept for `columns`."""
        wanted = np.array([self.policy.decide(observation)], np.int64)
        action = int(self._explore(wanted)[0])
        self._decisions[self._frame] = float(self.propensities[0]), observation.copy()
        return action

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Independent decisions, one a row."""
        return self._explore(self.policy.decide_batch(observations))

    def learn(self, feedback: Feedback) -> None:
        """Passed on to a policy that learns."""
        if isinstance(self.policy, Learner):
            self.policy.learn(feedback)

    def _explore(self, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        tries = self._rng.random(len(wanted)) < self.epsilon
        actions = np.where(
            tries, self._rng.integers(self.space.n_actions, size=len(wanted)), wanted
        )
        by_chance = self.epsilon / self.space.n_actions
        self.propensities = by_chance + (1.0 - self.epsilon) * (actions == wanted)
        return actions
