"""A lane of the native vector is a single environment, as Gymnasium's own vector runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from cnn.common.errors import ConfigError
from offload_env.env import OffloadEnv, OffloadStagedEnv
from offload_env.env_input import ResetNeededError
from offload_env.preferences import ConditionedVectorEnv
from offload_env.vector_env import OffloadStagedVectorEnv, OffloadVectorEnv
from offload_env.world import World

PAIRS = [(OffloadEnv, OffloadVectorEnv), (OffloadStagedEnv, OffloadStagedVectorEnv)]
VECTORS = [vector for _, vector in PAIRS]
LANES = 5


def singles_of(single: Any, world: World, mode: AutoresetMode, **settings: Any) -> SyncVectorEnv:
    """The peer: Gymnasium's vector of single environments."""
    return SyncVectorEnv(
        [lambda: single(world=world, **settings) for _ in range(LANES)], autoreset_mode=mode
    )


def assert_same_info(native: dict[str, Any], peer: dict[str, Any], lane: int, ended: bool) -> None:
    """The peer's info of a lane, key by key, is the native's; in a same-step reset its final one.

    A key without a mask holds for every lane, as Gymnasium's `DictInfoToList` reads it.
    """
    if ended and "final_info" in peer:
        peer = peer["final_info"]
    mine = {k for k in native if k[0] != "_" and not k.startswith("final_")}
    theirs = {k for k in peer if k[0] != "_" and not k.startswith("final_") and peer[f"_{k}"][lane]}
    assert {k for k in mine if native.get(f"_{k}", [True] * LANES)[lane]} == theirs
    for name in theirs:
        assert native[name][lane] == peer[name][lane], name


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize(("single", "vector"), PAIRS)
def test_the_vector_equals_its_singles_step_for_step(
    single: Any, vector: Any, world: World, mode: AutoresetMode
) -> None:
    native = vector(LANES, world=world, lagrange=1.5, autoreset_mode=mode)
    singles = singles_of(single, world, mode, lagrange=1.5)
    native.set_lagrange(1.5, critical=0.5)
    for env in singles.envs:
        env.set_lagrange(1.5, critical=0.5)  # type: ignore[attr-defined]
    assert native.metadata["autoreset_mode"] is mode
    assert native.observation_space == singles.observation_space
    assert native.action_space == singles.action_space
    ours, info = native.reset(seed=11)
    theirs, info1 = singles.reset(seed=11)
    assert info == info1 == {}
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    rng, ends = np.random.default_rng(1), 0
    for _ in range(3 * world.scenario.timing.n_frames):
        masks = np.array([env.action_masks() for env in singles.envs])  # type: ignore[attr-defined]
        np.testing.assert_array_equal(native.action_masks(), masks)
        actions = rng.integers(0, native.single_action_space.n, LANES)
        ours, reward, terminated, truncated, info = native.step(actions)
        theirs, reward1, terminated1, truncated1, info1 = singles.step(actions)
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
        np.testing.assert_array_equal(reward, reward1)
        np.testing.assert_array_equal(terminated, terminated1)
        np.testing.assert_array_equal(truncated, truncated1)
        for lane, ended in enumerate(truncated):
            assert_same_info(info, info1, lane, ended)
            if ended and mode is AutoresetMode.SAME_STEP:
                last = info1["final_obs"][lane]
                np.testing.assert_allclose(info["final_obs"][lane], last, atol=2e-6)
        ends += int(truncated.sum())
        if mode is AutoresetMode.DISABLED and truncated.any():
            # Gymnasium's own vector takes the mask out of the options it is given.
            ours, _ = native.reset(options={"reset_mask": truncated})
            theirs, _ = singles.reset(options={"reset_mask": truncated})
            np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert ends >= LANES


