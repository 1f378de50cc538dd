"""An action is in the action space, or there is one clear error and nothing has happened."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnn.common.errors import SliproadError
from offload_env.env import OffloadEnv, OffloadStagedEnv
from offload_env.env_input import InvalidActionError, checked_action, checked_actions
from offload_env.preferences import ConditionedVectorEnv
from offload_env.vector_env import OffloadStagedVectorEnv, OffloadVectorEnv
from offload_env.world import World

SINGLES = [OffloadEnv, OffloadStagedEnv]
VECTORS = [OffloadVectorEnv, OffloadStagedVectorEnv, ConditionedVectorEnv]
WRONG: list[Any] = [
    -1,
    36,
    2**70,
    3.0,
    float("nan"),
    None,
    "3",
    np.float32(3),
    np.array(3.0),
    np.array([3]),
    np.array([1, 2]),
    [3],
    {"action": 3},
    torch.tensor(3.0),
]
WRONG_VECTORS: list[Any] = [
    [0, -1, 0],
    [0, 0, 36],
    [0, 0, 2**70],
    [0.0, 1.0, 2.0],
    [0, float("nan"), 0],
    [0, None, 0],
    ["0", "1", "2"],
    [0, 1],
    [0, 1, 2, 3],
    [[0, 1, 2]],
    [[0], [1], [2]],
    [[0], [1, 2], 3],
    [],
    5,
    None,
    np.array([0, 1, 2**63], np.uint64),
    torch.zeros(3),
]


@pytest.mark.parametrize("single", SINGLES)
@pytest.mark.parametrize("action", WRONG, ids=repr)
def test_a_single_environment_refuses_it(single: Any, action: Any, world: World) -> None:
    env, other = single(world=world), single(world=world)
    env.reset(seed=4)
    other.reset(seed=4)
    with pytest.raises(gym.error.InvalidAction, match=r"^action .*; expected an integer") as caught:
        env.step(action)
    assert isinstance(caught.value, SliproadError)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(env.step(5)[0], other.step(5)[0])


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("actions", WRONG_VECTORS, ids=repr)
def test_a_vector_refuses_them_all(vector: Any, actions: Any, world: World) -> None:
    env, other = vector(3, world=world), vector(3, world=world)
    env.reset(seed=4)
    other.reset(seed=4)
    with pytest.raises(gym.error.InvalidAction, match=r"^actions? .*; expected") as caught:
        env.step(actions)
    assert isinstance(caught.value, SliproadError)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(env.step([5, 6, 7])[0], other.step([5, 6, 7])[0])


def test_the_lane_is_named(world: World) -> None:
    env = OffloadVectorEnv(3, world=world)
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match=r"^action 20 in lane 1; expected .* 0 to 19"):
        env.step(np.array([0, 20, -1]))


@pytest.mark.parametrize("single", SINGLES)
def test_every_kind_of_integer_is_the_same_action(single: Any, world: World) -> None:
    results = []
    for kind in (int, np.int64, np.uint8, np.array, torch.tensor):
        env = single(world=world)
        env.reset(seed=2)
        results.append(env.step(kind(9))[0].tolist())
    assert results == [results[0]] * len(results)


@pytest.mark.parametrize("vector", VECTORS)
def test_every_kind_of_integers_is_the_same_actions(vector: Any, world: World) -> None:
    results = []
    wide = np.repeat(np.array([3, 9, 5]), 2)
    actions: list[Any] = [(3, 9, 5), np.array([3, 9, 5], np.int32), torch.tensor([3, 9, 5])]
    for given_actions in [[3, 9, 5], *actions, wide[::2], np.array([3, 9, 5], np.uint64)]:
        env = vector(3, world=world)
        env.reset(seed=2)
        results.append(env.step(given_actions)[0].tolist())
    assert results == [results[0]] * len(results)


@given(
    st.one_of(
        st.integers(-50, 50),
        st.floats(),
        st.booleans(),
        st.integers(-128, 127).map(np.int8),
        st.integers(0, 40).map(np.array),
    )
)
def test_the_rule_is_the_spaces_own(action: Any) -> None:
    space = gym.spaces.Discrete(20)
    try:
        accepted = checked_action(action, 20) == action
    except InvalidActionError:
        accepted = False
    assert accepted == space.contains(action)


@given(st.lists(st.one_of(st.integers(-3, 25), st.just(4.0)), max_size=5))
def test_the_rule_for_many_is_their_spaces_own(actions: list[Any]) -> None:
    space = gym.spaces.MultiDiscrete([20] * 3)
    try:
        accepted = checked_actions(actions, 3, 20).tolist() == actions
    except InvalidActionError:
        accepted = False
    assert accepted == space.contains(actions)
