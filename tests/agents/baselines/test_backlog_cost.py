"""What a backlog costs the next frames, against every sequence of pairs tried one by one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from agents.baselines.answer_odds import AnswerOdds
from agents.baselines.backlog_cost import BacklogCost
from agents.baselines.planner import PlannerPolicy
from agents.baselines.usual_exchange import UsualExchange
from agents.rollout import simulate
from offload_env.batch_simulator import BatchSimulator
from offload_env.episode import episode_keys
from offload_env.scenario import load_scenario
from offload_env.world import World, build_world
from testbed.policy.decision_points import decision_points

PERIOD = 50.0


@pytest.fixture(scope="module")
def world() -> World:
    scenario = load_scenario("city-camera")
    timing = replace(scenario.timing, n_frames=120)
    return build_world(replace(scenario, timing=timing), "train")


def cheapest(
    world: World, price: float, times: list[float], costs: list[float], backlog: float, n: int
) -> float:
    """The least cost of n frames over all sequences of the given pairs, by the rules in words."""
    timing, errors = world.scenario.timing, 1.0 - world.correct.mean(0)
    miss, totals = world.scenario.price.miss, []
    for sequence in product(range(len(times)), repeat=n):
        total, waits = 0.0, backlog
        for pair in sequence:
            total += world.delay_price * waits
            if waits > timing.max_queue_ms:
                total += miss + price
                waits = max(0.0, waits - PERIOD)
                continue
            total += costs[pair] + price * errors[pair]
            total += miss * (waits + times[pair] > timing.deadline_ms)
            waits = max(0.0, waits + times[pair] - PERIOD)
        totals.append(total)
    return min(totals)


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_it_is_the_least_cost_over_all_sequences(world: World, horizon: int) -> None:
    """Times are multiples of the grid's step, so nothing is read between its points; no sequence
    makes a frame wait for longer than the grid reaches."""
    price, n_actions = 1.5, world.topology.n_actions
    times = [40.0, 65.0, 75.0] + [1000.0] * (n_actions - 3)
    costs = [0.5, 0.3, 0.1] + [1000.0] * (n_actions - 3)
    backlog = BacklogCost(world, horizon)
    value = backlog.to_go(np.array(times), np.array(costs), price)
    for waits in (0.0, 5.0, 30.0, 50.0, 105.0):
        expected = cheapest(world, price, times[:3], costs[:3], waits, horizon)
        assert backlog.read(value, np.array([waits]))[0] == pytest.approx(expected, rel=1e-6)


def test_many_at_once_are_as_one_by_one(world: World) -> None:
    rng, backlog = np.random.default_rng(0), BacklogCost(world, 4)
    times, costs = rng.uniform(20, 120, (5, 20)), rng.uniform(0, 1, (5, 20))
    prices = rng.uniform(0, 2, (5, 1))
    together = backlog.to_go(times, costs, prices)
    waits = rng.uniform(-20, 130, (5, 20))
    found = backlog.read(together, waits)
    for i in range(5):
        alone = backlog.to_go(times[i], costs[i], float(prices[i, 0]))
        assert np.array_equal(together[i], alone)
        assert np.array_equal(found[i], backlog.read(alone, waits[i]))


def test_a_backlog_never_pays(world: World) -> None:
    """Up to the wait from which frames are skipped, a longer one costs no less."""
    backlog = BacklogCost(world, 8)
    rng = np.random.default_rng(1)
    value = backlog.to_go(rng.uniform(20, 100, 20), rng.uniform(0.2, 1, 20), 1.0)
    assert (np.diff(value[: 100 // 5 + 1]) >= 0).all()


def test_looking_ahead_shortens_the_queue_and_saves_cost() -> None:
    """At a price of errors at which the planner lets frames queue."""
    rush = build_world("rush-camera", "train")
    keys, odds = episode_keys(5, 16), AnswerOdds(rush)
    planner, ahead = (
        simulate(rush, PlannerPolicy(rush, 3.0, 1.6, odds, horizon), keys, frames=120)
        for horizon in (0, 8)
    )
    assert ahead.queue_ms.mean() < 0.6 * planner.queue_ms.mean()
    assert ahead.miss.mean() < 0.5 * planner.miss.mean()
    assert ahead.cost.mean() < 0.9 * planner.cost.mean()


def test_one_decision_and_many_agree(world: World) -> None:
    keys, space = episode_keys(6, 8), decision_points(world.topology).staged
    policy = PlannerPolicy(world, 2.0, 1.6, AnswerOdds(world), 4, UsualExchange(world))
    simulator = BatchSimulator(world, len(keys))
    simulator.reset(keys)
    for _ in range(60):
        seen, points = simulator.observe(space), simulator.point.copy()
        together = policy.decide_batch(seen, points)
        alone = [policy.decide(one, int(point)) for one, point in zip(seen, points, strict=True)]
        assert together.tolist() == alone
        simulator.advance(together)
