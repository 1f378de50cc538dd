"""Simulators and environments of networks with other exits and splits than the shipped one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from cnn.common.errors import ConfigError
from cnn.topology import SHIPPED, Topology
from offload_env.batch_simulator import BatchSimulator
from offload_env.env import OffloadEnv, OffloadStagedEnv
from offload_env.episode import episode_keys
from offload_env.frame_picture import Shown, describe, paint
from offload_env.outcome import NOTHING, OK
from offload_env.preferences import ConditionedVectorEnv
from offload_env.scenario import Scenario
from offload_env.simulator import FALLBACK, SKIPPED, Simulator
from offload_env.vector_env import OffloadStagedVectorEnv, OffloadVectorEnv
from offload_env.world import POOL, World, build_world
from testbed.policy.decision_points import decision_points
from testbed.policy.observation_fields import schema_of
from tests.support.networks import NETWORKS, made_up_cost, made_up_table, network_id, scenario_of

LANES, STEPS = 12, 80
PAIRS = [(OffloadEnv, OffloadVectorEnv), (OffloadStagedEnv, OffloadStagedVectorEnv)]
DEVICE, SERVER, GREY = (46, 110, 180), (232, 150, 40), (214, 214, 210)


@pytest.fixture(scope="module", params=NETWORKS, ids=network_id)
def topology(request: pytest.FixtureRequest) -> Topology:
    found: Topology = request.param
    return found


@pytest.fixture(scope="module")
def scenario(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """Frames so close, and a time-out so short, that some fall back and some are skipped."""
    made = scenario_of(topology, tmp_path_factory.mktemp("network"))
    full_ms = made_up_cost(topology).device_ms[-1]
    timing = replace(
        made.timing,
        n_frames=30,
        period_ms=0.9 * full_ms,
        timeout_ms=18.0,
        deadline_ms=15.0,
        max_queue_ms=20.0,
    )
    return replace(made, timing=timing)


@pytest.fixture(scope="module")
def world(scenario: Scenario) -> World:
    return build_world(scenario, "train")


def started(world: World, seed: int) -> tuple[BatchSimulator, list[Simulator]]:
    """A batch and single simulators at the start of the same episodes."""
    keys = episode_keys(seed, LANES)
    batch, single = BatchSimulator(world, LANES), [Simulator(world) for _ in keys]
    batch.reset(keys)
    for simulator, key in zip(single, keys, strict=True):
        simulator.reset(world.plan(int(key)))
    return batch, single


def test_every_lane_settles_as_the_scalar_simulator_does(topology: Topology, world: World) -> None:
    batch, single = started(world, 1)
    rng, seen = np.random.default_rng(1), np.zeros(3, int)
    for _ in range(STEPS):
        observed = batch.observe()
        np.testing.assert_allclose(observed, [s.observe() for s in single], atol=2e-6)
        assert observed.shape == (LANES, schema_of(topology).obs_dim)
        actions = rng.integers(0, topology.n_actions, LANES)
        together = batch.settle(actions)
        for k, simulator in enumerate(single):
            alone = simulator.settle(int(actions[k]))
            assert alone == tuple(column[k] for column in together)
            seen[alone.status] += 1
            if alone.status == FALLBACK:
                decided, used = (topology.actions[a] for a in (alone.action, alone.used))
                assert used.is_local
                assert used.exit == decided.exit
    assert (seen[[OK, FALLBACK, SKIPPED]] > 15).all(), seen


@pytest.mark.slow(3)
def test_every_lane_advances_as_the_scalar_simulator_does(topology: Topology, world: World) -> None:
    points = decision_points(topology)
    names = [f.name for f in schema_of(topology).staged_fields]
    batch, single = started(world, 2)
    rng, seen, reached = np.random.default_rng(2), np.zeros(3, int), set[int]()
    for _ in range(3 * STEPS):
        at = batch.point
        np.testing.assert_array_equal(at, [s.point for s in single])
        observed = batch.observe(points.staged)
        alone = [s.observe(points.staged) for s in single]
        np.testing.assert_allclose(observed, alone, atol=2e-6)
        for k, simulator in enumerate(single):
            stands = observed[k, names.index(f"stands_at_{points.block[at[k]]}")]
            assert stands == 1.0
            for exit, _, confidence in simulator.exits:
                shown = observed[k, names.index(f"confidence_exit{exit}")]
                assert shown == pytest.approx(2 * confidence - 1, abs=1e-6)
        reached |= set(at.tolist())
        some = np.flatnonzero(rng.random(LANES) < 0.8)
        chosen = np.array([rng.choice(np.flatnonzero(points.legal[p])) for p in at[some]])
        ended, together = batch.advance(chosen, some)
        for lane, action in zip(some.tolist(), chosen.tolist(), strict=True):
            outcome = single[lane].advance(action)
            assert (outcome is not None) == (lane in ended)
            if outcome is not None:
                k = int(np.flatnonzero(ended == lane)[0])
                assert outcome == tuple(column[k] for column in together)
                seen[outcome.status] += 1
    assert (seen[[OK, FALLBACK, SKIPPED]] > 15).all(), seen
    assert len(reached) >= 0.6 * points.n_points, f"{reached} of {points.n_points}"


def test_a_local_frame_takes_the_models_time(topology: Topology, world: World) -> None:
    cost = made_up_cost(topology)
    for key in (1, 2):
        plan = world.plan(key)
        jitter = world.device_jitter[plan.jitter_at & (POOL - 1)]
        for exit, action in zip(topology.exits, topology.local, strict=True):
            simulator = Simulator(world)
            simulator.reset(plan)
            outcome = simulator.settle(action)
            assert outcome.delay_ms == pytest.approx(cost.device_ms[action] * jitter)
            simulator.reset(plan)
            simulator.evaluate_exit(exit)
            assert simulator.answer().delay_ms == pytest.approx(outcome.delay_ms)
    assert world.delay_ref_ms == cost.device_ms[-1]
    assert world.settings.accuracy_floor == pytest.approx(world.table.correct[:, -1].mean() - 0.05)


@pytest.mark.parametrize("name", ["sliproad/Offload-v0", "sliproad/OffloadStaged-v0"])
def test_the_environments_pass_the_checker(
    topology: Topology, scenario: Scenario, name: str
) -> None:
    env: Any = gym.make(name, scenario=scenario).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
    exits, splits = topology.exits, topology.splits
    sent = [(e, s) for e in exits for s in splits if s < e]
    n_actions, n_elements = len(sent) + len(exits), 28 + len(exits)
    if "Staged" in name:
        n_actions += 1 + len(sent)
        n_elements += 5 + len({0, *splits, *exits} - {topology.n_blocks})
    assert env.action_space.n == n_actions
    assert env.observation_space.shape == (n_elements,)
    env.reset(seed=0)
    assert env.action_masks().shape == (n_actions,)


@pytest.mark.parametrize(("single", "vector"), PAIRS)
def test_a_lane_equals_a_single_environment(
    topology: Topology, world: World, single: Any, vector: Any
) -> None:
    envs = vector(2, world=world, autoreset_mode=AutoresetMode.NEXT_STEP)
    alone = [single(world=world) for _ in range(2)]
    together, _ = envs.reset(seed=4)
    np.testing.assert_allclose(
        together, [env.reset(seed=4 + k)[0] for k, env in enumerate(alone)], atol=2e-6
    )
    rng = np.random.default_rng(4)
    for _ in range(25):
        actions = rng.integers(0, envs.single_action_space.n, 2)
        masks = envs.action_masks()
        observations, rewards, _, _, info = envs.step(actions)
        for k, env in enumerate(alone):
            np.testing.assert_array_equal(masks[k], env.action_masks())
            observation, reward, _, _, own = env.step(actions[k])
            np.testing.assert_allclose(observations[k], observation, atol=2e-6)
            assert rewards[k] == reward
            assert {name: info[name][k] for name in own} == own
            assert own["status"] not in (OK, FALLBACK) or own["exit_used"] in topology.exits


def test_preferences_stand_where_the_schema_says(topology: Topology, world: World) -> None:
    envs = ConditionedVectorEnv(4, world=world)
    observation, _ = envs.reset(seed=0)
    fields = {f.name: f for f in schema_of(topology).fields}
    for name, values in (("accuracy_floor", envs.floor), ("delay_share", envs.delay_share)):
        field = fields[name]
        scaled = 2 * (values - field.low) / (field.high - field.low) - 1
        np.testing.assert_allclose(observation[:, field.index], scaled, atol=1e-5)


def test_every_block_is_painted_where_it_runs(topology: Topology, world: World) -> None:
    def width(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
        return int((picture[16, 150:] == colour).all(-1).sum())

    block = width(paint(world, Shown(0)), GREY) / topology.n_blocks
    assert block >= 10
    for action in topology.actions:
        shown = Shown(0, outcome=NOTHING._replace(action=action.index, used=action.index))
        picture = paint(world, shown)
        assert width(picture, DEVICE) == pytest.approx(action.split * block, rel=0.01)
        assert width(picture, SERVER) == pytest.approx((action.exit - action.split) * block)
        assert describe(world, shown).startswith(f"{action.name} ")


def test_data_of_two_networks_are_refused(topology: Topology, scenario: Scenario) -> None:
    others = [other for other in (SHIPPED, *NETWORKS) if other != topology]
    for other in others:
        with pytest.raises(ConfigError, match=r"cost model made up .* a network with") as caught:
            build_world(scenario, cost=made_up_cost(other))
        assert str(topology) in str(caught.value)
        with pytest.raises(ConfigError, match=r"training frames .* a network with"):
            build_world(scenario, "test", table=made_up_table(other), cost=made_up_cost(other))
    with pytest.raises(ConfigError, match=r"cost model .* a network with 5 blocks"):
        build_world(replace(scenario, device=replace(scenario.device, cost_model="fitted")))


def test_a_live_environment_refuses_a_bundle_of_another_network(
    tiny_bundle: Callable[..., Any], world: World, topology: Topology
) -> None:
    from offload_env.live_env import OffloadLiveEnv

    other = next(t for t in NETWORKS if t != topology)
    bundle: Path = tiny_bundle(other).path
    with pytest.raises(ConfigError, match=r"model bundle .* a network with"):
        OffloadLiveEnv(world=world, bundle=bundle, n_frames=2).reset(seed=0)
