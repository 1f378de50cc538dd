"""The planner against the simulator, and against brute force over its tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from agents.baselines import tuning
from agents.baselines.answer_odds import STATES, AnswerOdds
from agents.baselines.cost_ahead import CostAhead
from agents.baselines.planner import PlannerPolicy
from agents.baselines.tuning import Candidate, measure, tuned_baselines
from agents.baselines.usual_exchange import UsualExchange
from agents.rollout import simulate, summary
from cnn.topology import SHIPPED
from offload_env.episode import episode_keys
from offload_env.heat import Heat
from offload_env.scenario import Scenario, load_scenario
from offload_env.simulator import Simulator
from offload_env.world import World, build_world
from testbed.meters.cost_model import CostModel
from testbed.meters.power import RadioPower
from testbed.policy.decision_points import START, decision_points
from testbed.policy.observation_fields import schema_of

POINTS = decision_points(SHIPPED)
SCHEMA = schema_of(SHIPPED)
AT = {field.name: field.index for field in SCHEMA.staged_fields}


@pytest.fixture(scope="module")
def world(make_world) -> World:
    return make_world(20.0, jitter=0.0, full_local_ms=60.0)


@pytest.fixture(scope="module")
def odds(world) -> AnswerOdds:
    return AnswerOdds(world)


def anything(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Observations anywhere in their range, and decision points."""
    rng = np.random.default_rng(seed)
    seen = rng.uniform(-1, 1, (n, POINTS.staged.obs_dim)).astype(np.float32)
    return seen, rng.integers(0, POINTS.n_points, n)


def knowing(observation: np.ndarray, **raw: float) -> np.ndarray:
    """The same observation with some elements as a device would see them that knew these values."""
    known = observation.copy()
    for name, value in raw.items():
        known[AT[name]] = SCHEMA.scale_one(AT[name], value)
    return known


def with_tail(world: World) -> World:
    """The same world with a modem that lingers."""
    radio = RadioPower("made up", 10.0, 500.0, 300.0, 70.0, "made up for tests")
    return rebuilt(world, world.scenario, replace(world.cost, radio=radio))


def with_promotion(world: World) -> World:
    """The same world with a modem that sleeps, and connects within the time-out."""
    radio = RadioPower("made up", 10.0, 500.0, 300.0, 70.0, "made up for tests", 50.0)
    return rebuilt(world, world.scenario, replace(world.cost, radio=radio))


def when_hot(world: World) -> World:
    """The same world with a processor that has 0.7 of its clock, and keeps it."""
    hot = Heat(resistance_k_per_w=13.0, time_constant_s=1e6, begin_low_c=82.5, begin_high_c=82.5)
    return rebuilt(world, replace(world.scenario, heat=hot), world.cost)


def rebuilt(world: World, scenario: Scenario, cost: CostModel) -> World:
    return build_world(scenario, "train", traces=world.traces, table=world.table, cost=cost)


@pytest.mark.parametrize("evaluated", [0, 1, 2, 4])
@pytest.mark.parametrize("change", [None, with_tail, with_promotion, when_hot])
@pytest.mark.parametrize("uplink_mbps", [0.2, 20.0])
def test_costs_ahead_are_the_simulators(
    make_world, evaluated: int, change: Callable[[World], World] | None, uplink_mbps: float
) -> None:
    """Of every pair that is legal after an exit was evaluated, on a link that is known exactly."""
    world = make_world(uplink_mbps, rtt_ms=8.0, jitter=0.0, full_local_ms=60.0)
    world = world if change is None else change(world)
    ahead, simulator = CostAhead(world), Simulator(world)
    point = POINTS.point[0, evaluated, evaluated]
    rtt_ms = 8.0 + world.cost.net_ms  # of whole transfers
    for action in SHIPPED.actions:
        if not POINTS.legal[point, action.index] or np.ptp(world.sent_bytes[:, action.index]) > 0:
            continue
        simulator.reset(world.plan(3))
        if evaluated:
            simulator.advance(SHIPPED.index(evaluated, evaluated))
        assert simulator.point == point
        seen = knowing(simulator.observe(POINTS.staged), uplink_mbps=uplink_mbps, rtt_ms=rtt_ms)
        pairs, _ = ahead.of(ahead.read(seen), point, 0.0)
        outcome = simulator.advance(action.index)
        if not action.is_local and outcome is None:  # timed out: finish the exit on the device
            outcome = simulator.advance(SHIPPED.index(action.exit, action.exit))
        outcome = outcome or simulator.advance(POINTS.answer)
        # The observation knows no wait at the server below 0.1 ms, which costs 0.0014.
        about = pytest.approx(outcome.cost, rel=1e-4, abs=1.5e-3)
        assert pairs[action.index] == about, action.name


