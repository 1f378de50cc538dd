"""Peers' own tools run on the environments: Gymnasium's wrappers and checkers, other learners."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as vector_wrappers
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

import offload_env  # noqa: F401  registers the ids
from cnn.common.errors import BundleError, ConfigError, DataError, RemoteError, SliproadError
from offload_env import env_input
from offload_env.env import OffloadEnv, OffloadStagedEnv
from offload_env.scenario import CLASSIC
from offload_env.vector_env import OffloadStagedVectorEnv, OffloadVectorEnv
from offload_env.world import World

IDS = ["sliproad/Offload-v0", "sliproad/OffloadStaged-v0"]
PAIRS = [(OffloadEnv, OffloadVectorEnv), (OffloadStagedEnv, OffloadStagedVectorEnv)]
KINDS = [kind for pair in PAIRS for kind in pair]


@pytest.mark.slow(16)
@pytest.mark.parametrize("scenario", [*CLASSIC, "rush-camera", "dusk-camera"])
@pytest.mark.parametrize("name", IDS)
def test_every_id_and_scenario_passes_both_checkers(name: str, scenario: str) -> None:
    for split in ("train", "test"):
        env = gym.make(name, scenario=scenario, split=split).unwrapped
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # That makes the environment three times more; pictures differ in no scenario.
            check_env(env, skip_render_check=(scenario, split) != ("urban-5g", "train"))
            sb3_check_env(env)


@pytest.mark.slow(2)
@pytest.mark.parametrize(
    ("name", "mode"),
    [(IDS[0], "async"), (IDS[0], "sync"), (IDS[0], "vector_entry_point"), (IDS[1], None)],
)
def test_every_way_to_make_a_vector(name: str, mode: str | None) -> None:
    envs = gym.make_vec(name, 2, vectorization_mode=mode, scenario="slow-device")
    observation, _ = envs.reset(seed=0, options={"key": 3})
    assert envs.observation_space.contains(observation)
    np.testing.assert_allclose(observation[0], observation[1])
    observation, reward, *_ = envs.step(envs.action_space.sample())
    assert envs.observation_space.contains(observation)
    assert reward.shape == (2,)
    envs.close()


@pytest.mark.parametrize("name", IDS)
def test_a_specification_makes_the_same_again(name: str) -> None:
    envs = gym.make_vec(name, 2, autoreset_mode="NextStep", scenario="slow-device")
    again = gym.make_vec(pickle.loads(pickle.dumps(envs.spec)))
    assert (again.num_envs, again.spec) == (2, envs.spec)
    assert again.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@pytest.mark.slow(1)
@pytest.mark.filterwarnings("ignore")  # Gymnasium says in warnings that a worker failed
def test_a_worker_hands_its_error_to_the_caller() -> None:
    envs = gym.make_vec(IDS[0], 2, vectorization_mode="async")
    with pytest.raises(env_input.InvalidResetError, match="unknown reset option kye"):
        envs.reset(options={"kye": 3})
    envs.close(terminate=True)


@pytest.mark.parametrize(
    "kind",
    [SliproadError, ConfigError, DataError, BundleError, RemoteError]
    + [e for e in vars(env_input).values() if isinstance(e, type) and issubclass(e, SliproadError)],
)
def test_an_error_survives_the_way_to_another_process(kind: Any) -> None:
    error = kind("this", expected="that", hint="do so")
    for again in (pickle.loads(pickle.dumps(error)), kind(error)):
        assert (type(again), str(again)) == (kind, str(error))
        assert (again.given, again.expected, again.hint) == ("this", "that", "do so")


@pytest.mark.slow(2)
@pytest.mark.parametrize("name", IDS)
def test_the_usual_wrappers_of_a_single_environment(name: str) -> None:
    env = gym.make(name, max_episode_steps=4, render_mode="rgb_array_list")
    for wrap in (
        wrappers.RecordEpisodeStatistics,
        wrappers.NormalizeObservation,
        wrappers.NormalizeReward,
        wrappers.TimeAwareObservation,
        wrappers.Autoreset,
    ):
        env = wrap(env)
    env.reset(seed=0)
    results = [env.step(5) for _ in range(5)]
    assert [truncated for *_, truncated, _ in results] == [False, False, False, True, False]
    assert results[3][-1]["episode"]["l"] == 4
    assert env.get_wrapper_attr("action_masks")().dtype == bool
    env.get_wrapper_attr("set_lagrange")(2.0)
    assert env.unwrapped.lagrange == 2.0  # type: ignore[attr-defined]
    frames: Any = env.render()
    assert {frame.shape for frame in frames} == {(160, 400, 3)}
    again = gym.make(gym.envs.registration.EnvSpec.from_json(gym.make(name).spec.to_json()))  # type: ignore[union-attr]
    assert type(again.unwrapped) is type(env.unwrapped)


@pytest.mark.parametrize("name", IDS)
def test_the_usual_wrappers_of_a_vector(name: str) -> None:
    envs: Any = gym.make_vec(name, 3, autoreset_mode="NextStep", max_episode_steps=4)
    for wrap in (
        vector_wrappers.RecordEpisodeStatistics,
        vector_wrappers.FlattenObservation,
        vector_wrappers.NormalizeObservation,
        vector_wrappers.NormalizeReward,
        vector_wrappers.ClipReward,
        vector_wrappers.DictInfoToList,
    ):
        envs = wrap(envs) if wrap is not vector_wrappers.ClipReward else wrap(envs, -1.0, 1.0)
    envs.reset(seed=0)
    infos = [envs.step([5, 5, 5])[-1] for _ in range(5)]
    assert [info["episode"]["l"] for info in infos[3]] == [4, 4, 4]
    assert "delay_ms" in infos[3][0]
    assert infos[4] == [{}, {}, {}]  # as Gymnasium's own vector: these lanes were reset


def test_same_step_statistics_are_those_of_gymnasiums_vector(world: World) -> None:
    makers = [lambda: gym.wrappers.TimeLimit(OffloadEnv(world=world), 5)] * 3
    mode = AutoresetMode.SAME_STEP
    native = OffloadVectorEnv(3, world=world, max_episode_steps=5)
    peers = gym.vector.SyncVectorEnv(makers, autoreset_mode=mode)
    both = [vector_wrappers.RecordEpisodeStatistics(e) for e in (native, peers)]
    rng = np.random.default_rng(0)
    for envs in both:
        envs.reset(seed=0)
    for _ in range(12):
        actions = rng.integers(0, 20, 3)
        for envs in both:
            envs.step(actions)
    lengths = [list(each.length_queue) for each in both]
    assert lengths[0] == lengths[1]
    assert lengths[0][:3] == [5] * 3  # Gymnasium before 1.4 counts later episodes one short
    np.testing.assert_array_equal(both[0].return_queue, both[1].return_queue)


@pytest.mark.parametrize("kind", KINDS)
def test_info_holds_numbers(kind: Any, world: World) -> None:
    """Wrappers that turn info into tensors (`NumpyToTorch`) take strings apart."""
    single = issubclass(kind, gym.Env)
    env: Any = kind(world=world) if single else kind(2, world=world)
    env.reset(seed=0)
    for _ in range(3):
        *_, info = env.step(12 if single else [12, 12])
        for name, value in info.items():
            assert np.asarray(value).dtype.kind in "bif", name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("again", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_alike_and_apart(kind: Any, again: Any, world: World) -> None:
    single = issubclass(kind, gym.Env)
    env: Any = kind(world=world) if single else kind(2, world=world)
    env.reset(seed=0)
    action = 5 if single else [5, 5]
    env.step(action)
    other = again(env)
    for _ in range(3):
        np.testing.assert_equal(env.step(action), other.step(action))
    other.step(action)
    np.testing.assert_equal(other.reset(), env.reset())


@pytest.mark.slow(1)
@pytest.mark.parametrize("name", IDS)
def test_stable_baselines3_makes_vectors_by_id(name: str) -> None:
    envs = make_vec_env(name, 2, seed=1)
    kind = MaskablePPO if "Staged" in name else PPO
    kind("MlpPolicy", envs, n_steps=8, batch_size=16, device="cpu").learn(16)
    assert [np.shape(image) for image in envs.get_images()] == [(160, 400, 3)] * 2


@pytest.mark.slow(4)
@pytest.mark.parametrize("learner", [PPO, MaskablePPO])
def test_stable_baselines3_learns_by_id(learner: Any) -> None:
    learner("MlpPolicy", IDS[0], n_steps=8, batch_size=8, device="cpu").learn(8)


@pytest.mark.slow(4)
def test_stable_baselines3_workers_import_what_the_id_says() -> None:
    envs = make_vec_env(f"offload_env:{IDS[0]}", 1, seed=1, vec_env_cls=SubprocVecEnv)
    assert envs.reset().shape == (1, 33)
    envs.close()


@pytest.mark.slow(2)
@pytest.mark.parametrize("kind", KINDS)
def test_rllib_passes_all_arguments_in_one_dict(kind: Any) -> None:
    class EnvContext(dict[str, Any]):
        """As `ray.rllib.env.env_context.EnvContext`: a dict with attributes."""

        worker_index = 1

    single = issubclass(kind, gym.Env)
    config = {"scenario": "slow-device", "split": "test", "lagrange": 2.0}
    lanes = {} if single else {"num_envs": 2}
    env = kind(EnvContext(config) | lanes)
    assert (env.world.scenario.name, env.world.split, env.lagrange) == ("slow-device", "test", 2.0)
    assert kind(EnvContext()).world.scenario.name == "urban-5g"
    with pytest.raises(TypeError, match="colour"):
        kind(EnvContext(colour="red"))


@pytest.mark.parametrize("name", IDS)
def test_an_unknown_argument_is_named(name: str, world: World) -> None:
    with pytest.raises(TypeError, match="colour"):
        gym.make(name, colour="red")
    with pytest.raises(TypeError, match="colour"):
        gym.make_vec(name, 2, colour="red")
    with pytest.raises(TypeError, match="colour") as caught:
        gym.make(name, colour="red", world=world)
    assert len(str(caught.value)) < 300
