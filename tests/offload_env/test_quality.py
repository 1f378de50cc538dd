"""Frames whose answers have a quality: simulators, environments, bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from networks import (
    NETWORKS,
    THREE_EXITS,
    TWO_EXITS,
    made_up_cost,
    made_up_table,
    network_id,
    right_as_quality,
    with_quality,
)
from sequences import every_sequence

from cnn.common.errors import ConfigError, DataError
from cnn.frame_table import FrameTable, join_tables
from cnn.topology import Topology
from offload_env.batch_simulator import BatchSimulator
from offload_env.bound.programme import Relaxed, options
from offload_env.bound.search import best_schedule
from offload_env.env import OffloadEnv, OffloadStagedEnv
from offload_env.episode import episode_keys
from offload_env.frame_picture import Shown, describe, paint
from offload_env.outcome import FALLBACK, OK, SKIPPED
from offload_env.scenario import Constraint
from offload_env.simulator import Simulator
from offload_env.vector_env import OffloadStagedVectorEnv, OffloadVectorEnv
from offload_env.world import World
from testbed.policy.decision_points import decision_points

MakeWorld = Callable[..., World]
for_each = pytest.mark.parametrize("topology", NETWORKS, ids=network_id)


def tight(make_world: MakeWorld, table: FrameTable, **changes: Any) -> World:
    """Little time for a frame: frames queue, are skipped and time out."""
    cost = made_up_cost(table.topology)
    at_most = cost.device_ms[table.topology.main]
    scenario = make_world().scenario
    timing = replace(
        scenario.timing,
        period_ms=0.9 * at_most,
        timeout_ms=20.0,
        deadline_ms=15.0,
        max_queue_ms=20.0,
    )
    given = {"timing": timing, "constraint": Constraint(accuracy_margin=0.05)} | changes
    return make_world(table=table, cost=cost, **given)


@for_each
def test_every_lane_settles_as_the_scalar_simulator_does(
    topology: Topology, make_world: MakeWorld
) -> None:
    world = tight(make_world, with_quality(made_up_table(topology)))
    keys, rng, seen = episode_keys(1, 12), np.random.default_rng(1), np.zeros(3, int)
    batch, single = BatchSimulator(world, 12), [Simulator(world) for _ in keys]
    batch.reset(keys)
    for simulator, key in zip(single, keys, strict=True):
        simulator.reset(world.plan(int(key)))
    assert world.table.quality is not None
    for _ in range(80):
        actions = rng.integers(0, topology.n_actions, 12)
        together = batch.settle(actions)
        for k, simulator in enumerate(single):
            alone = simulator.settle(int(actions[k]))
            assert alone == tuple(column[k] for column in together)
            of_answer = world.table.quality[alone.row, alone.used]
            assert alone.correct == (0.0 if alone.status == SKIPPED else float(of_answer))
            seen[alone.status] += 1
    assert (seen[[OK, FALLBACK, SKIPPED]] > 15).all(), seen


@for_each
def test_every_lane_advances_as_the_scalar_simulator_does(
    topology: Topology, make_world: MakeWorld
) -> None:
    world = tight(make_world, with_quality(made_up_table(topology)))
    points, keys = decision_points(topology), episode_keys(2, 8)
    batch, single = BatchSimulator(world, 8), [Simulator(world) for _ in keys]
    batch.reset(keys)
    for simulator, key in zip(single, keys, strict=True):
        simulator.reset(world.plan(int(key)))
    rng, ends = np.random.default_rng(2), 0
    for _ in range(150):
        at = batch.point
        chosen = np.array([rng.choice(np.flatnonzero(points.legal[p])) for p in at])
        ended, together = batch.advance(chosen)
        for lane, action in enumerate(chosen.tolist()):
            outcome = single[lane].advance(action)
            if outcome is not None:
                k = int(np.flatnonzero(ended == lane)[0])
                assert outcome == tuple(column[k] for column in together)
                ends += 1
    assert ends > 300


@pytest.mark.parametrize("staged", [False, True])
def test_right_or_wrong_as_quality_gives_the_very_same_drives(
    staged: bool, make_world: MakeWorld
) -> None:
    table = made_up_table(THREE_EXITS)
    worlds = [tight(make_world, of) for of in (table, right_as_quality(table))]
    assert worlds[0].accuracy_floor == worlds[1].accuracy_floor
    single, vector = (
        (OffloadStagedEnv, OffloadStagedVectorEnv) if staged else (OffloadEnv, OffloadVectorEnv)
    )
    for kind, n in ((single, None), (vector, 5)):
        envs = [kind(*([] if n is None else [n]), world=world) for world in worlds]
        for env in envs:
            env.set_lagrange(3.0)
        observed = [env.reset(seed=3)[0] for env in envs]
        rng = np.random.default_rng(0)
        for _ in range(60):
            np.testing.assert_array_equal(*observed)
            action = rng.integers(0, envs[0].space.n_actions, n)
            steps = [env.step(action) for env in envs]
            observed = [step[0] for step in steps]
            np.testing.assert_array_equal(steps[0][1], steps[1][1])
            for name, values in steps[0][4].items():
                if not name.startswith(("final", "_final")):
                    np.testing.assert_array_equal(values, steps[1][4][name])


def test_right_or_wrong_as_quality_has_the_very_same_bound(make_world: MakeWorld) -> None:
    table, keys = made_up_table(THREE_EXITS), episode_keys(5, 4)
    (bound, found), (same, same_found) = (
        best_schedule(tight(make_world, of), keys, n_frames=15)
        for of in (table, right_as_quality(table))
    )
    assert same == bound
    np.testing.assert_array_equal(same_found.actions, found.actions)
    np.testing.assert_array_equal(same_found.accuracy, found.accuracy)


@pytest.mark.parametrize("topology", [TWO_EXITS, THREE_EXITS], ids=network_id)
def test_no_sequence_of_actions_beats_the_bound(topology: Topology, make_world: MakeWorld) -> None:
    world, n = tight(make_world, with_quality(made_up_table(topology))), 3
    for key in episode_keys(1, 3):
        every = every_sequence(world, int(key), n)
        cost, quality = every.cost.mean(1), every.accuracy.mean(1)
        assert len(np.unique(quality)) > n + 1  # fractions, not counts
        keys = np.array([key], np.uint64)
        relaxed = Relaxed(options(world, keys, n))
        for multiplier in (0.0, 0.4, 3.0, 20.0):
            least = (cost + multiplier * (1.0 - quality)).min()
            value = relaxed.solve(multiplier).value
            assert 0.4 * cost.min() < value <= least + 1e-9
        floor = float(np.quantile(quality, 0.9))
        bound, found = best_schedule(world, keys, floor=floor, critical_floor=0.0, n_frames=n)
        assert bound.cost <= cost[quality >= floor].min() + 1e-9
        assert found.mean_accuracy >= floor - 1e-9
        assert bound.cost <= found.mean_cost + 1e-9


def test_the_floor_is_one_of_mean_quality(make_world: MakeWorld) -> None:
    table = with_quality(made_up_table(TWO_EXITS))
    world = tight(make_world, table)
    assert table.quality is not None
    mean = table.quality[:, -1].astype(np.float64).mean()
    assert world.accuracy_floor == pytest.approx(mean - 0.05)
    env = OffloadEnv(world=world, lagrange=2.0)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(TWO_EXITS.main)
    assert 0 < info["accuracy"] < 1
    assert reward == pytest.approx(-info["cost"] - 2.0 * (1.0 - info["accuracy"]))


def test_a_floor_as_high_as_the_best_actions_quality_can_be_kept(make_world: MakeWorld) -> None:
    table = with_quality(made_up_table(TWO_EXITS), seed=3)
    assert table.quality is not None
    table.quality[:, -1] = table.quality.max(1)
    world = make_world(
        table=table, cost=made_up_cost(TWO_EXITS), constraint=Constraint(accuracy_margin=0.0)
    )
    keys = episode_keys(2, 7)
    rows = np.stack([world.rows(int(key), 9) for key in keys])
    floor = float(world.correct[rows, -1].mean())
    bound, found = best_schedule(world, keys, floor=floor, critical_floor=0.0, n_frames=9)
    assert found.mean_accuracy == pytest.approx(floor)
    assert bound.cost <= found.mean_cost + 1e-9


def test_a_frame_without_a_class_is_described_and_painted(make_world: MakeWorld) -> None:
    world = tight(make_world, with_quality(made_up_table(TWO_EXITS)))
    simulator = Simulator(world)
    simulator.reset(world.plan(1))
    outcome = simulator.settle(TWO_EXITS.main)
    shown = Shown(0, outcome=outcome)
    assert f"quality {outcome.correct:.2f}" in describe(world, shown)
    worse = Shown(0, outcome=outcome._replace(correct=0.0))
    assert (paint(world, shown) != paint(world, worse)).any()


def test_classes_of_frames_that_have_none_cannot_be_critical(make_world: MakeWorld) -> None:
    table = with_quality(made_up_table(TWO_EXITS))
    with pytest.raises(ConfigError, match="its frames have no classes"):
        tight(make_world, table, constraint=Constraint(critical_classes=(3,)))


def test_tables_with_and_without_qualities_are_not_joined() -> None:
    labels, quality = made_up_table(TWO_EXITS), with_quality(made_up_table(TWO_EXITS))
    with pytest.raises(DataError, match="some of them with qualities"):
        join_tables([labels, quality], "both")
    joined = join_tables([quality, quality], "twice")
    assert joined.quality is not None
    np.testing.assert_array_equal(joined.quality, np.tile(quality.quality, (2, 1)))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, 1.2, -0.1])
def test_a_quality_beyond_0_and_1_makes_no_table(value: float) -> None:
    table = with_quality(made_up_table(TWO_EXITS))
    assert table.quality is not None
    quality = table.quality.copy()
    quality[2, 1] = value
    with pytest.raises(DataError, match="quality holds"):
        replace(table, quality=quality)
    with pytest.raises(DataError, match="quality has shape"):
        replace(table, quality=quality[:-1])
