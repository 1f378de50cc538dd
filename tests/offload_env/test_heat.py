"""Heat: closed forms by hand, published figures, both simulators, the bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from batch_against_scalar import BothSimulators
from sequences import every_sequence, staged_drive

from cnn.common.errors import ConfigError
from cnn.topology import SHIPPED
from offload_env.batch_simulator import BatchSimulator
from offload_env.bound.proof import lower_bound
from offload_env.bound.search import best_schedule, replay
from offload_env.env import observation_box
from offload_env.episode import episode_keys
from offload_env.heat import Heat, slowed_mw
from offload_env.scenario import (
    Constraint,
    load_scenario,
    parse_scenario,
    scenario_names,
    scenario_toml,
)
from offload_env.server_load import ServerLoad
from offload_env.simulator import FALLBACK, OK, SKIPPED, Simulator
from offload_env.world import World
from testbed.meters.power import power_profile
from testbed.policy.decision_points import decision_points

MakeWorld = Callable[..., World]
PI4 = Heat(resistance_k_per_w=13.0)
POWER = power_profile("raspberry-pi-4+none").device
QUICK = Heat(13.0, time_constant_s=0.4, begin_low_c=55.0, throttle_c=56.0, limit_c=64.0)
"""Throttles the synthetic device (2.0 and 3.2 W) within a few frames."""
POINTS = decision_points(SHIPPED)


def _settled(ambient_c: float) -> tuple[float, float]:
    """Temperature and clock of a bare Pi 4 under full load for an hour."""
    heat = replace(PI4, ambient_c=ambient_c)
    celsius = 60.0
    for _ in range(36_000):
        busy = slowed_mw(heat.clock(celsius), POWER.busy_mw, POWER.idle_mw)
        celsius = heat.later_c(celsius, 100.0, busy, 0.0, POWER.idle_mw)
    return float(celsius), float(heat.clock(celsius))


def test_a_step_of_power_is_followed_exponentially() -> None:
    """25 + 13 * 6.4 = 108.2; after one time constant 1/e of the distance is left."""
    after = PI4.later_c(60.0, 200_000.0, 6400.0, 0.0, 2700.0)
    assert after == pytest.approx(108.2 - 48.2 / np.e)
    assert PI4.later_c(60.0, 1e9, 6400.0, 0.0, 2700.0) == pytest.approx(108.2)
    assert PI4.later_c(60.0, 0.0, 6400.0, 1e9, 2700.0) == pytest.approx(25 + 13 * 2.7)
    # Half the time twice is the same; first busy, then idle.
    half = PI4.later_c(60.0, 1e5, 6400.0, 0.0, 2700.0)
    assert PI4.later_c(half, 1e5, 6400.0, 0.0, 2700.0) == pytest.approx(after)
    both = PI4.later_c(60.0, 200_000.0, 6400.0, 100_000.0, 2700.0)
    assert both == pytest.approx(60.1 + (after - 60.1) * np.exp(-0.5))


@pytest.mark.parametrize(
    ("celsius", "share"), [(-20.0, 1.0), (80.0, 1.0), (82.5, 0.7), (85.0, 0.4), (120.0, 0.4)]
)
def test_the_clock_falls_linearly_between_two_temperatures(celsius: float, share: float) -> None:
    assert PI4.clock(celsius) == pytest.approx(share)
    assert PI4.clock(np.array([celsius]))[0] == PI4.clock(celsius)


def test_a_slowed_frame_takes_the_same_energy_above_idle() -> None:
    assert slowed_mw(1.0, 6400.0, 2700.0) == 6400.0
    for clock in (0.4, 0.7):
        above = (slowed_mw(clock, 6400.0, 2700.0) - 2700.0) / clock
        assert above == pytest.approx(6400.0 - 2700.0)


def test_the_defaults_agree_with_what_was_published() -> None:
    """Figures of the module's text; those of the CNN study are not among those fitted."""
    assert PI4.ambient_c + 13.0 * POWER.idle_mw / 1e3 == pytest.approx(60.5, abs=1.0)
    celsius, clock = _settled(25.0)
    assert 80.0 < celsius < 85.0
    assert 1 / clock == pytest.approx(1.9, abs=0.15)
    cool, warm = _settled(22.0)[1], _settled(36.0)[1]
    assert 1 - warm / cool == pytest.approx(0.277, abs=0.01)
    minutes = 200 / 60 * np.log((108.2 - 60.1) / (108.2 - 80.0))
    assert PI4.later_c(60.1, 60_000 * minutes, 6400.0, 0.0, 2700.0) == pytest.approx(80.0)
    assert minutes == pytest.approx(1.8, abs=0.05)