@pytest.mark.parametrize("vector", VECTORS)
def test_a_step_limit_truncates_as_gymnasiums_does(vector: Any, world: World) -> None:
    single = {v: s for s, v in PAIRS}[vector]
    native = vector(LANES, world=world, max_episode_steps=7, autoreset_mode="NextStep")
    singles = SyncVectorEnv(
        [lambda: gym.wrappers.TimeLimit(single(world=world), 7) for _ in range(LANES)]
    )
    ours, theirs = native.reset(seed=3)[0], singles.reset(seed=3)[0]
    rng = np.random.default_rng(2)
    for _ in range(30):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
        actions = rng.integers(0, native.single_action_space.n, LANES)
        ours, reward, _, truncated, _ = native.step(actions)
        theirs, reward1, _, truncated1, _ = singles.step(actions)
        np.testing.assert_array_equal(reward, reward1)
        np.testing.assert_array_equal(truncated, truncated1)
    for none in (None, -1):
        free = vector(1, world=world, max_episode_steps=none)
        free.reset(seed=0)
        assert not any(free.step([5])[3].any() for _ in range(8))


@pytest.mark.parametrize("vector", [*VECTORS, ConditionedVectorEnv])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_what_a_step_gives_is_the_callers(vector: Any, world: World, mode: AutoresetMode) -> None:
    """Whoever writes into what came, and into the actions, changes no later step."""
    spoiled = vector(LANES, world=world, autoreset_mode=mode)
    left = vector(LANES, world=world, autoreset_mode=mode)
    mine, its = spoiled.reset(seed=1)[0], left.reset(seed=1)[0]
    rng = np.random.default_rng(0)
    for _ in range(2 * world.scenario.timing.n_frames):
        spoil(mine)
        masks = spoiled.action_masks()
        np.testing.assert_array_equal(masks, left.action_masks())
        spoil(masks)
        actions = rng.integers(0, 20, LANES)
        results = spoiled.step(actions), left.step(actions.copy())
        for a, b in zip(*results, strict=True):
            np.testing.assert_equal(a, b)
        mine, its, truncated = results[0][0], results[1][0], results[0][3].copy()
        for array in (*results[0][:4], *arrays_of(results[0][4]), actions):
            spoil(array)
        if mode is AutoresetMode.DISABLED and truncated.any():
            given = {"reset_mask": truncated}
            mine, its = spoiled.reset(options=given)[0], left.reset(options=given)[0]
            np.testing.assert_array_equal(mine, its)


def arrays_of(info: dict[str, Any]) -> list[Any]:
    nested = [arrays_of(v) if isinstance(v, dict) else [v] for v in info.values()]
    return [array for arrays in nested for array in arrays]


def spoil(array: Any) -> None:
    array[...] = ~array if array.dtype == bool else 99


def test_a_lane_that_ended_must_be_reset_where_nothing_does_it(
    make_world: Callable[..., World],
) -> None:
    env = OffloadVectorEnv(2, world=make_world(), autoreset_mode="Disabled", max_episode_steps=2)
    env.reset(seed=0)
    env.step([5, 5])
    env.reset(options={"reset_mask": np.array([False, True])})
    _, _, _, truncated, _ = env.step([5, 5])
    np.testing.assert_array_equal(truncated, [True, False])
    with pytest.raises(ResetNeededError, match="lane 0 has ended"):
        env.step([5, 5])
    env.reset(options={"reset_mask": truncated})
    env.step([5, 5])


def test_settings_that_mean_nothing_are_refused(world: World) -> None:
    for wrong in (0, -1, 2.5, "4", None):
        with pytest.raises(ConfigError, match="num_envs"):
            OffloadVectorEnv(wrong, world=world)  # type: ignore[arg-type]
    for wrong in (0, -2, 1.5, "4"):
        with pytest.raises(ConfigError, match="max_episode_steps"):
            OffloadVectorEnv(2, world=world, max_episode_steps=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="NextStep, SameStep, Disabled"):
        OffloadVectorEnv(2, world=world, autoreset_mode="Sometimes")