def test_answering_now_costs_what_was_spent(world) -> None:
    ahead, simulator = CostAhead(world), Simulator(world)
    simulator.reset(world.plan(3))
    for exit in (1, 3):
        simulator.advance(SHIPPED.index(exit, exit))
    seen = ahead.read(simulator.observe(POINTS.staged))
    _, now = ahead.of(seen, simulator.point, 0.0)
    assert now == pytest.approx(simulator.advance(POINTS.answer).cost, rel=1e-5)


def test_recent_transfers_correct_a_line_that_is_clipped(world) -> None:
    """As after some transfers of one size: the rate at its limit, a round trip far too long."""
    ahead = CostAhead(world)
    nothing = np.zeros(POINTS.staged.obs_dim, np.float32)
    seen = knowing(nothing, rtt_ms=34.0, server_wait_ms=0.1, failures=0.0)
    send = SHIPPED.index(5, 0)

    def cost(uplink_mbps: float, transfer_mean_ms: float) -> float:
        known = knowing(seen, uplink_mbps=uplink_mbps, transfer_mean_ms=transfer_mean_ms)
        return float(ahead.of(ahead.read(known), START, 0.0)[0][send])

    assert cost(300.0, 20.0) < cost(300.0, 30.0) < cost(300.0, 50.0) == cost(300.0, 90.0)
    assert cost(100.0, 20.0) == cost(100.0, 90.0)


def brute_force(
    world: World, odds: AnswerOdds, price: float, bonus: float, seen: np.ndarray, point: int
) -> dict[int, float]:
    """Expected cost of every action that the planner may take, by recursion over exits' states."""
    ahead = CostAhead(world)
    read = ahead.read(seen)
    pairs, now = ahead.of(read, point, bonus)
    context = 1 + int(SHIPPED.exit_place[round(read.last_exit)])
    legal = [a for a in SHIPPED.actions if POINTS.legal[point, a.index]]
    timed_out, block = POINTS.has_timed_out(point), int(POINTS.block[point])

    @cache
    def after(exit: int, state: int) -> float:
        """From the evaluation of an early exit on."""
        wrong = price * (1.0 - odds.right[context, exit - 1, state])
        own = SHIPPED.index(exit, exit)
        out = [pairs[own] + wrong[own]]
        beside = ahead.beside[exit - 1]
        for a in SHIPPED.actions:
            sends = not a.is_local and a.split >= exit and not timed_out
            if a.exit > exit and (sends or a.index == SHIPPED.main):
                out.append(pairs[a.index] + wrong[a.index] + beside)
        shown = odds.shown[context, exit - 1, state]
        out += [beside + expected(shown, e) for e in range(exit + 1, 5)]
        return float(min(out))

    def expected(shown: np.ndarray, exit: int) -> float:
        return sum(shown[exit - 1, s] * after(exit, s) for s in range(STATES))

    evaluated = int(POINTS.evaluated[point])
    if evaluated:
        state = 2 * odds.bin(evaluated - 1, read.stage_confidence)
        state += int(read.stage_agrees_track > 0.75)
        right = odds.right[context, evaluated - 1, state]
        shown = odds.shown[context, evaluated - 1, state]
    else:
        state = odds.bin(context - 1, read.last_confidence) if context else 0
        right, shown = odds.right_before[context, state], odds.shown_before[context, state]
    values = {
        a.index: float(pairs[a.index] + price * (1.0 - right[a.index]))
        for a in legal
        if not a.is_local or a.index == SHIPPED.main
    }
    values |= {a.index: expected(shown, a.exit) for a in legal if a.is_local and a.exit < 5}
    assert not timed_out or all(SHIPPED.actions[a].exit >= block for a in values)
    if evaluated:
        own = SHIPPED.index(evaluated, evaluated)
        values[POINTS.answer] = float(now + price * (1.0 - right[own]))
    return values


@pytest.mark.slow(3)
def test_it_takes_the_least_expected_cost(world, odds) -> None:
    seen, points = anything(150)
    chosen = PlannerPolicy(world, 3.0, 0.2, odds).decide_batch(seen, points)
    for observation, point, action in zip(seen, points, chosen, strict=True):
        values = brute_force(world, odds, 3.0, 0.2, observation, int(point))
        assert values[action] == pytest.approx(min(values.values()), rel=1e-9)
    assert len(set(chosen)) > 5
    assert POINTS.answer in chosen


def test_one_and_many_decide_alike_and_legally(world, odds) -> None:
    policy = PlannerPolicy(world, 1.0, 0.4, odds)
    seen, points = anything(1500, seed=1)
    chosen = policy.decide_batch(seen, points)
    assert POINTS.legal[points, chosen].all()
    one_by_one = [policy.decide(o, int(p)) for o, p in zip(seen, points, strict=True)]
    assert chosen.tolist() == one_by_one
    assert policy.decide_batch(seen).tolist() == [policy.decide(o) for o in seen]


