"""The rules an engineer would use instead of learning, with the interfaces of policies.

None copies another project's code; each applies a published idea to the observation:

* static pairs, full local, full offloading, random: no published idea;
* Neurosurgeon (Kang et al., ASPLOS 2017): the split of the whole network with the least
  predicted latency;
* Edgent (Li et al., IEEE TWC 2020): the deepest exit that a predicted deadline allows, at
  its fastest split;
* threshold (BranchyNet, Teerapittayanon et al., ICPR 2016; SPINN, Laskaridis et al.,
  MobiCom 2020): exits by confidence, splits by predicted cost;
* greedy: the least predicted cost, with a price on the error probability given this track's last
  answer;
* cascade: BranchyNet's rule within the frame, as SPINN distributes it. It is the baseline of the
  staged agent, with the same observations.

The last four have parameters, tuned on training drives by `agents.baselines.tuning`.
"""

from __future__ import annotations

from typing import Final

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
from cnn.topology import ACTIONS, N_EXITS, Action, action_index
from offload_env.batch_simulator import LOCAL_ARRAY
from offload_env.world import LOCAL, World
from testbed.policy.decision_points import ANSWER, BLOCK, EVALUATED, FRAME, STAGED, START
from testbed.policy.observer import STAGED_FIELDS
from testbed.policy.policies import Policy, StaticPolicy

FULL_LOCAL = Action(N_EXITS, N_EXITS)
FULL_OFFLOAD = Action(N_EXITS, 0)
_CONFIDENCE_AT: Final = next(f.index for f in STAGED_FIELDS if f.name == "stage_confidence")


class RulePolicy:
    """A rule without memory: it decides by the observation alone."""

    name: str
    space: Final = FRAME

    def reset(self) -> None:
        """Nothing to forget."""

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """Canonical action number for one observation."""
        return int(self.decide_batch(np.asarray(observation)[None])[0])

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
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
    """One exit earlier after a confident answer, one later after an uncertain one.

    The confidence rule of BranchyNet and SPINN, with the information that there is before a frame
    runs: the last answer on this track. Among the chosen exit's splits, the one with the least
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
    """Least predicted cost plus a price on the predicted error probability.

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


class CascadePolicy:
    """Evaluates exits in turn until one is confident enough: SPINN within the frame.

    Run on to the next exit and answer if it is confident. Otherwise continue on the device or send
    from there to the server, whichever is cheaper by the profile and the link's estimates.

    Args:
        world: training world; the share of frames that each exit leaves undecided is measured
            on its frames, as SPINN profiles its own.
        sure: calibrated confidence from which an exit's answer is used.
        last: exit whose answer is always used, on the device and on the server.
    """

    memoryless: Final = True
    space: Final = STAGED

    def __init__(self, world: World, sure: float, last: int) -> None:
        self.name = "spinn"
        self.sure, self.last = sure, last
        self._predict = Predictor(world)
        self._undecided = _undecided(world, sure, last)

    def reset(self) -> None:
        """Nothing to forget."""

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """Staged action for one observation."""
        return int(self.decide_batch(observation[None], np.array([point]))[0])

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Staged actions for a batch, int64 (B,)."""
        if points is None:
            points = np.full(len(observations), START)
        cost = self._predict.cost(raw_observation(observations))
        to_go = self._to_go(cost)
        chosen = np.full(len(cost), ANSWER, np.int64)
        confidence = 0.5 * (observations[:, _CONFIDENCE_AT] + 1.0)
        evaluated = EVALUATED[points]
        on = (evaluated < self.last) & ((evaluated == 0) | (confidence < self.sure))
        for p in range(self.last):
            here = on & (points == p)
            send = cost[:, action_index(self.last, p)] <= to_go[p]
            chosen[here] = np.where(send, action_index(self.last, p), LOCAL[p])[here]
        # Without the server the rule is BranchyNet's: on to the next exit.
        alone = on & (points >= N_EXITS)
        following = np.maximum(evaluated + 1, BLOCK[points])
        chosen[alone] = LOCAL_ARRAY[following[alone] - 1]
        return chosen

    def _to_go(self, cost: Floats) -> list[Floats]:
        """Expected cost of evaluating the next exit after block p = 0..last - 1, each float64 (B,).

        Computed from the end: the last exit's answer is used; an earlier exit ends the frame if it
        is confident, else the cheaper of sending and evaluating the next exit follows.
        """
        out: list[Floats] = []
        after = cost[:, LOCAL[self.last - 1]]
        for p in range(self.last - 1, -1, -1):
            q = self._undecided[p] if p + 1 < self.last else 0.0
            evaluate: Floats = (1.0 - q) * cost[:, LOCAL[p]] + q * after
            out.append(evaluate)
            after = np.minimum(evaluate, cost[:, action_index(self.last, p)])
        return out[::-1]


def _undecided(world: World, sure: float, last: int) -> list[float]:
    """Share of the training frames that exit p + 1 leaves undecided, of those still undecided."""
    open_frames = np.ones(len(world.table), bool)
    shares = []
    for exit in range(1, last + 1):
        before = max(int(open_frames.sum()), 1)
        open_frames = open_frames & (world.table.confidence[:, LOCAL[exit - 1]] < sure)
        shares.append(float(open_frames.sum()) / before)
    return shares
