"""Bound and search of networks of other forms than the shipped one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from networks import NETWORKS, made_up_cost, made_up_table, network_id, scenario_of
from sequences import every_sequence, relaxed_cost, staged_drive

from cnn.topology import Topology
from offload_env.bound.frame_outcomes import (
    MOST_WAYS,
    compute_ms,
    frame_outcomes_of,
    least_and_most,
)
from offload_env.bound.programme import Relaxed, options
from offload_env.bound.proof import lower_bound
from offload_env.bound.search import best_schedule
from offload_env.episode import episode_keys
from offload_env.outcome import FALLBACK
from offload_env.simulator import Simulator
from offload_env.world import World, build_world

TWELVE_EXITS = Topology(12, tuple(range(1, 13)), (0, 5, 9), ((8, 8, 3), (2, 4, 4), (1, 4, 4)))
"""Too many exits to list every set of them."""
NO_SPLIT = Topology(1, (1,), (), ())
"""Nothing to decide."""
N_FRAMES = {2: 4, 3: 4, 7: 3}
"""By the number of exits, so that there are 625 to 16,000 sequences."""
MULTIPLIERS = (0.0, 0.4, 3.0)

WorldOf = Callable[[Topology], World]


@pytest.fixture
def calm(tmp_path: Path) -> WorldOf:
    """The made-up scenario on a device as slow as the shipped scenario's."""

    def make(topology: Topology) -> World:
        scenario = scenario_of(topology, tmp_path)
        return build_world(replace(scenario, device=replace(scenario.device, full_local_ms=80.0)))

    return make


@pytest.fixture
def tight(tmp_path: Path, make_world: Callable[..., World]) -> WorldOf:
    """Little time for a frame, a long tail, outages: frames queue, are skipped and time out."""

    def make(topology: Topology) -> World:
        scenario, cost = scenario_of(topology, tmp_path), made_up_cost(topology)
        at_most = cost.device_ms[topology.main]
        timing = replace(
            scenario.timing,
            period_ms=1.2 * at_most,
            timeout_ms=25.0,
            deadline_ms=1.5 * at_most,
            max_queue_ms=15.0,
        )
        return make_world(
            scenario,
            timing=timing,
            table=made_up_table(topology),
            cost=replace(cost, radio=replace(cost.radio, tail_ms=100.0)),
        )

    return make


@pytest.fixture(params=["calm", "tight"])
def world_of(request: pytest.FixtureRequest) -> WorldOf:
    """Both worlds."""
    of: WorldOf = request.getfixturevalue(request.param)
    return of


each_network = partial(pytest.mark.parametrize, "topology", ids=network_id)
listed_or_not = pytest.mark.parametrize("listed", [True, False], ids=["every-way", "any-way"])
"""Whether all ways through a frame are listed, or bounded at once, as those of many exits."""


