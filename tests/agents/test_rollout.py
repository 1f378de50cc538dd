"""Policies side by side: each drives as it does alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.baselines.answer_odds import AnswerOdds
from agents.baselines.linucb import LinUcbPolicy
from agents.baselines.planner import PlannerPolicy, planners_alike
from agents.baselines.prediction import AccuracyTable
from agents.baselines.rules import CascadePolicy, EdgentPolicy
from agents.baselines.usual_exchange import UsualExchange
from agents.rollout import simulate, simulate_each
from offload_env.episode import episode_keys
from offload_env.world import World, build_world
from testbed.policy.policies import Policy, StaticPolicy


def frame_level(world: World) -> Sequence[Policy]:
    bandits = [LinUcbPolicy(world, p, 4.0, 0.97, AccuracyTable(world)) for p in (1.0, 30.0)]
    return [StaticPolicy(0), *bandits, EdgentPolicy(world, 60.0)]


def staged(world: World) -> Sequence[Policy]:
    odds = AnswerOdds(world)
    planners = [PlannerPolicy(world, price, 0.4, odds) for price in (0.3, 20.0)]
    return [planners[0], Fickle(world, 2.0, 0.4, odds), CascadePolicy(world, 0.9, 5), planners[1]]


def alike(world: World) -> Sequence[Policy]:
    """They decide in one call."""
    mpc = PlannerPolicy(world, 0.3, 0.4, AnswerOdds(world), 3, UsualExchange(world))
    policies = [mpc, mpc.priced(20.0, 0.4), mpc.priced(0.3, 2.0)]
    assert planners_alike(policies) == policies
    return policies


class Fickle(PlannerPolicy):
    """Has a memory: every third time that it is asked it does as if nothing were known."""

    memoryless = False  # type: ignore[misc]
    asked = 0

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        self.asked += 1
        seen = np.zeros_like(observations) if self.asked % 3 == 0 else observations
        return super().decide_batch(seen, points)


@pytest.mark.parametrize("policies_of", [frame_level, staged, alike])
def test_side_by_side_is_one_by_one(policies_of: Callable[[World], Sequence[Policy]]) -> None:
    """They send at other times and end frames at other exits; some learn, one has a memory."""
    world, keys = build_world("urban-5g"), episode_keys(5, 3)
    alone = [simulate(world, policy, keys) for policy in policies_of(world)]
    together = simulate_each(world, policies_of(world), keys)
    assert len({rollout.cost.mean() for rollout in alone}) == len(alone)
    for one, other in zip(alone, together, strict=True):
        assert one.policy == other.policy
        for field in fields(one)[2:]:
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