def test_one_frame_by_hand(make_world: MakeWorld) -> None:
    heat = Heat(20.0, 10.0, ambient_c=30.0, begin_low_c=82.0, begin_high_c=82.0)
    world = make_world(heat=heat)
    cost = replace(world.cost, jitter=0.0)
    world = make_world(heat=heat, cost=cost)
    simulator = Simulator(world)
    simulator.reset(world.plan(5))
    clock = 1 - 0.6 * 2 / 5
    took = world.device_ms[SHIPPED.main] / clock
    outcome = simulator.settle(SHIPPED.main)
    assert outcome.compute_ms == pytest.approx(took)
    power = 2000 + 1200 * clock
    assert outcome.energy_mj - outcome.radio_mj == pytest.approx(power * took / 1e3)
    final = 30 + 20 * power / 1e3
    celsius = final + (82 - final) * np.exp(-took / 1e4)
    idle = 30 + 20 * 2.0
    waited = max(0.0, world.scenario.timing.period_ms - took)
    assert simulator.celsius == pytest.approx(idle + (celsius - idle) * np.exp(-waited / 1e4))


def test_a_hot_processor_finishes_an_exchange_slowly_too(make_world: MakeWorld) -> None:
    heat = Heat(20.0, begin_low_c=90.0, begin_high_c=90.0)
    keys = episode_keys(0, 64)
    action = SHIPPED.index(5, 1)
    outcomes = []
    for on in (heat, Heat()):
        world = make_world(heat=on, cost=replace(make_world().cost, jitter=0.0))
        batch = BatchSimulator(world, len(keys))
        batch.reset(keys)
        outcomes.append(batch.settle(np.full(len(keys), action)))
    hot, cool = outcomes
    both = (hot.status == FALLBACK) & (cool.status == FALLBACK)
    assert both.any()
    np.testing.assert_allclose(hot.fallback_ms[both], cool.fallback_ms[both] / 0.4)
    np.testing.assert_allclose(hot.compute_ms, cool.compute_ms / 0.4)


@pytest.mark.slow(1)
def test_every_lane_equals_the_scalar_simulator_exactly(make_world: MakeWorld) -> None:
    both = BothSimulators(make_world(heat=QUICK), 13, 0)
    both.settle(100)
    assert (both.seen[[OK, FALLBACK, SKIPPED]] > 20).all()
    clock = QUICK.clock(both.celsius)
    assert ((clock < 1) & (clock > 0.4)).mean() > 0.2, "few frames were throttled"
    assert (clock == 1).mean() > 0.05


@pytest.mark.slow(2)
def test_every_lane_advances_as_the_scalar_simulator_does(make_world: MakeWorld) -> None:
    both = BothSimulators(make_world(heat=QUICK), 7, 1)
    both.advance(200)
    assert both.seen.sum() > 300


def test_the_observation_shows_full_local_processing_at_the_present_clock(
    make_world: MakeWorld,
) -> None:
    hot = make_world(heat=Heat(13.0, begin_low_c=85.0, begin_high_c=85.0))
    cool = make_world()
    keys = episode_keys(2, 3)
    seen = []
    for world in (cool, hot):
        batch = BatchSimulator(world, 3)
        batch.reset(keys)
        seen.append(batch.observe())
        assert observation_box(POINTS.frame).contains(seen[-1][0])
    assert seen[1][:, 32] == pytest.approx(seen[0][:, 32] + 2 * np.log(2.5) / np.log(1000))
    np.testing.assert_array_equal(np.delete(seen[0], 32, 1), np.delete(seen[1], 32, 1))


@pytest.mark.parametrize("heat", [Heat(), Heat(0.0, begin_low_c=85.0, time_constant_s=1.0)])
def test_without_resistance_nothing_changes(heat: Heat, make_world: MakeWorld) -> None:
    keys = episode_keys(3, 4)
    actions = np.random.default_rng(3).integers(0, SHIPPED.n_actions, (4, 30))
    plain, other = (replay(w, keys, actions) for w in (make_world(), make_world(heat=heat)))
    np.testing.assert_array_equal(plain.cost, other.cost)


def test_a_device_that_stays_cool_decides_nothing_anew(make_world: MakeWorld) -> None:
    """Heat that never throttles gives the same times and energies, bit for bit."""
    keys = episode_keys(4, 4)
    cool = replace(QUICK, ambient_c=-50.0, begin_low_c=0.0, begin_high_c=20.0)
    actions = np.random.default_rng(4).integers(0, SHIPPED.n_actions, (4, 30))
    plain, other = (replay(w, keys, actions) for w in (make_world(), make_world(heat=cool)))
    np.testing.assert_array_equal(plain.cost, other.cost)