def test_many_drives_go_as_each_alone(world, odds) -> None:
    policy, keys = PlannerPolicy(world, 1.0, 0.4, odds), episode_keys(5, 6)
    together = simulate(world, policy, keys)
    for i in (0, 4):
        np.testing.assert_array_equal(
            simulate(world, policy, keys[i : i + 1]).cost[0], together.cost[i]
        )


def test_errors_that_cost_more_are_fewer(world, odds) -> None:
    keys = episode_keys(0, 32)
    cheap, dear = (
        summary(simulate(world, PlannerPolicy(world, price, 0.0, odds), keys))
        for price in (0.3, 30.0)
    )
    assert cheap["cost"] < dear["cost"]
    assert cheap["accuracy"] < dear["accuracy"]


def test_a_bonus_makes_it_look_at_a_link_that_it_does_not_know(make_world, odds) -> None:
    """Over this link sending is cheaper, but the estimate before any transfer says it is not."""
    world = make_world(60.0, rtt_ms=4.0, full_local_ms=80.0)
    keys = episode_keys(0, 8)
    shy, curious = (
        simulate(world, PlannerPolicy(world, 0.5, bonus, odds), keys) for bonus in (0.0, 0.8)
    )
    sent = [(~SHIPPED.is_local[r.action]).mean() for r in (shy, curious)]
    assert sent[0] < sent[1]
    assert curious.cost.mean() < shy.cost.mean()


@pytest.mark.slow(2)
def test_tuning_takes_the_cheapest_price_that_keeps_the_floor(make_world) -> None:
    world = make_world(20.0, floor=0.99)
    keys, odds = episode_keys(2, 8), AnswerOdds(world)
    tuned = tuned_baselines(world, seed=2, drives=8, margin=0.0)["planner"]
    assert isinstance(tuned, PlannerPolicy)
    found = measure(world, tuned, keys)
    assert found.accuracy >= 0.99
    for price in (0.5, 2.0, 8.0):
        other = measure(world, PlannerPolicy(world, price, tuned.freshness_bonus, odds), keys)
        assert other.accuracy < 0.99 or other.cost >= found.cost


@pytest.mark.parametrize("drives", [2, 150])
def test_prices_measured_at_once_are_chosen_as_one_after_the_other(
    drives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first price that keeps the floor, halved towards the one below, for every bonus."""
    prices = (0.1, 0.3, 1.0, 3.0)
    monkeypatch.setattr(tuning, "ERROR_PRICES", prices)
    scenario = load_scenario("city-camera")
    world = build_world(replace(scenario, timing=replace(scenario.timing, n_frames=20)), "train")
    odds, keys = AnswerOdds(world), episode_keys(6, drives)
    floor = measure(world, PlannerPolicy(world, 0.5, 0.0, odds), keys).accuracy
    found: list[Candidate] = []
    for bonus in tuning.FRESHNESS_BONUSES:

        def measured(price: float, bonus: float = bonus) -> Candidate:
            found.append(measure(world, PlannerPolicy(world, price, bonus, odds), keys))
            return found[-1]

        kept = next((i for i, p in enumerate(prices) if measured(p).accuracy >= floor), 0)
        low, high = prices[kept - 1], prices[kept]
        for _ in range(tuning.HALVINGS if kept else 0):
            middle = float(np.sqrt(low * high))
            low, high = (low, middle) if measured(middle).accuracy >= floor else (middle, high)
    best = tuning.choose(found, floor).policy
    tuned = tuning.tuned_planner(world, keys, floor)
    assert isinstance(best, PlannerPolicy)
    assert (tuned.error_price, tuned.freshness_bonus) == (best.error_price, best.freshness_bonus)
    assert len(found) > 2 * len(tuning.FRESHNESS_BONUSES)


def test_looking_ahead_connects_a_modem_for_the_frames_that_follow(make_world, odds) -> None:
    """Sending is cheaper than the device over this link, but not for the frame that connects."""
    world = make_world(60.0, rtt_ms=20.0, full_local_ms=300.0)
    radio = RadioPower("made up", 10.0, 500.0, 300.0, 10_000.0, "made up for tests", 40.0)
    world = rebuilt(world, world.scenario, replace(world.cost, radio=radio))
    keys = episode_keys(0, 4)
    one, ahead = (
        simulate(world, PlannerPolicy(world, 30.0, 0.0, odds, horizon, usual), keys)
        for horizon, usual in ((0, None), (8, UsualExchange(world)))
    )
    sent = [(~SHIPPED.is_local[r.action]).mean() for r in (one, ahead)]
    assert sent[0] == 0
    assert sent[1] > 0.9
    assert ahead.cost.mean() < 0.8 * one.cost.mean()
