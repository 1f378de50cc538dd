"""Rules against brute force, predictions against the simulator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.baselines.prediction import AccuracyTable, Predictor, reader
from agents.baselines.rules import (
    CascadePolicy,
    EdgentPolicy,
    GreedyPolicy,
    NeurosurgeonPolicy,
    ThresholdPolicy,
)
from agents.baselines.tuning import choose, measure, tuned_baselines
from agents.rollout import simulate, summary
from cnn.topology import SHIPPED
from offload_env.episode import episode_keys
from offload_env.simulator import Simulator
from testbed.policy.decision_points import decision_points
from testbed.policy.observation_fields import schema_of
from testbed.policy.policies import Policy, StaticPolicy

POINTS = decision_points(SHIPPED)
SCHEMA = schema_of(SHIPPED)
READ = reader(SHIPPED)

INSIDE = st.lists(st.floats(0.01, 0.99), min_size=SCHEMA.obs_dim, max_size=SCHEMA.obs_dim)


@given(INSIDE)
@settings(max_examples=50, deadline=None)
def test_raw_observation_inverts_normalise(where: list[float]) -> None:
    raw = np.array(
        [
            f.low * (f.high / f.low) ** u if f.scale == "log" else f.low + u * (f.high - f.low)
            for f, u in zip(SCHEMA.fields, where, strict=True)
        ]
    )
    back = READ(SCHEMA.normalise(raw)[None])[0]
    span = np.array([f.high - f.low for f in SCHEMA.fields])
    np.testing.assert_allclose(back, raw, rtol=1e-4, atol=float(1e-6 * span.max()))


def known(world, uplink_mbps: float, rtt_ms: float) -> np.ndarray:
    """A raw observation of a device that knows the link exactly and has nothing queued."""
    raw = np.zeros((1, SCHEMA.obs_dim))
    raw[0, READ.at["uplink_mbps"]], raw[0, READ.at["rtt_ms"]] = uplink_mbps, rtt_ms
    return raw


@pytest.mark.parametrize("uplink_mbps", [0.2, 5.0, 100.0])
def test_predictions_are_the_simulators_single_frame_costs(uplink_mbps, make_world) -> None:
    world = make_world(uplink_mbps, rtt_ms=8.0, jitter=0.0, full_local_ms=60.0)
    predict, raw = Predictor(world), known(world, uplink_mbps, 8.0)
    delay, energy, cost = predict.delay_ms(raw), predict.energy_mj(raw), predict.cost(raw)
    simulator = Simulator(world)
    for action in SHIPPED.actions:
        simulator.reset(world.plan(3))
        # The rule knows the mean size of an action's payload, the simulator this frame's.
        if not action.is_local and np.ptp(world.sent_bytes[:, action.index]) > 0:
            continue
        outcome = simulator.settle(action.index)
        assert delay[0, action.index] == pytest.approx(outcome.delay_ms, rel=1e-9)
        assert energy[0, action.index] == pytest.approx(outcome.energy_mj, rel=1e-6)
        assert cost[0, action.index] == pytest.approx(outcome.cost, rel=1e-6)


def observations(n: int) -> np.ndarray:
    return np.random.default_rng(4).uniform(-1, 1, (n, SCHEMA.obs_dim)).astype(np.float32)


def test_neurosurgeon_is_the_fastest_split_of_the_whole_network(make_world) -> None:
    world = make_world(20.0)
    x = observations(300)
    delay = Predictor(world).delay_ms(READ(x))
    for chosen, row in zip(NeurosurgeonPolicy(world).decide_batch(x), delay, strict=True):
        assert SHIPPED.actions[chosen].exit == SHIPPED.n_exits
        assert row[chosen] == min(
            row[a.index] for a in SHIPPED.actions if a.exit == SHIPPED.n_exits
        )


def test_edgent_is_the_deepest_exit_in_time(make_world) -> None:
    world = make_world(20.0)
    x = observations(300)
    delay = Predictor(world).delay_ms(READ(x))
    met = 0
    for chosen, row in zip(EdgentPolicy(world, 60.0).decide_batch(x), delay, strict=True):
        in_time = [a for a in SHIPPED.actions if row[a.index] <= 60.0]
        met += bool(in_time)
        if not in_time:
            assert row[chosen] == row.min()
            continue
        deepest = max(a.exit for a in in_time)
        assert SHIPPED.actions[chosen].exit == deepest
        assert row[chosen] == min(row[a.index] for a in in_time if a.exit == deepest)
    assert 0 < met < 300


@pytest.mark.parametrize(
    ("last_exit", "confidence", "exit"),
    [(0, 0.0, 3), (3, 0.99, 2), (3, 0.7, 3), (3, 0.2, 4), (1, 0.99, 1), (5, 0.1, 5)],
)
def test_threshold_moves_one_exit(last_exit, confidence, exit, make_world) -> None:
    policy = ThresholdPolicy(make_world(20.0), sure=0.9, error_probability=0.5, start=3)
    raw = np.zeros(SCHEMA.obs_dim)
    raw[READ.at["last_exit"]], raw[READ.at["last_confidence"]] = last_exit, confidence
    raw[READ.at["uplink_mbps"]], raw[READ.at["rtt_ms"]] = 20.0, 10.0
    assert SHIPPED.actions[policy.decide(SCHEMA.normalise(raw))].exit == exit


def test_greedy_buys_accuracy_with_its_price(make_world) -> None:
    world = make_world(20.0)
    accuracy_table = AccuracyTable(world)
    keys = episode_keys(0, 64)
    cheap = summary(simulate(world, GreedyPolicy(world, 0.0, accuracy_table), keys))
    dear = summary(simulate(world, GreedyPolicy(world, 300.0, accuracy_table), keys))
    assert cheap["cost"] < dear["cost"]
    assert cheap["accuracy"] < dear["accuracy"]


def test_sureness_is_what_the_frames_show(make_world) -> None:
    world = make_world(20.0)
    table, accuracy_table = world.table, AccuracyTable(world)
    chance = accuracy_table(READ(observations(500)))
    assert chance.shape == (500, 20)
    assert chance.min() >= 0
    assert chance.max() <= 1
    # The knowledge after exit 2 answered every frame, used for the frame after it, must be
    # right on average: it was measured on those very frames.
    e2 = next(a.index for a in SHIPPED.actions if a.exit == a.split == 2)
    before = np.flatnonzero(np.diff(table.track) == 0)
    raw = np.zeros((len(before), SCHEMA.obs_dim))
    raw[:, READ.at["last_exit"]] = 2
    raw[:, READ.at["last_confidence"]] = table.confidence[before, e2]
    found, truth = accuracy_table(raw), table.correct[before + 1]
    np.testing.assert_allclose(found.mean(0), truth.mean(0), atol=0.01)
    doubtful = table.confidence[before, e2] < np.quantile(table.confidence[before, e2], 0.1)
    assert found[doubtful, 1].mean() < found[~doubtful, 1].mean()


@pytest.mark.slow(4)
def test_best_static_is_the_cheapest_feasible_pair(make_world) -> None:
    world = make_world(20.0, floor=0.99)
    keys = episode_keys(2, 16)
    everyone = [measure(world, StaticPolicy(a), keys) for a in SHIPPED.actions]
    feasible = [c for c in everyone if c.accuracy >= 0.99]
    assert 0 < len(feasible) < len(everyone)
    assert choose(everyone, 0.99).cost == min(c.cost for c in feasible)
    assert choose(everyone, 1.1).accuracy == max(c.accuracy for c in everyone)
    found = tuned_baselines(world, seed=2, drives=16, margin=0.0)
    assert found["best-static"].decide(observations(1)[0]) == (
        choose(everyone, 0.99).policy.decide(observations(1)[0])
    )
    assert all(isinstance(policy, Policy) for policy in found.values())


@pytest.mark.slow(2)
def test_one_and_many_decide_alike(make_world) -> None:
    world = make_world(20.0, floor=0.98)
    x = observations(40)
    for name, policy in tuned_baselines(world, seed=2, drives=4).items():
        if name != "random" and policy.space is POINTS.frame:
            assert policy.decide_batch(x).tolist() == [policy.decide(o) for o in x], name


AT_CONFIDENCE = next(f.index for f in SCHEMA.staged_fields if f.name == "stage_confidence")


def first_confident(confidence: np.ndarray, sure: float, last: int) -> int:
    """Exit (1..5) of BranchyNet's rule for one frame's confidences of the local exits."""
    for exit in range(1, last):
        if confidence[exit - 1] >= sure:
            return exit
    return last


@pytest.mark.parametrize(("sure", "last"), [(0.9, 2), (0.99, 5), (1.1, 3)])
def test_over_a_hopeless_link_it_is_branchynet(make_world, sure: float, last: int) -> None:
    world = make_world(0.1)
    policy = CascadePolicy(world, sure, last)
    assert policy.space is POINTS.staged
    raw = np.zeros(len(SCHEMA.staged_fields))
    raw[READ.at["uplink_mbps"]], raw[READ.at["rtt_ms"]] = 0.1, 1000.0
    local = [SHIPPED.action(e, e).index for e in range(1, 6)]
    for row in range(0, len(world.table), 20):
        confidence = world.table.confidence[row, local]
        position, chosen = 0, -1
        while position < 5 and chosen != POINTS.answer:
            raw[AT_CONFIDENCE] = confidence[position - 1] if position else 0.0
            chosen = policy.decide(SCHEMA.normalise(raw), position)
            if chosen != POINTS.answer:
                assert SHIPPED.actions[chosen].is_local
                position = SHIPPED.actions[chosen].exit
        assert position == first_confident(confidence, sure, last)


def test_over_a_perfect_link_it_sends_the_frame_at_once(make_world) -> None:
    world = make_world(300.0, rtt_ms=1.0, full_local_ms=400.0)
    driven = simulate(world, CascadePolicy(world, 0.9, 3), episode_keys(0, 6))
    # Until the first transfers have shown how good the link is, it may do otherwise.
    assert (driven.action[:, 5:] == SHIPPED.action(3, 0).index).mean() > 0.95


def test_decisions_are_legal_and_single_ones_are_the_batchs(make_world) -> None:
    world = make_world(20.0)
    policy = CascadePolicy(world, 0.9, 5)
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (500, 42)).astype(np.float32)
    positions = rng.integers(0, 5, 500)
    chosen = policy.decide_batch(observations, positions)
    assert POINTS.legal[positions, chosen].all()
    assert len(set(chosen)) > 3
    assert POINTS.answer in chosen
    for i in range(0, 500, 25):
        assert policy.decide(observations[i], int(positions[i])) == chosen[i]