@pytest.mark.slow(8)
@pytest.mark.parametrize("tail_ms", [0.0, 100.0])
def test_no_policy_on_a_hot_device_beats_the_bound(tail_ms: float, make_world: MakeWorld) -> None:
    """Every sequence of three frames, and whole drives of static and random actions."""
    base = make_world()
    price = replace(base.scenario.price, energy_budget_mj=0.0)
    cost = replace(base.cost, slowdown=2.0)
    cost = replace(cost, radio=replace(cost.radio, tail_ms=tail_ms, tail_mw=600.0 * (tail_ms > 0)))
    begins = replace(QUICK, begin_low_c=58.0, begin_high_c=64.0)
    world = make_world(heat=begins, price=price, cost=cost)
    for key in episode_keys(5, 4):
        keys = np.array([key], np.uint64)
        every = every_sequence(world, int(key), 3)
        costs, right = every.cost.mean(1), every.accuracy.mean(1)
        for floor in (0.0, 0.6):
            bound, found = best_schedule(world, keys, floor=floor, critical_floor=0.0, n_frames=3)
            least = costs[right >= floor - 1e-12].min()
            assert bound.cost <= least + 1e-9
            assert found.mean_cost >= least - 1e-9
    _whole_drives_cost_more(world)


@pytest.mark.slow(3)
def test_no_staged_policy_on_a_hot_device_beats_the_bound(make_world: MakeWorld) -> None:
    world = make_world(heat=QUICK)
    simulator, rng, n = Simulator(world), np.random.default_rng(0), 6
    for key in episode_keys(7, 8):
        keys = np.array([key], np.uint64)
        bound = lower_bound(world, keys, floor=0.0, critical_floor=0.0, n_frames=n).cost
        for _ in range(20):
            frames = staged_drive(simulator, int(key), n, rng)
            assert np.mean([frame.outcome.cost for frame in frames]) >= bound - 1e-9


def test_a_hot_device_may_meet_a_better_link_and_the_bound_allows_for_it(
    make_world: MakeWorld,
) -> None:
    """It sends when an outage has passed; a cool one sends earlier, in vain."""
    base, action = make_world(), SHIPPED.index(5, 2)
    table = base.table
    prediction = np.tile((table.label[:, None] + 1).astype(np.int16), (1, SHIPPED.n_actions))
    prediction[:, action] = table.label  # right only with the server's help
    parts = {
        "table": replace(table, prediction=prediction),
        "cost": replace(base.cost, jitter=0.0),
        "server": ServerLoad(),
        "constraint": Constraint(accuracy_floor=0.5),
    }
    hot = make_world(heat=Heat(20.0, begin_low_c=90.0, begin_high_c=90.0), **parts)
    keys, actions = episode_keys(8, 64), np.full((64, 1), action)
    late, early = replay(hot, keys, actions), replay(make_world(**parts), keys, actions)
    better = np.flatnonzero((late.accuracy > early.accuracy)[:, 0])
    assert len(better)
    for k in better:
        bound = lower_bound(hot, keys[[k]], floor=1.0, critical_floor=0.0, n_frames=1)
        assert bound.cost <= late.cost[k, 0]


@pytest.mark.slow(2)
def test_the_bound_holds_on_whole_drives_with_an_energy_budget(make_world: MakeWorld) -> None:
    _whole_drives_cost_more(make_world(heat=QUICK))


def _whole_drives_cost_more(world: World) -> None:
    keys, n = episode_keys(6, 4), world.scenario.timing.n_frames
    bound = lower_bound(world, keys, floor=0.0, critical_floor=0.0).cost
    for action in range(SHIPPED.n_actions):
        assert replay(world, keys, np.full((4, n), action)).mean_cost >= bound
    rng = np.random.default_rng(0)
    assert replay(world, keys, rng.integers(0, SHIPPED.n_actions, (4, n))).mean_cost >= bound


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("resistance_k_per_w = -1", "resistance_k_per_w -1; expected 0..1000"),
        ("time_constant_s = 0", "time_constant_s 0; expected 0.01..1000000"),
        ("least_clock = 0", "least_clock 0; expected 0.05..1"),
        ("least_clock = 1.2", "least_clock 1.2"),
        ("limit_c = 80", "throttle_c 80 with limit_c 80"),
        ("begin_low_c = 90", "begin_low_c 90 above begin_high_c 85"),
        ("ambient_c = 1000", "ambient_c 1000; expected -100..200"),
        ("ambient_c = nan", "ambient_c = nan"),
        ("fan = true", "unknown key 'fan'"),
    ],
)
def test_an_impossible_heat_is_refused(line: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_scenario(f"[heat]\n{line}\n", "mine")
    assert part in str(caught.value)
    assert "scenario mine" in str(caught.value)


def test_a_scenario_file_keeps_its_heat_and_others_do_not_mention_it() -> None:
    scenario = parse_scenario("[heat]\nresistance_k_per_w = 13.0\nambient_c = 35.0\n", "hot")
    assert scenario.heat == Heat(13.0, ambient_c=35.0)
    assert parse_scenario(scenario_toml(scenario), "hot") == scenario
    assert parse_scenario(scenario_toml(scenario, {}), "hot") == scenario
    for name in scenario_names():
        assert not load_scenario(name).heat.is_on
        assert "heat" not in scenario_toml(load_scenario(name))
