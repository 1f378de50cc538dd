"""The rules an engineer would use instead of learning, behind the one `Policy` interface.

None copies a peer's code; each applies a published idea to what the observation offers:

* static pairs, full local, full offloading, random: no idea at all;
* Neurosurgeon (Kang et al., ASPLOS 2017): the split of the whole network with the least
  predicted latency;
* Edgent (Li et al., IEEE TWC 2020): the deepest exit that a predicted deadline allows, at
  its fastest split;
* threshold (BranchyNet, Teerapittayanon et al., ICPR 2016; SPINN, Laskaridis et al.,
  MobiCom 2020): exits by confidence, splits by predicted cost;
* greedy: the least predicted cost, accuracy priced by what this track has shown so far.

The last three have parameters, tuned on training drives by `agents.baselines.tuning`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.baselines.prediction import (
    AT,
    EXITS,
    AccuracyTable,
    Floats,
    Predictor,
    best,
    raw_observation,
)
from cnn.topology import ACTIONS, N_EXITS, Action
from offload_env.world import World
from testbed.policy.policies import Policy, StaticPolicy

FULL_LOCAL = Action(N_EXITS, N_EXITS)
FULL_OFFLOAD = Action(N_EXITS, 0)


class RulePolicy:
    """A rule without memory of its own: all it knows is in the observation."""

    name: str

    def reset(self) -> None:
        """Nothing to forget."""

    def decide(self, observation: NDArray[np.float32]) -> int:
        """Canonical action number for one observation."""
        return int(self.decide_batch(np.asarray(observation)[None])[0])

    def decide_batch(self, observations: NDArray[np.float32]) -> NDArray[np.int64]:
        """Canonical action numbers for a batch."""
        return self.choose(raw_observation(observations))

    def choose(self, raw: Floats) -> NDArray[np.int64]:
        """Canonical action numbers for raw observations (B, OBS_DIM)."""
        raise NotImplementedError


class NeurosurgeonPolicy(RulePolicy):
    """Main exit, split with the least predicted latency."""

    def __init__(self, world: World) -> None:
        self.name = "neurosurgeon"
        self._predict = Predictor(world)
        self._whole = np.array([a.index for a in ACTIONS if a.exit == N_EXITS])

    def choose(self, raw: Floats) -> NDArray[np.int64]:
        """Least predicted latency among the splits of exit 5."""
        chosen: NDArray[np.int64] = self._whole[best(self._predict.delay_ms(raw)[:, self._whole])]
        return chosen


class EdgentPolicy(RulePolicy):
    """Deepest exit whose fastest split meets a latency budget, else the fastest action.

    Args:
        world: training world.
        budget_ms: predicted delay allowed.
    """

    def __init__(self, world: World, budget_ms: float) -> None:
        self.name = "edgent"
        self.budget_ms = budget_ms
        self._predict = Predictor(world)

    def choose(self, raw: Floats) -> NDArray[np.int64]:
        """Deeper exits first, faster splits among equals."""
        delay = self._predict.delay_ms(raw)
        meets = delay <= self.budget_ms
        # A step of one exit outweighs any delay; actions that miss the budget come last.
        key = np.where(meets, -1e6 * EXITS + delay, 1e9 + delay)
        return best(key)


class ThresholdPolicy(RulePolicy):
    """One exit earlier after a confident answer, one later after a doubtful one.

    The confidence rule of BranchyNet and SPINN with what is known before a frame runs:
    the last answer on this track. Among the chosen exit's splits, the one with the least
    predicted cost, as SPINN's scheduler chooses.

    Args:
        world: training world.
        sure: calibrated confidence from which the next frame leaves one exit earlier.
        error_probability: confidence below which it leaves one exit later.
        start: exit of a track's first frame.
    """

    def __init__(self, world: World, sure: float, error_probability: float, start: int) -> None:
        self.name = "threshold"
        self.sure, self.error_probability, self.start = sure, error_probability, start
        self._predict = Predictor(world)

    def choose(self, raw: Floats) -> NDArray[np.int64]:
        """Exit by the last confidence, split by predicted cost."""
        confidence = raw[:, AT["last_confidence"]]
        last = np.rint(raw[:, AT["last_exit"]])
        move = np.where(
            confidence < self.error_probability, 1, np.where(confidence >= self.sure, -1, 0)
        )
        exit = np.where(last < 0.5, self.start, np.clip(last + move, 1, N_EXITS))
        cost = np.where(exit[:, None] == EXITS, self._predict.cost(raw), np.inf)
        return best(cost)


class GreedyPolicy(RulePolicy):
    """Least predicted cost plus a price on the predicted chance of a wrong answer.

    Args:
        world: training world.
        price: cost of one wrong answer.
        accuracy_table: shared table of P(correct), measured on training frames.
    """

    def __init__(self, world: World, price: float, accuracy_table: AccuracyTable) -> None:
        self.name = "greedy"
        self.price = price
        self._predict, self._accuracy_table = Predictor(world), accuracy_table

    def choose(self, raw: Floats) -> NDArray[np.int64]:
        """Least expected cost now."""
        return best(self._predict.cost(raw) + self.price * (1.0 - self._accuracy_table(raw)))


def static_policies() -> list[Policy]:
    """All twenty static pairs."""
    return [StaticPolicy(action) for action in ACTIONS]
