"""The shipped policies: there for every scenario, for this network and these observations."""

from __future__ import annotations

import numpy as np
import pytest

from agents.baselines import FULL_LOCAL
from agents.evaluate import floor_on
from agents.rollout import episode_keys, simulate
from agents.shipped import shipped_agents
from offload_env.scenario import scenario_names
from offload_env.world import build_world
from testbed.decide.policy import StaticPolicy


@pytest.mark.parametrize("name", scenario_names())
def test_both_policies_fit_and_are_worth_having(name: str) -> None:
    """A file of another schema or network is refused, and would be missed silently."""
    world = build_world(name, "test")
    agents = shipped_agents(world)
    assert set(agents) == {"agent", "staged-agent"}
    keys = episode_keys(3, 12)
    local = simulate(world, StaticPolicy(FULL_LOCAL), keys)
    floor = floor_on(world, np.concatenate(local.row))
    for policy in agents.values():
        driven = simulate(world, policy, keys)
        assert driven.cost.mean() < 0.6 * local.cost.mean()
        # On so few drives errors, which come by sign, scatter: no more than a coarse check.
        assert driven.correct.mean() > floor - 0.005
