"""benchmarks/one_policy.py: scenarios drawn at random, and adapters joined for one learner."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from agents.train_config import STAGED_SETTINGS, TrainConfig
from agents.training import adapter_of
from cnn.topology import SHIPPED
from offload_env.world import build_world
from tests.support.scripts import benchmark


@pytest.fixture(scope="module")
def one_policy() -> ModuleType:
    return benchmark("one_policy")


def test_scenarios_are_drawn_by_number_and_seed(one_policy: ModuleType) -> None:
    scenarios = [one_policy.drawn(k, 0) for k in range(40)]
    assert scenarios == [one_policy.drawn(k, 0) for k in range(40)]
    assert {s.link.kind for s in scenarios} == set(one_policy.MODEMS)
    speeds = np.array([s.device.full_local_ms for s in scenarios])
    assert speeds.min() < 20
    assert speeds.max() > 150
    assert one_policy.drawn(0, 1) != scenarios[0]


@pytest.mark.slow(5)
def test_joined_lanes_go_as_the_parts_alone(one_policy: ModuleType) -> None:
    """Same observations, rewards, ends and masks, each part with its own price of an error."""
    config = TrainConfig(env="staged", algo="maskable-ppo", **{**STAGED_SETTINGS, "n_envs": 3})
    config = config.of(SHIPPED)

    def parts() -> list:
        worlds = [build_world(name, "train") for name in ("urban-5g", "highway-lte")]
        made = [adapter_of(config, world) for world in worlds]
        for k, part in enumerate(made):
            part.multiplier = 10.0 * k
        return made

    alone, joined = parts(), one_policy.Joined(parts())
    joined.seed(5)
    for k, part in enumerate(alone):
        part.seed(5 + k)
    assert (joined.reset() == np.concatenate([part.reset() for part in alone])).all()
    rng = np.random.default_rng(0)
    for _ in range(900):
        masks = np.concatenate([part.action_masks() for part in alone])
        assert (np.stack(joined.env_method("action_masks")) == masks).all()
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        steps = [part.step(own) for part, own in zip(alone, np.split(actions, 2), strict=True)]
        seen, reward, done, infos = joined.step(actions)
        assert (seen == np.concatenate([step[0] for step in steps])).all()
        assert (reward == np.concatenate([step[1] for step in steps])).all()
        assert (done == np.concatenate([step[2] for step in steps])).all()
        assert len(infos) == 6
        frames = np.concatenate([part.frame_done for part in alone])
        assert (joined.frame_done == frames).all()


@pytest.mark.slow(10)
def test_one_policy_is_learnt_in_all_scenarios_at_once(
    one_policy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After seconds it costs less than full local processing, which costs 1, also elsewhere."""
    monkeypatch.setitem(one_policy.SETTINGS, "n_envs", 16)
    monkeypatch.setitem(one_policy.SETTINGS, "teacher_steps", 30_000)
    monkeypatch.setattr(one_policy, "GUIDED_ON", 3)
    policy = one_policy.policy_from_bundle(one_policy.trained(2_000, 2, 0))
    for scenario in (one_policy.drawn(0, 0), "urban-5g"):
        world = build_world(scenario, "test")
        found = one_policy.told(policy, world, one_policy.episode_keys(0, 4))
        assert found["cost"] < 0.8
