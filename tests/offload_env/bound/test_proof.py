"""The bound against brute force, and the schedule between bound and brute force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sequences import every_sequence

from cnn.common.errors import ConfigError
from cnn.topology import SHIPPED
from offload_env.batch_simulator import BatchSimulator
from offload_env.bound.programme import Relaxed, options
from offload_env.bound.proof import largest_premium, lower_bound, maximise
from offload_env.bound.search import Schedule, beam_search, best_schedule, relaxed_schedule, replay
from offload_env.episode import episode_keys
from offload_env.world import World
from testbed.traces.trace import Trace

N = 3


def _all_sequences(world: World, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean cost and errors of every one of the sequences."""
    schedule = every_sequence(world, key, N)
    return schedule.cost.mean(1), 1.0 - schedule.accuracy.mean(1)


def _worlds(make_world: Callable[..., World]) -> list[World]:
    base = make_world()
    price = replace(base.scenario.price, energy_budget_mj=0.0)
    short = replace(base.scenario.timing, max_queue_ms=30.0)
    long = replace(base.cost, radio=replace(base.cost.radio, tail_ms=100.0))
    none = replace(base.cost, radio=replace(base.cost.radio, tail_ms=0.0, tail_mw=0.0))
    slow = replace(long, radio=replace(long.radio, promotion_ms=20.0))
    calm = replace(base.scenario.server, utilisation=0.1)
    return [
        make_world(price=price, timing=short, cost=replace(long, slowdown=2.0)),
        make_world(price=price, cost=none, server=calm),
        make_world(price=replace(price, delay_weight=0.05), cost=long),
        make_world(price=price, cost=slow),
    ]


@pytest.mark.slow(10)
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_no_sequence_of_actions_beats_the_bound(
    which: int, make_world: Callable[..., World]
) -> None:
    world = _worlds(make_world)[which]
    for key in episode_keys(which, 12):
        cost, error = _all_sequences(world, int(key))
        keys = np.array([key], np.uint64)
        relaxed = Relaxed(options(world, keys, N))
        for multiplier in (0.0, 0.3, 1.0, 5.0):
            assert relaxed.solve(multiplier).value <= (cost + multiplier * error).min() + 1e-9
        for floor in (0.0, 0.6, 1.0):
            allowed = cost[1.0 - error >= floor - 1e-12]
            if len(allowed):
                bound, schedule = best_schedule(
                    world, keys, floor=floor, critical_floor=0.0, n_frames=N
                )
                assert bound.cost <= allowed.min() + 1e-9
                assert schedule.mean_accuracy >= floor
                assert schedule.mean_cost >= allowed.min() - 1e-9


@pytest.mark.parametrize(("tail_ms", "loose"), [(0.0, 1e-9), (150.0, 1e-3)])
def test_the_bound_is_attained_where_nothing_queues(
    tail_ms: float, loose: float, make_world: Callable[..., World]
) -> None:
    """Slow arrivals, a steady link and no load: the relaxation gives (almost) nothing away."""
    base = make_world()
    world = make_world(
        traces=[Trace(np.full(50, 20.0), np.full(50, 12.0), 0.1, "steady", "5G", "generated")],
        cost=replace(
            base.cost, slowdown=5.0, radio=replace(base.cost.radio, tail_ms=tail_ms, tail_mw=600.0)
        ),
        timing=replace(base.scenario.timing, period_ms=1000.0, deadline_ms=500.0),
        price=replace(base.scenario.price, energy_budget_mj=0.0),
        server=replace(base.scenario.server, utilisation=0.0),
    )
    keys = episode_keys(0, 4)
    opts = options(world, keys, 10)
    for multiplier in (0.0, 0.5, 3.0):
        value = Relaxed(opts).solve(multiplier).value
        schedule = relaxed_schedule(world, keys, multiplier, 10)
        achieved = schedule.mean_cost + multiplier * (1.0 - schedule.mean_accuracy)
        assert value <= achieved + 1e-12
        assert value == pytest.approx(achieved, rel=loose)


@pytest.mark.parametrize("which", [0, 1])
def test_beam_search_comes_close_to_brute_force(
    which: int, make_world: Callable[..., World]
) -> None:
    world = _worlds(make_world)[which]
    keys = episode_keys(9, 10)
    relaxed = Relaxed(options(world, keys, N))
    every = [_all_sequences(world, int(key)) for key in keys]
    for multiplier in (0.0, 0.4, 2.0):
        optimal = np.mean([(cost + multiplier * error).min() for cost, error in every])
        found = beam_search(world, keys, relaxed, multiplier, N, 6)
        reached = found.mean_cost + multiplier * (1.0 - found.mean_accuracy)
        assert optimal - 1e-9 <= reached <= 1.01 * optimal


@pytest.mark.slow(1)
def test_the_bound_is_below_random_and_static_policies_on_whole_drives(world: World) -> None:
    keys = episode_keys(1, 8)
    n = world.scenario.timing.n_frames
    bound = lower_bound(world, keys, floor=0.0, critical_floor=0.0)
    rng = np.random.default_rng(0)
    for action in range(SHIPPED.n_actions):
        actions = np.full((8, n), action)
        assert replay(world, keys, actions).mean_cost >= bound.cost
    assert replay(world, keys, rng.integers(0, SHIPPED.n_actions, (8, n))).mean_cost >= bound.cost


@pytest.mark.slow(1)
def test_a_higher_floor_costs_more(world: World) -> None:
    keys = episode_keys(2, 4)
    costs = [lower_bound(world, keys, floor=f, critical_floor=0.0).cost for f in (0.5, 0.8, 0.95)]
    assert costs == sorted(costs)
    with pytest.raises(ConfigError, match="floor"):
        lower_bound(world, keys, floor=1.1)


