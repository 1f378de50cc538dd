"""The batch equals the scalar simulator, exactly."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from batch_against_scalar import BothSimulators

from cnn.frame_table import FrameTable
from cnn.topology import SHIPPED
from offload_env.batch_simulator import BatchSimulator
from offload_env.env import observation_box
from offload_env.scenario import Constraint
from offload_env.server_load import ServerLoad
from offload_env.simulator import FALLBACK, OK, SKIPPED, Simulator
from offload_env.world import World
from testbed.policy.decision_points import decision_points
from testbed.policy.observation_fields import schema_of

POINTS = decision_points(SHIPPED)
SCHEMA = schema_of(SHIPPED)

LANES, STEPS = 24, 150


def _compare(world: World, seed: int) -> BothSimulators:
    both = BothSimulators(world, LANES, seed)
    both.settle(STEPS)
    return both


@pytest.mark.slow(1)
def test_every_lane_equals_the_scalar_simulator_exactly(world: World) -> None:
    seen = _compare(world, 0).seen
    assert (seen[[OK, FALLBACK, SKIPPED]] > 50).all()


@pytest.mark.slow(3)
def test_every_lane_advances_as_the_scalar_simulator_does(world: World) -> None:
    both = BothSimulators(world, LANES, 6)
    both.advance(3 * STEPS)
    assert (both.seen[[OK, FALLBACK, SKIPPED]] > 50).all()
    assert len(both.points) > 12


@pytest.mark.slow(1)
def test_also_without_tail_load_or_budget(make_world: Callable[..., World]) -> None:
    plain = make_world(server=ServerLoad())
    cost = replace(plain.cost, radio=replace(plain.cost.radio, tail_ms=0.0))
    price = replace(plain.scenario.price, energy_budget_mj=0.0)
    _compare(make_world(server=ServerLoad(), cost=cost, price=price), 1)


@pytest.mark.slow(1)
@pytest.mark.parametrize("promotion_ms", [15.0, 90.0])
def test_also_with_a_modem_that_connects_first(
    promotion_ms: float, make_world: Callable[..., World]
) -> None:
    cost = make_world().cost
    cost = replace(cost, radio=replace(cost.radio, tail_ms=100.0, promotion_ms=promotion_ms))
    _compare(make_world(cost=cost), 3)


@pytest.mark.slow(1)
def test_also_with_payloads_that_differ_by_frame(make_world: Callable[..., World]) -> None:
    table: FrameTable = make_world().table
    factor = np.random.default_rng(2).uniform(0.9, 1.1, (len(table), 1))
    sizes = (table.payload_bytes * factor).astype(np.int32)
    _compare(make_world(table=replace(table, payload_bytes=sizes)), 2)


def test_resetting_some_lanes_leaves_the_others_alone(world: World) -> None:
    rng = np.random.default_rng(3)
    keys = rng.integers(0, 2**63, 8).astype(np.uint64)
    one, two = BatchSimulator(world, 8), BatchSimulator(world, 8)
    one.reset(keys)
    two.reset(keys)
    for _ in range(10):
        actions = rng.integers(0, 20, 8)
        one.settle(actions)
        two.settle(actions)
    some = np.array([1, 5])
    one.reset(keys[[0, 3]], some)
    fresh = BatchSimulator(world, 2)
    fresh.reset(keys[[0, 3]])
    for _ in range(30):
        others = [0, 2, 3, 4, 6, 7]
        np.testing.assert_array_equal(one.observe()[others], two.observe()[others])
        np.testing.assert_array_equal(one.observe()[some], fresh.observe())
        actions = rng.integers(0, 20, 8)
        one.settle(actions)
        two.settle(actions)
        fresh.settle(actions[some])


@pytest.mark.parametrize("seed", [4, 5])
def test_rows_follow_the_tracks(world: World, seed: int) -> None:
    key = int(np.random.default_rng(seed).integers(0, 2**63))
    simulator = Simulator(world)
    simulator.reset(world.plan(key))
    rows = []
    for _ in range(60):
        rows.append(simulator.row)
        simulator.settle(0)
    np.testing.assert_array_equal(rows, world.rows(key, 60))
    for before, after in itertools.pairwise(rows):
        if world.table.track[after] == world.table.track[before] and after > before:
            assert after == before + 1
        else:
            assert world.track_end[before]
            assert after in world.track_start


@pytest.mark.slow(1)
def test_classes_of_any_number_agree_and_count(make_world: Callable[..., World]) -> None:
    table: FrameTable = make_world().table
    shift = np.int16(2**15 - 1 - int(table.prediction.max()))
    high = replace(table, label=table.label + shift, prediction=table.prediction + shift)
    constraint = Constraint(critical_classes=(1 + int(shift), 3 + int(shift)))
    _compare(make_world(table=high, constraint=constraint), 3)


@pytest.mark.slow(2)
def test_a_low_floor_on_a_slow_device_is_seen_by_both(make_world: Callable[..., World]) -> None:
    plain = make_world()
    device = replace(plain.scenario.device, full_local_ms=2500.0)
    timing = replace(plain.scenario.timing, period_ms=3000.0, timeout_ms=4000.0)
    timing = replace(timing, max_queue_ms=3000.0)
    seen = []
    for floor in (0.4, 0.6):
        constraint = replace(plain.scenario.constraint, accuracy_floor=floor)
        world = make_world(device=device, timing=timing, constraint=constraint)
        _compare(world, 4)
        batch = BatchSimulator(world, 1)
        batch.reset(np.zeros(1, np.uint64))
        seen.append(batch.observe()[0])
        assert observation_box(POINTS.frame).contains(seen[-1])
    assert seen[0][30] < seen[1][30] < -1
    assert seen[0][32] > 1
