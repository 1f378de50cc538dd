"""The single environments: contract, seeding, rewards."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from cnn.common.errors import ConfigError
from cnn.topology import SHIPPED
from offload_env.env import OffloadEnv, OffloadStagedEnv
from offload_env.world import World
from testbed.policy.observation_fields import schema_of

SCHEMA = schema_of(SHIPPED)

SINGLES = [OffloadEnv, OffloadStagedEnv]


def _drive(env: gym.Env[Any, Any], seed: int, steps: int = 80) -> list[Any]:
    rng = np.random.default_rng(0)
    out: list[Any] = [env.reset(seed=seed)[0].tolist()]
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(
            int(rng.integers(env.action_space.n))  # type: ignore[attr-defined]
        )
        out.append((observation.tolist(), reward, truncated, info))
        assert not terminated
        if truncated:
            out.append(env.reset()[0].tolist())
    return out


@pytest.mark.parametrize("single", SINGLES)
def test_gymnasium_and_stable_baselines3_accept_it(single: Any, world: World) -> None:
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # A world is no keyword of the registry: the check runs on the bare environment.
        warnings.filterwarnings("ignore", message=".*(spec|passive env checker|not wrapped).*")
        check_env(single(world=world), skip_render_check=True)
        sb3_check_env(single(world=world))


@pytest.mark.parametrize("single", SINGLES)
def test_same_seed_same_drive_other_seed_other_drive(single: Any, world: World) -> None:
    assert _drive(single(world=world), 7) == _drive(single(world=world), 7)
    assert _drive(single(world=world), 7) != _drive(single(world=world), 8)


@pytest.mark.parametrize("single", SINGLES)
def test_reward_is_minus_cost_minus_the_price_of_wrong_answers(single: Any, world: World) -> None:
    env = single(world=world)
    env.reset(seed=3)
    env.set_lagrange(2.0, critical=5.0)
    rng, prices = np.random.default_rng(3), set()
    for _ in range(300):
        _, reward, _, truncated, info = env.step(int(rng.integers(env.action_space.n)))
        if not info.get("frame_done", True):
            assert reward == 0
            continue
        price = (1 - info["accuracy"]) * (2.0 + 5.0 * info["critical"])
        prices.add(price)
        assert reward == pytest.approx(-info["cost"] - price)
        terms = ("cost_delay", "cost_energy", "cost_miss", "cost_budget")
        assert info["cost"] == pytest.approx(sum(info[t] for t in terms))
        if truncated:
            env.reset()
    assert prices == {0.0, 2.0, 7.0}
    with pytest.raises(ConfigError, match="0 or more"):
        env.set_lagrange(-1.0)


def test_an_episode_is_a_drive_of_n_frames(world: World) -> None:
    env = OffloadEnv(world=world)
    env.reset(seed=0)
    ends = [env.step(5)[3] for _ in range(world.scenario.timing.n_frames)]
    assert ends == [False] * (world.scenario.timing.n_frames - 1) + [True]


def test_the_docstring_table_is_the_specification() -> None:
    text = OffloadEnv.__doc__ or ""
    for field in SCHEMA.fields:
        stem = field.name[:-1] if field.name.startswith("confidence_exit") else field.name
        assert stem in text
        assert f"{field.high:g}" in text


@pytest.mark.parametrize("single", SINGLES)
def test_what_an_environment_gives_is_the_callers(single: Any, world: World) -> None:
    spoiled, left = single(world=world), single(world=world)
    mine, its = spoiled.reset(seed=1), left.reset(seed=1)
    for action in np.random.default_rng(0).integers(0, 20, 60):
        mine[0][:], masks = 99.0, spoiled.action_masks()
        np.testing.assert_array_equal(masks, left.action_masks())
        masks[:] = False
        mine[-1].clear()
        mine, its = spoiled.step(action), left.step(action)
        np.testing.assert_equal(mine, its)


def test_a_world_is_shared_and_cannot_be_edited(make_world: Callable[..., World]) -> None:
    table = replace(make_world().table, confidence=np.full_like(make_world().table.confidence, 0.7))
    world = make_world(table=table)
    arrays = [
        getattr(holder, name)
        for holder in (world, world.table, *world.traces)
        for name in (field.name for field in fields(holder))
    ] + list(vars(world.pool).values())
    arrays = [array for array in arrays if isinstance(array, np.ndarray)]
    assert len(arrays) > 25
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    table.confidence[...] = 0.5  # the caller's own array stays the caller's
