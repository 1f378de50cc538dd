"""The adapter passes on what the native environment did, lane by lane."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.sb3_adapter import OffloadVecEnv
from agents.training import error_probability
from cnn.common.errors import ConfigError
from cnn.topology import SHIPPED
from offload_env.batch_simulator import SKIPPED
from offload_env.env_input import InvalidResetError
from offload_env.vector_env import OffloadVectorEnv

LANES = 5


def drive(adapter, native, steps: int, multiplier: float):
    """Step both with the same actions; yields what each returned."""
    adapter.seed(11)
    observation = adapter.reset()
    expected, _ = native.reset(seed=11)
    np.testing.assert_array_equal(observation, expected)
    adapter.multiplier = multiplier
    rng = np.random.default_rng(0)
    for _ in range(steps):
        actions = rng.integers(0, SHIPPED.n_actions, LANES)
        adapter.step_async(actions)
        yield adapter.step_wait(), native.step(actions)


def test_observations_rewards_and_ends_are_the_environments(make_world) -> None:
    world = make_world(20.0, n_frames=7)
    adapter = OffloadVecEnv(OffloadVectorEnv(LANES, world=world))
    native = OffloadVectorEnv(LANES, world=world, lagrange=3.0)
    for mine, its in drive(adapter, native, 20, 3.0):
        observation, reward, done, infos = mine
        expected, its_reward, terminated, truncated, info = its
        np.testing.assert_array_equal(observation, expected)
        np.testing.assert_allclose(reward, its_reward, rtol=1e-6)
        np.testing.assert_array_equal(done, terminated | truncated)
        for lane in range(LANES):
            if done[lane]:
                np.testing.assert_array_equal(
                    infos[lane]["terminal_observation"], info["final_obs"][lane]
                )
                assert infos[lane]["TimeLimit.truncated"]
            else:
                assert infos[lane] == {}


def test_options_reach_the_lanes_once_or_are_refused(make_world) -> None:
    world = make_world(20.0, n_frames=7)
    adapter = OffloadVecEnv(OffloadVectorEnv(3, world=world))
    native = OffloadVectorEnv(3, world=world)
    adapter.set_options({"key": 5})
    np.testing.assert_array_equal(adapter.reset(), native.reset(options={"key": 5})[0])
    adapter.set_options([{"key": 5}, {"key": 6}, {"key": 7}])
    np.testing.assert_array_equal(adapter.reset(), native.reset(options={"keys": [5, 6, 7]})[0])
    adapter.seed(2)
    np.testing.assert_array_equal(adapter.reset(), native.reset(seed=2)[0])
    for wrong in ({"kye": 5}, [{"key": 5}, {}, {"key": 7}]):
        adapter.set_options(wrong)
        with pytest.raises(InvalidResetError, match="key"):
            adapter.reset()


def test_only_same_step_resets_fit(make_world) -> None:
    env = OffloadVectorEnv(3, world=make_world(20.0), autoreset_mode="NextStep")
    with pytest.raises(ConfigError, match="NextStep; expected SameStep"):
        OffloadVecEnv(env)


def test_sums_are_means_over_all_lanes(make_world) -> None:
    world = make_world(20.0, n_frames=7)
    adapter = OffloadVecEnv(OffloadVectorEnv(LANES, world=world))
    native = OffloadVectorEnv(LANES, world=world)
    seen = [info for _, (*_, info) in drive(adapter, native, 12, 0.0)]
    means, shares = adapter.sums.take()
    for name in ("cost", "delay_ms", "energy_mj", "accuracy"):
        assert means[name] == pytest.approx(np.mean([i[name] for i in seen]))
    taken = np.bincount(np.concatenate([i["action"] for i in seen]), minlength=SHIPPED.n_actions)
    np.testing.assert_allclose(shares, taken / taken.sum())
    assert adapter.sums.frames == 0


def test_actions_are_mapped_and_doubt_replaces_the_coin(make_world) -> None:
    world = make_world(200.0)
    table = error_probability(world.table)
    adapter = OffloadVecEnv(OffloadVectorEnv(3, world=world), [0, 19], table)
    assert adapter.action_space.n == 2
    adapter.seed(1)
    adapter.reset()
    adapter.multiplier = 10.0
    rows = adapter.env.simulator.row.copy()
    adapter.step_async(np.array([0, 1, 1]))
    _, reward, _, _ = adapter.step_wait()
    native = OffloadVectorEnv(3, world=world)
    native.reset(seed=1)
    _, _, _, _, info = native.step(np.array([0, 19, 19]))
    assert (info["status"] == 0).all()
    expected = -info["cost"] - 10.0 * (table[rows, [0, 19, 19]] - table[rows].mean(1))
    np.testing.assert_allclose(reward, expected, rtol=1e-4)


def test_how_hard_a_frame_is_moves_no_action_before_another(make_world) -> None:
    """What is left out of the reward is the same whatever is done with the frame, drop included."""
    world = make_world(200.0)
    table = error_probability(world.table)
    adapter = OffloadVecEnv(OffloadVectorEnv(4, world=world), error_probability=table)
    adapter.seed(2)
    adapter.reset()
    rows = np.array([3, 7, 7, 9])
    actions = np.array([0, 5, 19, 12])
    answered = {"status": np.zeros(4, np.int64), "exit_used": np.ones(4, np.int64)}
    answered["action"] = actions
    wrong = adapter._wrong(rows, answered)
    np.testing.assert_allclose(table[rows, actions] - wrong, table[rows].mean(1), atol=1e-6)
    skipped = adapter._wrong(rows, {**answered, "status": np.full(4, SKIPPED)})
    np.testing.assert_allclose(1 - skipped, table[rows].mean(1), atol=1e-6)


def test_doubt_keeps_every_actions_mean(make_world) -> None:
    table = make_world(20.0).table
    chance = error_probability(table)
    np.testing.assert_allclose(chance.mean(0), 1 - table.correct.mean(0), atol=2e-3)
    assert chance.min() >= 0
    assert chance.max() <= 1
    # It must tell right from wrong answers apart, or it would be no use.
    assert chance[~table.correct].mean() > 3 * chance[table.correct].mean()


def test_the_modems_tail_is_charged_to_its_cause_and_cancels_over_a_drive(make_world) -> None:
    world = make_world(20.0, n_frames=30)
    radio = replace(world.cost.radio, tail_mw=600.0, tail_ms=800.0)
    world = replace(world, cost=replace(world.cost, radio=radio))
    lanes, local = 3, SHIPPED.local[0]
    adapter = OffloadVecEnv(OffloadVectorEnv(lanes, world=world))
    native = OffloadVectorEnv(lanes, world=world)
    adapter.seed(4)
    adapter.reset()
    native.reset(seed=4)
    rng = np.random.default_rng(0)
    total = its_total = np.zeros(lanes)
    for i in range(30):
        actions = np.full(lanes, local)
        if i == 3:  # the first exchange: the whole tail is booked at once
            actions[:] = 0
        elif i > 3:
            actions = rng.integers(0, SHIPPED.n_actions, lanes)
        adapter.step_async(actions)
        _, reward, done, _ = adapter.step_wait()
        _, its_reward, *_ = native.step(actions)
        if i < 3:
            np.testing.assert_allclose(reward, its_reward, rtol=1e-5)
        elif i == 3:
            price = world.scenario.price.energy_weight / world.energy_ref_mj
            whole = price * radio.tail_mw * radio.tail_ms / 1e3
            spent = world.scenario.timing.period_ms / radio.tail_ms * whole
            assert (reward < its_reward - (whole - spent)).all()
            assert (reward > its_reward - whole).all()
        total, its_total = total + reward, its_total + its_reward
    assert done.all()
    np.testing.assert_allclose(total, its_total, rtol=1e-4)
