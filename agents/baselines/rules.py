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

from agents.baselines.prediction import AccuracyTable, Floats, Predictor, best
from cnn.topology import Topology
from offload_env.world import World
from testbed.policy.decision_points import START, decision_points
from testbed.policy.policies import StaticPolicy


def full_local(topology: Topology) -> StaticPolicy:
    """Full local processing: the main exit, unsplit."""
    return StaticPolicy(topology.main, "full-local", topology)


def static_policies(topology: Topology) -> list[StaticPolicy]:
    """Every action of a network, always taken."""
    return [StaticPolicy(action, topology=topology) for action in topology.actions]


class RulePolicy:
    """A rule without memory: it decides by the observation alone.

    Args:
        name: shown in tables.
        world: training world.
    """

    def __init__(self, name: str, world: World) -> None:
        self.name = name
        self.topology = world.topology
        self.space = decision_points(self.topology).frame
        self._predict = Predictor(world)

    def reset(self) -> None:
        """Nothing to forget."""

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """Canonical action number for one observation."""
        return int(self.decide_batch(np.asarray(observation)[None])[0])

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Canonical action numbers for a batch."""
        return self.choose(self._predict.read(observations))

    def choose(self, raw: Floats) -> NDArray[np.int64]:
        """Canonical action numbers for raw observations (B, obs_dim)."""
        raise NotImplementedError


class NeurosurgeonPolicy(RulePolicy):
    """Main exit, split with the least predicted latency."""

    def __init__(self, world: World) -> None:
        super().__init__("neurosurgeon", world)
        self._whole = np.flatnonzero(self.topology.exit_of == self.topology.n_blocks)

    def choose(self, raw: Floats) -> NDArray[np.int64]:
        """Least predicted latency among the splits of the main exit."""
        chosen: NDArray[np.int64] = self._whole[best(self._predict.delay_ms(raw)[:, self._whole])]
        return chosen


class EdgentPolicy(RulePolicy):
    """Deepest exit whose fastest split meets a latency budget, else the fastest action.

    Args:
        world: training world.
        budget_ms: predicted delay allowed.
    """

    def __init__(self, world: World, budget_ms: float) -> None:
        super().__init__("edgent", world)
        self.budget_ms = budget_ms

    def choose(self, raw: Floats) -> NDArray[np.int64]:
        """Deeper exits first, faster splits among equals."""
        delay = self._predict.delay_ms(raw)
        meets = delay <= self.budget_ms
        # A step of one exit outweighs any delay; actions that miss the budget come last.
        key = np.where(meets, -1e6 * self.topology.exit_of + delay, 1e9 + delay)
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
        super().__init__("threshold", world)
        self.sure, self.error_probability, self.start = sure, error_probability, start

    def choose(self, raw: Floats) -> NDArray[np.int64]:
        """Exit by the last confidence, split by predicted cost."""
        at, place = self._predict.read.at, self.topology.exit_place
        confidence = raw[:, at["last_confidence"]]
        last = place[np.rint(raw[:, at["last_exit"]]).astype(np.int64)]
        move = np.where(
            confidence < self.error_probability, 1, np.where(confidence >= self.sure, -1, 0)
        )
        moved = np.clip(last + move, 0, self.topology.n_exits - 1)
        chosen = np.where(last < 0, place[self.start], moved)
        of_action = place[self.topology.exit_of]
        return best(np.where(chosen[:, None] == of_action, self._predict.cost(raw), np.inf))


class GreedyPolicy(RulePolicy):
    """Least predicted cost plus a price on the predicted error probability.

    Args:
        world: training world.
        price: cost of one wrong answer.
        accuracy_table: shared table of P(correct), measured on training frames.
    """

    def __init__(self, world: World, price: float, accuracy_table: AccuracyTable) -> None:
        super().__init__("greedy", world)
        self.price, self._accuracy_table = price, accuracy_table

    def choose(self, raw: Floats) -> NDArray[np.int64]:
        """Least expected cost now."""
        return best(self._predict.cost(raw) + self.price * (1.0 - self._accuracy_table(raw)))


class CascadePolicy:
    """Evaluates exits in turn until one is confident enough: SPINN within the frame.

    Run on to the next exit and answer if it is confident. Otherwise continue on the device or send
    from the next split to the server, whichever is cheaper by the profile and the link's estimates.

    Args:
        world: training world; the share of frames that each exit leaves undecided is measured
            on its frames, as SPINN profiles its own.
        sure: calibrated confidence from which an exit's answer is used.
        last: exit whose answer is always used, on the device and on the server.
    """

    memoryless: Final = True

    def __init__(self, world: World, sure: float, last: int) -> None:
        topology = world.topology
        at = decision_points(topology)
        self.name = "spinn"
        self.space = at.staged
        self.sure, self.last = sure, last
        self._predict = Predictor(world)
        self._confidence_at = self._predict.read.at["stage_confidence"]
        self._answer, self._evaluated = at.answer, at.evaluated
        # By point, the action that evaluates the next exit. The first points are those before a
        # time-out, by the number of exits evaluated; by these, the action that sends, if any.
        legal = at.legal
        self._evaluate = np.array(
            [next(a for a in at.evaluating if legal[p, a]) for p in range(at.n_points)]
        )
        self._until = int(topology.exit_place[last]) + 1
        to_last = [a for a in at.sending if topology.exit_of[a] == last]
        self._send = [next((a for a in to_last if legal[p, a]), None) for p in range(self._until)]
        self._undecided = _undecided(world, sure, self._evaluate[: self._until])

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
        cost = self._predict.cost(self._predict.read(observations))
        to_go = self._to_go(cost)
        confidence = 0.5 * (observations[:, self._confidence_at] + 1.0)
        evaluated = self._evaluated[points]
        on = (evaluated < self.last) & ((evaluated == 0) | (confidence < self.sure))
        # Without the server the rule is BranchyNet's: on to the next exit.
        chosen: NDArray[np.int64] = np.where(on, self._evaluate[points], self._answer)
        for p, send in enumerate(self._send):
            if send is not None:
                chosen[on & (points == p) & (cost[:, send] <= to_go[p])] = send
        return chosen

    def _to_go(self, cost: Floats) -> list[Floats]:
        """Expected cost of evaluating the next exit at each point before a time-out, (B,) each.

        Computed from the end: the last exit's answer is used; an earlier exit ends the frame if it
        is confident, else the cheaper of sending and evaluating the next exit follows.
        """
        out: list[Floats] = []
        after = cost[:, self._evaluate[self._until - 1]]
        for p in range(self._until - 1, -1, -1):
            q = self._undecided[p] if p + 1 < self._until else 0.0
            evaluate: Floats = (1.0 - q) * cost[:, self._evaluate[p]] + q * after
            out.append(evaluate)
            send = self._send[p]
            after = evaluate if send is None else np.minimum(evaluate, cost[:, send])
        return out[::-1]


def _undecided(world: World, sure: float, exits: NDArray[np.int64]) -> list[float]:
    """Share of the training frames that each exit leaves undecided, of those still undecided.

    Args:
        world: training world.
        sure: confidence from which an exit decides.
        exits: int64 (n,), canonical numbers of the exits' local actions, in turn.
    """
    open_frames = np.ones(len(world.table), bool)
    shares = []
    for exit in exits:
        before = max(int(open_frames.sum()), 1)
        open_frames = open_frames & (world.table.confidence[:, exit] < sure)
        shares.append(float(open_frames.sum()) / before)
    return shares
