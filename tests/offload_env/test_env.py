"""The Gymnasium environments: contract, seeding, vector equals singles."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import offload_env
from cnn.action import ACTIONS
from cnn.errors import ConfigError
from offload_env.env import OffloadEnv
from offload_env.staged import OffloadStagedEnv
from offload_env.staged_vector import OffloadStagedVectorEnv
from offload_env.vector_env import OffloadVectorEnv
from offload_env.world import World

PAIRS = [(OffloadEnv, OffloadVectorEnv), (OffloadStagedEnv, OffloadStagedVectorEnv)]
SINGLES = [single for single, _ in PAIRS]


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


@pytest.mark.parametrize(("single", "vector"), PAIRS)
def test_the_vector_equals_its_singles_step_for_step(
    single: Any, vector: Any, world: World
) -> None:
    n = 6
    native = vector(n, world=world, lagrange=1.5)
    native.set_lagrange(1.5, critical=0.5)
    singles = SyncVectorEnv(
        [lambda: single(world=world, lagrange=1.5) for _ in range(n)],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    for env in singles.envs:
        env.set_lagrange(1.5, critical=0.5)  # type: ignore[attr-defined]
    assert native.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert native.observation_space == singles.observation_space
    assert native.action_space == singles.action_space
    ours, _ = native.reset(seed=11)
    theirs, _ = singles.reset(seed=11)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    rng, ended = np.random.default_rng(1), 0
    for _ in range(3 * world.scenario.timing.n_frames):
        masks = np.array([env.action_masks() for env in singles.envs])  # type: ignore[attr-defined]
        np.testing.assert_array_equal(native.action_masks(), masks)
        actions = rng.integers(0, native.single_action_space.n, n)
        ours, reward, terminated, truncated, info = native.step(actions)
        theirs, reward1, terminated1, truncated1, info1 = singles.step(actions)
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
        np.testing.assert_array_equal(reward, reward1)
        np.testing.assert_array_equal(terminated, terminated1)
        np.testing.assert_array_equal(truncated, truncated1)
        ended += int(truncated.sum())
        for k in range(n):
            last = truncated[k]
            alone = info1["final_info"] if last else info1
            for name in ("delay_ms", "energy_mj", "accuracy", "cost", "queue_ms", "cost_miss"):
                assert info[name][k] == alone[name][k], name
            if alone.get("frame_done", [True] * n)[k]:
                assert ACTIONS[info["action"][k]].name == alone["action"][k]
            if last:
                np.testing.assert_allclose(info["final_obs"][k], info1["final_obs"][k], atol=2e-6)
    assert ended >= n


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


def test_a_key_gives_every_policy_the_same_drive(world: World) -> None:
    env = OffloadEnv(world=world)
    env.reset(options={"key": 12345})
    rows = []
    for _ in range(20):
        rows.append(env.simulator.row)
        env.step(19)
    assert rows == world.rows(12345, 20).tolist()
    vector = OffloadVectorEnv(2, world=world)
    one, _ = vector.reset(options={"keys": np.array([12345, 99], np.uint64)})
    two, _ = env.reset(options={"key": 12345})
    np.testing.assert_allclose(one[0], two, atol=2e-6)


def test_ids_are_registered_once_and_make_finds_them() -> None:
    offload_env.register()
    offload_env.register()
    for name in ("Offload", "OffloadStaged", "OffloadLive"):
        assert f"sliproad/{name}-v0" in gym.registry


@pytest.mark.parametrize("scenario", offload_env.scenario_names())
@pytest.mark.parametrize("name", ["Offload", "OffloadStaged"])
def test_every_id_and_scenario_passes_both_checkers(name: str, scenario: str) -> None:
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    offload_env.register()
    for split in ("train", "test"):
        env = gym.make(f"sliproad/{name}-v0", scenario=scenario, split=split).unwrapped
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(env, skip_render_check=True)
            sb3_check_env(env)
    envs = gym.make_vec(
        f"sliproad/{name}-v0",
        num_envs=3,
        scenario=scenario,
        vectorization_mode="vector_entry_point",
    )
    observation, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(observation)
    observation, reward, *_ = envs.step(envs.action_space.sample())
    assert envs.observation_space.contains(observation)
    assert reward.shape == (3,)


def test_render_says_what_the_last_frame_cost(world: World) -> None:
    env = OffloadEnv(world=world, render_mode="ansi")
    env.reset(seed=0)
    assert env.render() == "no frame yet"
    env.step(5)
    assert "delay" in str(env.render())
    with pytest.raises(ConfigError, match="render_mode"):
        OffloadEnv(world=world, render_mode="human")


def test_the_docstring_table_is_the_specification() -> None:
    from testbed.decide.observation import FIELDS

    text = OffloadEnv.__doc__ or ""
    for field in FIELDS:
        stem = field.name[:-1] if field.name.startswith("confidence_exit") else field.name
        assert stem in text
        assert f"{field.high:g}" in text


@pytest.mark.parametrize("vector", [v for _, v in PAIRS])
def test_vector_reset_mask_and_seed_list(vector: Any, world: World) -> None:
    env = vector(3, world=world)
    first, _ = env.reset(seed=[5, 6, 7])
    again, _ = env.reset(seed=5)
    np.testing.assert_array_equal(first, again)
    for _ in range(4):
        moved = env.step(np.full(3, 19))[0]
    after, _ = env.reset(options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(after[[0, 2]], moved[[0, 2]])
    assert env.simulator.frame[1] == 0
    with pytest.raises(ConfigError, match="seeds"):
        env.reset(seed=[1, 2])


def test_make_world_is_shared(make_world: Callable[..., World]) -> None:
    world = make_world()
    with pytest.raises(ValueError, match="read-only"):
        world.device_ms[0] = 1.0