@pytest.mark.slow(3)
@listed_or_not
@each_network(NETWORKS)
def test_no_sequence_of_actions_beats_the_bound(
    topology: Topology, world_of: WorldOf, listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not listed:
        monkeypatch.setattr(frame_outcomes_of(topology), "ways", (None,))
    world, n = world_of(topology), N_FRAMES[topology.n_exits]
    for key in episode_keys(1, 2):
        every = every_sequence(world, int(key), n)
        cost, error = every.cost.mean(1), 1.0 - every.accuracy.mean(1)
        keys = np.array([key], np.uint64)
        relaxed = Relaxed(options(world, keys, n))
        for multiplier in MULTIPLIERS:
            value = relaxed.solve(multiplier).value
            assert 0.5 * cost.min() < value <= (cost + multiplier * error).min() + 1e-9
        least = cost[error <= 0.5].min()
        bound, found = best_schedule(world, keys, floor=0.5, critical_floor=0.0, n_frames=n)
        assert bound.cost <= least + 1e-9
        assert least - 1e-9 <= found.mean_cost
        assert found.mean_accuracy >= 0.5


@pytest.mark.slow(2)
@listed_or_not
@each_network((*NETWORKS, NO_SPLIT))
def test_no_staged_drive_beats_the_bound(
    topology: Topology, tight: WorldOf, listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random decisions after every exit and time-out, the early time-out included."""
    if not listed:
        monkeypatch.setattr(frame_outcomes_of(topology), "ways", (None,))
    world, rng, n = tight(topology), np.random.default_rng(0), 3
    simulator, timed_out = Simulator(world), 0
    for key in episode_keys(2, 4):
        opts = options(world, np.array([key], np.uint64), n)
        these = [staged_drive(simulator, int(key), n, rng) for _ in range(200)]
        cost = np.array([np.mean([f.outcome.cost for f in drive]) for drive in these])
        error = np.array([np.mean([not f.outcome.correct for f in drive]) for drive in these])
        counted = np.array([relaxed_cost(opts, drive) for drive in these]) / n
        assert (counted <= cost + 1e-9).all()
        for multiplier in MULTIPLIERS:
            value = Relaxed(opts).solve(multiplier).value
            assert value <= (cost + multiplier * error).min() + 1e-9
        timed_out += sum(f.outcome.status == FALLBACK for drive in these for f in drive)
    assert timed_out > 100 or not topology.splits


@pytest.mark.slow(4)
@each_network((*NETWORKS, TWELVE_EXITS, NO_SPLIT))
def test_a_schedule_found_costs_what_the_simulator_says(
    topology: Topology, world_of: WorldOf
) -> None:
    world, n, keys = world_of(topology), 20, episode_keys(3, 3)
    bound, found = best_schedule(world, keys, floor=0.6, critical_floor=0.0, n_frames=n)
    assert bound.cost <= found.mean_cost + 1e-9
    assert found.mean_accuracy >= 0.6
    simulator = Simulator(world)
    for key, actions, cost, accuracy in zip(
        keys, found.actions, found.cost, found.accuracy, strict=True
    ):
        simulator.reset(world.plan(int(key)))
        drive = [simulator.settle(int(action)) for action in actions]
        assert [o.cost for o in drive] == cost.tolist()
        assert [o.correct for o in drive] == accuracy.tolist()


@each_network(NETWORKS)
def test_least_and_most_time_are_those_of_all_ways(topology: Topology, calm: WorldOf) -> None:
    world, outcomes = calm(topology), frame_outcomes_of(topology)
    least, most = np.full(topology.n_actions, np.inf), np.zeros(topology.n_actions)
    for way in outcomes.ways:
        actions, times = outcomes.open_actions(way), compute_ms(world, np.ones(1), way)[0]
        least[actions] = np.minimum(least[actions], times)
        most[actions] = np.maximum(most[actions], times)
    np.testing.assert_array_equal(least_and_most(world), [least, most])


@each_network(NETWORKS)
def test_ways_bounded_at_once_give_little_away(
    topology: Topology, calm: WorldOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, keys = calm(topology), episode_keys(4, 4)
    find = partial(lower_bound, world, keys, floor=0.0, critical_floor=0.0, n_frames=20)
    exact = find().cost
    monkeypatch.setattr(frame_outcomes_of(topology), "ways", (None,))
    assert 0.98 * exact <= find().cost <= exact + 1e-12


def test_twelve_exits_are_bounded_without_a_list_of_their_sets(calm: WorldOf) -> None:
    assert frame_outcomes_of(TWELVE_EXITS).ways == (None,)
    assert len(frame_outcomes_of(NETWORKS[-1]).ways) == MOST_WAYS
    world, n = calm(TWELVE_EXITS), 2
    for key in episode_keys(1, 4):
        least = every_sequence(world, int(key), n).cost.mean(1).min()
        keys = np.array([key], np.uint64)
        bound = lower_bound(world, keys, floor=0.0, critical_floor=0.0, n_frames=n).cost
        assert 0.9 * least < bound <= least + 1e-9
