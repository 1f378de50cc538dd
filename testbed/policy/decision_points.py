"""The staged decision: what a device may do at each decision point of a frame.

With n pairs in the network, actions 0..n-1 are the canonical pairs (E, S): with S < E run on to
block S and send from there to exit E, with S = E run on to exit E and evaluate it. Action n
answers with the exit evaluated last. The actions after it send as the pairs with S < E do, but
with an early time-out: the device stops waiting for the answer before the time-out
(`testbed.policy.estimators.early_timeout_ms`).

An answer that comes in time ends the frame. After a time-out the device resumes with the features
that it sent: it may evaluate exits from there on and answer, but it does not send this frame again.

A *decision point* says how far a frame has been processed. At the first points the device is after
an exit, which was evaluated last (point 0: nothing yet). At the others an exchange has timed out
after it was sent from block s, and exit p <= s was evaluated last; evaluating another exit leads to
a point where p is the block again.

The shipped network has 20 pairs, 36 staged actions and 20 decision points.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cnn.topology import Action, Topology
from testbed.policy.observation_fields import schema_of

START: Final = 0
"""The decision point at which every frame begins."""


@dataclass(frozen=True, slots=True)
class DecisionSpace:
    """The actions and the observation of one of the two granularities, for one network.

    Attributes:
        name: ``frame`` (one decision settles a frame) or ``staged`` (the policy decides again
            at every decision point of the frame).
        topology: of the network.
        n_actions: of the policy.
        obs_dim: elements of its observation, float32.
    """

    name: Literal["frame", "staged"]
    topology: Topology
    n_actions: int = field(compare=False)
    obs_dim: int = field(compare=False)

    @property
    def is_staged(self) -> bool:
        """Whether the policy decides again at every decision point of a frame."""
        return self.name == "staged"


class DecisionPoints:
    """The staged actions and decision points of one network; all arrays are read-only.

    Attributes:
        topology: of the network.
        answer: number of the action "answer with the exit evaluated last".
        sending: canonical numbers of the pairs that send.
        evaluating: canonical numbers of those that evaluate an exit.
        sending_early: staged actions that send as `sending` do, with an early time-out.
        n_actions: staged actions.
        canonical: int64 (n_actions,), the pair that a staged action runs; the first exit's local
            one for `answer`, which runs nothing.
        times_out_early: bool (n_actions,), whether it uses the early time-out.
        n_points: decision points.
        point: int64 (2, n_blocks, n_blocks), the decision point by whether an exchange of this
            frame has timed out, the block that ran last, and the exit evaluated last (0: none);
            0 where there is none.
        block: int64 (n_points,), the block that ran last.
        evaluated: int64 (n_points,), the exit evaluated last; 0 for none.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.sending = tuple(a.index for a in topology.actions if not a.is_local)
        self.evaluating = topology.local
        self.answer = n = topology.n_actions
        self.sending_early = tuple(range(n + 1, n + 1 + len(self.sending)))
        self.n_actions = n + 1 + len(self.sending)
        self.canonical = np.array([*range(n), topology.local[0], *self.sending])
        self.times_out_early = np.arange(self.n_actions) > n
        reached = [0, *topology.exits[:-1]]
        self._n_before = len(reached)
        first = min(topology.splits, default=topology.n_blocks)
        stops = sorted({*topology.splits, *(e for e in topology.exits[:-1] if e > first)})
        after = [(s, p) for s in stops for p in reached if p <= s]
        self.n_points = len(reached) + len(after)
        self.block = np.array([*reached, *(s for s, _ in after)])
        self.evaluated = np.array([*reached, *(p for _, p in after)])
        self.point = np.zeros((2, topology.n_blocks, topology.n_blocks), np.int64)
        for at in range(self.n_points):
            block = self.block[at]
            if self.has_timed_out(at):
                self.point[1, block, self.evaluated[at]] = at
            else:
                self.point[0, block] = at
        _freeze(self.canonical, self.times_out_early, self.block, self.evaluated, self.point)

    @cached_property
    def frame(self) -> DecisionSpace:
        """One decision settles a frame."""
        obs_dim = schema_of(self.topology).obs_dim
        return DecisionSpace("frame", self.topology, self.topology.n_actions, obs_dim)

    @cached_property
    def staged(self) -> DecisionSpace:
        """The policy decides at every decision point."""
        obs_dim = schema_of(self.topology).staged_obs_dim
        return DecisionSpace("staged", self.topology, self.n_actions, obs_dim)

    def space(self, name: Literal["frame", "staged"]) -> DecisionSpace:
        """The space of that name."""
        return self.staged if name == "staged" else self.frame

    def has_timed_out(self, point: int) -> bool:
        """Whether an exchange of the current frame has timed out."""
        return point >= self._n_before

    @cached_property
    def legal(self) -> NDArray[np.bool_]:
        """bool (n_points, n_actions): whether the action is legal at a decision point."""
        legal = np.zeros((self.n_points, self.n_actions), bool)
        for at in range(self.n_points):
            block, p = int(self.block[at]), int(self.evaluated[at])
            legal[at, self.answer] = p > 0
            if self.has_timed_out(at):
                ahead = [e for e in self.topology.exits if e >= max(block, p + 1)]
                legal[at, self.topology.local_of[ahead]] = True
                continue
            for a in self.topology.actions:
                legal[at, a.index] = a.split >= p and a.exit > p
            legal[at, self.sending_early] = legal[at, self.sending]
        _freeze(legal)
        return legal

    @cached_property
    def repair(self) -> NDArray[np.int64]:
        """The legal action that replaces an illegal one (itself if legal).

        int64 (n_points, n_actions).
        """
        repaired = np.array(
            [
                [self._nearest(point, action) for action in range(self.n_actions)]
                for point in range(self.n_points)
            ]
        )
        _freeze(repaired)
        return repaired

    def _nearest(self, point: int, action: int) -> int:
        """The legal action nearest to the intended one."""
        legal = self.legal[point]
        if legal[action]:
            return action
        pair = self.pair(action)
        evaluate = int(self.topology.local_of[pair.exit])
        if action != self.answer and legal[evaluate]:
            if pair.is_local or self.has_timed_out(point):
                return evaluate
            # Its split has been passed: the next one, if there is one before the exit.
            ahead = [
                a.index
                for a in self.topology.actions
                if a.exit == pair.exit and not a.is_local and legal[a.index]
            ]
            if not ahead:
                return evaluate
            early = self.times_out_early[action]
            return self.sending_early[self.sending.index(ahead[0])] if early else ahead[0]
        if legal[self.answer]:
            return self.answer
        return next(a for a in self.evaluating if legal[a])

    def pair(self, action: int) -> Action:
        """The canonical pair that a staged action runs."""
        return self.topology.actions[int(self.canonical[action])]

    def name(self, action: int) -> str:
        """``e3s1`` for a canonical action, ``answer``, or ``e3s1-hurried`` after it."""
        if action == self.answer:
            return "answer"
        return self.pair(action).name + ("-hurried" if self.times_out_early[action] else "")


@lru_cache(maxsize=64)
def decision_points(topology: Topology) -> DecisionPoints:
    """The decision points of one network; the same object for equal topologies."""
    return DecisionPoints(topology)


def _freeze(*arrays: NDArray[np.int64] | NDArray[np.bool_]) -> None:
    for array in arrays:
        array.setflags(write=False)
