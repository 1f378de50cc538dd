"""The policy of a campaign: a list of actions, at the price of a decision."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.topology import N_ACTIONS
from testbed.policy.observer import OBS_DIM
from testbed.policy.policies import NetworkPolicy

POLICY_WIDTHS: Final = (64, 64)
"""Hidden layers of the policies that `sliproad agent train` makes unless told otherwise."""


class Schedule:
    """A policy that plays a list of actions, and takes as long as one that thinks.

    A network of the usual size decides beside it, and nobody listens: what a decision costs
    belongs to what a frame costs. Asked again with the same observation, it repeats itself.
    """

    name = "campaign"
    memoryless: Final = True

    def __init__(self, actions: Sequence[int]) -> None:
        self._actions = list(actions)
        sizes = (OBS_DIM, *POLICY_WIDTHS, N_ACTIONS)
        weights = [np.zeros((n, m), np.float32) for m, n in pairwise(sizes)]
        self._network = NetworkPolicy(weights, [np.zeros(n, np.float32) for n in sizes[1:]])
        self.reset()

    def reset(self) -> None:
        """Begin with the first action again."""
        self._at = -1
        self._seen: NDArray[np.float32] | None = None

    def decide(self, observation: NDArray[np.float32]) -> int:
        """The next action."""
        self._network.decide(observation)
        if observation is not self._seen:
            self._at, self._seen = self._at + 1, observation
        return self._actions[self._at]

    def decide_batch(self, observations: NDArray[np.float32]) -> NDArray[np.int64]:
        """The next action, for every row."""
        return np.full(len(observations), self.decide(observations[0]), np.int64)
