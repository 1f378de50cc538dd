"""``reset`` starts the drive that was asked for, or says what it cannot use and changes nothing."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from cnn.common.errors import ConfigError
from offload_env.env import OffloadEnv, OffloadStagedEnv
from offload_env.env_input import InvalidResetError
from offload_env.preferences import ConditionedVectorEnv
from offload_env.vector_env import OffloadStagedVectorEnv, OffloadVectorEnv
from offload_env.world import World

SINGLES = [OffloadEnv, OffloadStagedEnv]
PAIRS = [(OffloadEnv, OffloadVectorEnv), (OffloadStagedEnv, OffloadStagedVectorEnv)]
VECTORS = [OffloadVectorEnv, OffloadStagedVectorEnv, ConditionedVectorEnv]
WRONG_KEYS: list[Any] = [-1, 2**64, 3.0, "3", None, [1, 2], np.array(3.5), float("nan")]


def test_a_key_gives_every_policy_the_same_drive(world: World) -> None:
    env = OffloadEnv(world=world)
    env.reset(options={"key": 12345})
    rows = []
    for _ in range(20):
        rows.append(env.simulator.row)
        env.step(19)
    assert rows == world.rows(12345, 20).tolist()
    vector = OffloadVectorEnv(2, world=world)
    for name in ("key", "keys"):
        one, _ = vector.reset(options={name: np.array([12345, 99], np.uint64)})
        two, _ = env.reset(options={"key": 12345})
        np.testing.assert_allclose(one[0], two, atol=2e-6)


@pytest.mark.parametrize(("single", "vector"), PAIRS)
@pytest.mark.parametrize("key", [0, 3, np.int32(3), np.array(7), 2**64 - 1, True])
def test_one_key_is_every_lanes_as_in_gymnasiums_vector(
    single: Any, vector: Any, key: Any, world: World
) -> None:
    native = vector(3, world=world)
    peer = SyncVectorEnv([lambda: single(world=world)] * 3)
    for _ in range(2):
        ours, theirs = native.reset(options={"key": key})[0], peer.reset(options={"key": key})[0]
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
        assert (ours == ours[0]).all()
        native.step([1, 2, 3])
        peer.step(np.array([1, 2, 3]))


@pytest.mark.parametrize("vector", VECTORS)
def test_one_key_a_lane(vector: Any, world: World) -> None:
    env = vector(3, world=world)
    given = [[5, 6, 7], (5, 6, 7), np.array([5, 6, 7]), np.array([5, 6, 7], np.uint64)]
    seen = [env.reset(options={name: keys})[0] for name in ("key", "keys") for keys in given]
    for other in seen[1:]:
        np.testing.assert_array_equal(seen[0], other)
    assert len(np.unique(seen[0], axis=0)) == 3


@pytest.mark.parametrize("single", SINGLES)
@pytest.mark.parametrize(
    "options",
    [{"seed": 1}, {"keys": [1]}, {"reset_mask": [True]}, {"key": 1, "kye": 2}, {3: 4}, [1], "key"]
    + [{"key": key} for key in WRONG_KEYS],
    ids=repr,
)
def test_a_single_environment_refuses_other_options(
    single: Any, options: Any, world: World
) -> None:
    env, other = single(world=world), single(world=world)
    env.reset(seed=1)
    other.reset(seed=1)
    with pytest.raises(InvalidResetError, match=r"^(unknown )?reset option") as caught:
        env.reset(seed=9, options=options)
    assert "\n" not in str(caught.value)
    # Neither the drive nor the generator has changed.
    np.testing.assert_array_equal(env.step(5)[0], other.step(5)[0])
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize(
    "options",
    [
        {"seeds": [1, 2, 3]},
        {"key": 1, "keys": [1, 2, 3]},
        {"key": [1, 2]},
        {"key": [[1, 2, 3]]},
        {"key": [1, 2, -3]},
        {"key": [1, 2, 3.0]},
        {"keys": 5},
        {"keys": [1, 2]},
        {"keys": [1, 2, 3, 4]},
        {"keys": [1, [2], 3]},
        {"keys": np.array([1.0, 2.0, 3.0])},
        {"keys": None},
        {"reset_mask": [True, False]},
        {"reset_mask": [0, 1, 0]},
        {"reset_mask": np.zeros(3, bool)},
        {"reset_mask": True},
        {"reset_mask": None},
        ["keys"],
    ]
    + [{"key": key} for key in WRONG_KEYS],
    ids=repr,
)
def test_a_vector_refuses_other_options(vector: Any, options: Any, world: World) -> None:
    env, other = vector(3, world=world), vector(3, world=world)
    env.reset(seed=1)
    other.reset(seed=1)
    with pytest.raises(InvalidResetError, match="reset option") as caught:
        env.reset(seed=9, options=options)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(env.step([5] * 3)[0], other.step([5] * 3)[0])
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize(
    "seed", [-1, 1.5, "7", [1, 2], [1, 2, 3, 4], [1, 2, -3], [1, 2, 3.0], [1, [2], 3], {1, 2, 3}]
)
def test_a_vector_refuses_other_seeds(vector: Any, seed: Any, world: World) -> None:
    env = vector(3, world=world)
    before = env.reset(seed=1)[0]
    with pytest.raises(InvalidResetError, match="seed"):
        env.reset(seed=seed)
    np.testing.assert_array_equal(env.reset(seed=1)[0], before)


@pytest.mark.parametrize("single", SINGLES)
def test_a_single_environment_refuses_other_seeds(single: Any, world: World) -> None:
    env = single(world=world)
    for seed in (-1, 1.5, "7", [1]):
        with pytest.raises(gym.error.Error, match=r"^seed"):
            env.reset(seed=seed)
    np.testing.assert_array_equal(env.reset(seed=np.int64(3))[0], env.reset(seed=3)[0])


@pytest.mark.parametrize(("single", "vector"), PAIRS)
@pytest.mark.parametrize(
    "seed", [5, np.int64(5), [5, 6, 7], [5, None, 7], np.array([5, 6, 7]), None]
)
def test_seeds_are_shared_out_as_in_gymnasiums_vector(
    single: Any, vector: Any, seed: Any, world: World
) -> None:
    native, peer = vector(3, world=world), SyncVectorEnv([lambda: single(world=world)] * 3)
    native.reset(seed=50)
    peer.reset(seed=50)
    plain = [None if s is None else int(s) for s in seed] if np.ndim(seed) else seed
    theirs, _ = peer.reset(seed=plain if plain is None or np.ndim(plain) else int(plain))
    np.testing.assert_allclose(native.reset(seed=seed)[0], theirs, atol=2e-6)
    np.testing.assert_allclose(native.reset()[0], peer.reset()[0], atol=2e-6)


@pytest.mark.parametrize("vector", VECTORS)
def test_a_mask_resets_some_lanes_and_leaves_the_others_alone(vector: Any, world: World) -> None:
    env, other = vector(3, world=world), vector(3, world=world)
    for e in (env, other):
        e.reset(seed=5)
        for _ in range(4):
            moved = e.step([19] * 3)[0]
    options = {"reset_mask": np.array([False, True, False])}
    after, _ = env.reset(seed=70, options=options)
    assert list(options) == ["reset_mask"]  # wrappers read it once more
    np.testing.assert_array_equal(after[[0, 2]], moved[[0, 2]])
    assert env.simulator.frame.tolist()[1] == 0
    one = vector(1, world=world)
    np.testing.assert_allclose(after[1], one.reset(seed=71)[0][0], atol=2e-6)
    # Lanes that go on keep their generators, too.
    np.testing.assert_array_equal(env.reset()[0][[0, 2]], other.reset()[0][[0, 2]])


@pytest.mark.parametrize("vector", VECTORS)
def test_nothing_runs_before_a_reset(vector: Any, world: World) -> None:
    env = vector(3, world=world)
    mask = {"reset_mask": np.array([True, True, False])}
    for early in (lambda: env.step([0] * 3), lambda: env.reset(options=mask)):
        with pytest.raises(gym.error.ResetNeeded, match="no drive has begun"):
            early()
    env.reset(options={"reset_mask": np.ones(3, bool)})
    env.step([0] * 3)


@pytest.mark.parametrize("single", SINGLES)
def test_nothing_runs_in_a_single_one_before_a_reset(single: Any, world: World) -> None:
    env = single(world=world, render_mode="ansi")
    for early in (lambda: env.step(0), env.render):
        with pytest.raises(gym.error.ResetNeeded, match="no drive has begun"):
            early()


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_multiplier_is_a_finite_price(price: float, world: World) -> None:
    env = OffloadEnv(world=world)
    for prices in ((price,), (0.0, price)):
        with pytest.raises(ConfigError, match="0 or more"):
            env.set_lagrange(*prices)
    assert env.lagrange == env.critical_lagrange == 0.0
