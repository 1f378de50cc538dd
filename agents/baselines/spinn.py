"""Confidence thresholds within the frame, with the split chosen by predicted cost.

The rule of BranchyNet (Teerapittayanon et al., ICPR 2016) as SPINN (Laskaridis et al., MobiCom
2020) distributes it: run on to the next exit, answer if it is confident, and otherwise go on, here
or from here on the server, whichever the profile and the link's estimates say is cheaper. It is
the baseline of the staged agent: it sees what that one sees.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from agents.baselines.prediction import Floats, Predictor, raw_observation
from cnn.topology import N_EXITS, action_index
from offload_env.batch_simulator import LOCAL_ARRAY
from offload_env.world import LOCAL, World
from testbed.policy.decision_points import ANSWER, BLOCK, EVALUATED
from testbed.policy.observer import STAGED_FIELDS

_CONFIDENCE_AT: Final = next(f.index for f in STAGED_FIELDS if f.name == "stage_confidence")


class CascadePolicy:
    """Looks at exits in turn until one is confident enough.

    Args:
        world: training world; the share of frames that each exit leaves undecided is measured
            on its frames, as SPINN profiles its own.
        sure: calibrated confidence from which an exit's answer stands.
        last: exit whose answer always stands, on the device and on the server.
    """

    memoryless: Final = True
    staged: bool = True

    def __init__(self, world: World, sure: float, last: int) -> None:
        self.name = "spinn"
        self.sure, self.last = sure, last
        self._predict = Predictor(world)
        self._undecided = _undecided(world, sure, last)

    def reset(self) -> None:
        """Nothing to forget."""

    def decide(self, observation: NDArray[np.float32], point: int) -> int:
        """Staged action for one observation."""
        return int(self.decide_batch(observation[None], np.array([point]))[0])

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Staged actions for a batch, int64 (B,)."""
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
        """Expected cost of looking on after block p = 0..last - 1, each float64 (B,).

        From the end: after the last exit its answer stands; before it a look ends the frame
        if it is confident, else the better of sending and looking on follows.
        """
        out: list[Floats] = []
        after = cost[:, LOCAL[self.last - 1]]
        for p in range(self.last - 1, -1, -1):
            q = self._undecided[p] if p + 1 < self.last else 0.0
            look: Floats = (1.0 - q) * cost[:, LOCAL[p]] + q * after
            out.append(look)
            after = np.minimum(look, cost[:, action_index(self.last, p)])
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
