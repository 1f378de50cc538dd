"""A policy's promise: the figures of its own drives, and what a guard makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from agents.export_policy import promise_of
from agents.rollout import simulate
from cnn.topology import Action
from offload_env.episode import episode_keys
from testbed.policy.policies import RandomPolicy, StaticPolicy
from testbed.policy.reference_profile import LEVELS


def test_the_promise_is_made_of_the_same_drives_as_the_evaluation(make_world: object) -> None:
    world = make_world(10.0)  # type: ignore[operator]
    keys = episode_keys(3, 4)
    reference = promise_of(world, RandomPolicy(5), keys, window=20)
    rollout = simulate(world, RandomPolicy(5), keys)
    for name, values in (
        ("delay_ms", rollout.delay_ms),
        ("energy_mj", rollout.energy_mj),
        ("confidence", rollout.confidence),
        ("miss_rate", rollout.miss),
    ):
        drives, frames = values.shape
        means = [
            np.nanmean(values[d, i : i + 20]) for d in range(drives) for i in range(frames - 19)
        ]
        assert reference.quantiles[name] == pytest.approx(np.quantile(means, LEVELS), rel=1e-5)
    shares = np.bincount(rollout.action.ravel(), minlength=20) / rollout.action.size
    assert reference.actions == pytest.approx(shares)
    assert reference.windows == drives * (frames - 19)
    low, high = reference.low("uplink_mbps"), reference.high("uplink_mbps")
    assert low is not None
    assert high is not None
    assert 0.1 <= low <= high <= 300


def test_a_policy_that_never_changes_its_mind_has_no_shift(make_world: object) -> None:
    world = make_world(10.0)  # type: ignore[operator]
    reference = promise_of(world, StaticPolicy(Action(3, 1)), episode_keys(1, 2))
    assert reference.action_shift == 0
    assert reference.actions[Action(3, 1).index] == 1
