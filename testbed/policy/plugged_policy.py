"""Policies of plug-ins: rows of an evaluation, and what a device runs by name.

The entry point loads to a function of a topology and a world that gives one or more policies for
that network. An evaluation passes its training world and drives the best of them, as of the
candidates of its own baselines. A device has no world, passes None, and runs the first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.plug_ins import Group, PlugIn, is_name
from cnn.topology import Topology
from testbed.policy.decision_points import START, DecisionSpace, decision_points
from testbed.policy.policies import Feedback, Learner, Policy

POLICY_PLUG_INS: Final = Group(
    "sliproad.policies",
    "policy",
    (
        *("agent", "staged-agent", "clairvoyant", "full-local", "full-offload", "best-static"),
        *("random", "neurosurgeon", "edgent", "threshold", "greedy", "linucb", "spinn"),
        *("planner", "mpc"),
    ),
)
"""The names of ours are the rows of every evaluation."""


def names_plug_in(text: str, folder: Path = Path()) -> bool:
    """Whether a policy is given by a plug-in's name: a word without an ending, and no file's.

    Args:
        text: as given.
        folder: where a relative path begins.
    """
    return is_name(text) and not (folder / text).exists()


class PluggedPolicy:
    """A plug-in's policy: what it raises, and an action that there is not, name the plug-in.

    Args:
        policy: of the plug-in.
        plug_in: whose name it has in tables and records.
    """

    def __init__(self, policy: Policy, plug_in: PlugIn) -> None:
        self.name, self.policy, self.plug_in = plug_in.name, policy, plug_in
        self.memoryless = bool(getattr(policy, "memoryless", False))

    @property
    def space(self) -> DecisionSpace:
        """That of the plug-in's policy."""
        return self.policy.space

    def reset(self) -> None:
        """Start a drive."""
        with self.plug_in.calling():
            self.policy.reset()

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """An action of the space for one observation; a staged one is legal at `point`."""
        with self.plug_in.calling():
            action = int(self._checked([self.policy.decide(observation, point)], 1)[0])
            space = self.space
            if space.is_staged and not decision_points(space.topology).legal[point, action]:
                raise ValueError(f"action {action}, not legal at decision point {point}")
            return action

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Actions of the space, int64 (B,)."""
        with self.plug_in.calling():
            chosen = self.policy.decide_batch(observations, points)
            return self._checked(chosen, len(observations))

    def learn(self, feedback: Feedback) -> None:
        """Pass feedback on to a policy that learns."""
        if isinstance(self.policy, Learner):
            with self.plug_in.calling():
                self.policy.learn(feedback)

    def _checked(self, chosen: Any, n: int) -> NDArray[np.int64]:
        actions, most = np.asarray(chosen), self.space.n_actions
        if actions.shape != (n,) or actions.dtype.kind not in "iu":
            raise ValueError(f"actions {actions.dtype} {actions.shape}, expected integers ({n},)")
        wrong = actions[(actions < 0) | (actions >= most)]
        if len(wrong):
            raise ValueError(f"action {wrong[0]}, expected 0 to {most - 1}")
        return actions.astype(np.int64)


def plugged_policies(
    plug_in: PlugIn, topology: Topology, world: object = None
) -> list[PluggedPolicy]:
    """The policies that a plug-in makes for a network, at least one.

    Args:
        plug_in: of `POLICY_PLUG_INS`.
        topology: of the network.
        world: training world (`offload_env.world.World`) of an evaluation; None on a device.

    Raises:
        ConfigError: it fails, makes none, or makes one for another network.
    """
    make = plug_in.load()
    with plug_in.calling():
        made = list(make(topology, world))
        for policy in made:
            if not isinstance(policy, Policy):
                raise TypeError(f"it makes {type(policy).__name__}, no testbed.Policy")
            topology.require_same(policy.space.topology, str(plug_in), "the network")
        if not made:
            raise ValueError(f"no policy for {topology}")
    return [PluggedPolicy(policy, plug_in) for policy in made]