def test_replay_equals_stepping(world: World) -> None:
    keys = episode_keys(3, 5)
    actions = np.random.default_rng(0).integers(0, SHIPPED.n_actions, (5, 20))
    schedule = replay(world, keys, actions)
    batch = BatchSimulator(world, 5)
    batch.reset(keys)
    for i in range(20):
        np.testing.assert_array_equal(batch.settle(actions[:, i]).cost, schedule.cost[:, i])


def _cheapest(every: Schedule) -> np.ndarray:
    """Least total cost with at most k errors, k = 0..N; inf where impossible."""
    errors, cost = N - every.accuracy.sum(1), every.cost.sum(1)
    return np.array([cost[errors <= k].min(initial=np.inf) for k in range(N + 1)])


@pytest.mark.slow(7)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_no_sequence_that_keeps_both_floors_beats_the_bound(
    which: int, make_world: Callable[..., World]
) -> None:
    """Pairs of episodes, one of critical frames alone and one of others."""
    world, raised = _worlds(make_world)[which], 0
    keys = episode_keys(20 + which, 40)
    share = [world.critical[world.rows(int(key), N)].mean() for key in keys]
    pairs = zip(keys[np.equal(share, 1)], keys[np.equal(share, 0)], strict=False)
    for critical_key, other_key in list(pairs)[:6]:
        critical = _cheapest(every_sequence(world, int(critical_key), N))
        other = _cheapest(every_sequence(world, int(other_key), N))
        total = critical[:, None] + other
        errors = np.arange(N + 1)[:, None] + np.arange(N + 1)
        for few, few_critical in ((2, 1), (3, 0), (1, 0)):
            optimal = total[: few_critical + 1][errors[: few_critical + 1] <= few].min() / (2 * N)
            if np.isinf(optimal):
                continue
            bound, schedule = best_schedule(
                world,
                np.array([critical_key, other_key]),
                floor=1.0 - few / (2 * N) - 1e-9,
                critical_floor=1.0 - few_critical / N - 1e-9,
                n_frames=N,
            )
            assert bound.cost <= optimal + 1e-9
            assert schedule.mean_cost >= optimal - 1e-9
            assert (1.0 - schedule.accuracy).sum() <= few
            assert (1.0 - schedule.accuracy)[schedule.critical].sum() <= few_critical
            raised += bound.critical_multiplier > 0
    assert raised  # the second floor says something


@pytest.mark.slow(3)
def test_no_sequence_beats_the_bound_with_an_energy_budget(
    make_world: Callable[..., World],
) -> None:
    base, raised = _worlds(make_world)[1], 0
    price = replace(base.scenario.price, over_budget=2.0)
    for key in episode_keys(31, 6):
        keys = np.array([key], np.uint64)
        energy = every_sequence(base, int(key), N).energy_mj.sum(1)
        for budget in (0.5 * energy.min(), float(np.quantile(energy, 0.05))):
            world = make_world(
                price=replace(price, energy_budget_mj=budget),
                cost=base.cost,
                server=base.scenario.server,
            )
            every = every_sequence(world, int(key), N)
            assert largest_premium(world) <= 2.0 / every.energy_mj.max()
            bound = lower_bound(world, keys, floor=0.0, critical_floor=0.0, n_frames=N)
            assert bound.cost <= every.cost.mean(1).min() + 1e-9
            free = lower_bound(base, keys, floor=0.0, critical_floor=0.0, n_frames=N)
            assert bound.cost >= free.cost - 1e-12
            raised += bound.cost > free.cost + 1e-6
    assert raised


def test_the_bound_leaves_little_where_frames_hardly_queue(
    make_world: Callable[..., World],
) -> None:
    """Outages and load, but time enough for every frame: then nothing is relaxed."""
    base = make_world()
    world = make_world(
        timing=replace(base.scenario.timing, period_ms=400.0, timeout_ms=90.0),
        price=replace(base.scenario.price, energy_budget_mj=0.0),
        cost=replace(base.cost, radio=replace(base.cost.radio, tail_ms=0.0, tail_mw=0.0)),
    )
    keys = episode_keys(4, 6)
    relaxed = Relaxed(options(world, keys, 30))
    for multiplier in (0.0, 0.5):
        found = beam_search(world, keys, relaxed, multiplier, 30, 6)
        reached = found.mean_cost + multiplier * (1.0 - found.mean_accuracy)
        value = relaxed.solve(multiplier).value
        assert value <= reached + 1e-12
        assert value == pytest.approx(reached, rel=2e-3)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_no_grid_point_is_higher_than_the_maximum(k: int, seed: int) -> None:
    """The least of random planes, the last of which falls along every axis."""
    rng = np.random.default_rng(seed)
    slopes = np.vstack([rng.normal(0, 1, (12, k)), -np.ones((1, k))])
    offsets = np.append(rng.uniform(0, 2, 12), 9.0)

    def evaluate(at: np.ndarray) -> tuple[float, np.ndarray]:
        values = slopes @ at + offsets
        lowest = int(values.argmin())
        return float(values[lowest]), slopes[lowest]

    value, at = maximise(evaluate, k)
    assert (at >= 0).all()
    assert evaluate(at)[0] == value
    axes = [np.linspace(0, 10, 201)] * k
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes)], 1)
    assert value >= (grid @ slopes.T + offsets).min(1).max() - 1e-6


def test_a_peak_far_from_the_origin_is_found() -> None:
    def evaluate(at: np.ndarray) -> tuple[float, np.ndarray]:
        slope = 1.0 if at[0] < 5000.0 else -1.0
        return float(min(at[0], 10000.0 - at[0])), np.array([slope])

    assert maximise(evaluate, 1)[1] == pytest.approx([5000.0])
