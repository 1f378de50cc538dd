"""The bandit against its own formulas, and against a link that the device misjudges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.baselines.linucb import LinUcbPolicy
from agents.baselines.prediction import AccuracyTable, Predictor, reader
from agents.baselines.rules import GreedyPolicy
from agents.rollout import feedback, simulate, summary
from cnn.topology import SHIPPED
from offload_env.batch_simulator import FALLBACK, BatchSimulator
from offload_env.episode import episode_keys
from testbed.policy.observation_fields import schema_of
from testbed.policy.policies import Feedback, Learner
from testbed.records.measurement import Measurement

SCHEMA = schema_of(SHIPPED)
READ = reader(SHIPPED)


def observation(uplink_mbps: float, rtt_ms: float) -> np.ndarray:
    raw = np.zeros(SCHEMA.obs_dim)
    raw[READ.at["uplink_mbps"]], raw[READ.at["rtt_ms"]], raw[READ.at["full_local_ms"]] = (
        uplink_mbps,
        rtt_ms,
        80.0,
    )
    return SCHEMA.normalise(raw)


def told(action: int, exchange_ms: float) -> Feedback:
    one = np.ones(1)
    return Feedback(np.array([action]), exchange_ms * one, exchange_ms * one, one, one)


def test_it_starts_as_the_greedy_rule(make_world) -> None:
    world = make_world(20.0)
    assert isinstance(LinUcbPolicy(world, 10.0, 0.0, 0.97, AccuracyTable(world)), Learner)
    accuracy_table = AccuracyTable(world)
    x = np.random.default_rng(4).uniform(-1, 1, (400, SCHEMA.obs_dim)).astype(np.float32)
    x[:, READ.at["uplink_mbps"]] = np.abs(x[:, READ.at["uplink_mbps"]])
    # Where no exchange is predicted to time out both see the same delays.
    exchange = Predictor(world).exchange_ms(READ(x))
    x = x[exchange.max(1) < world.scenario.timing.timeout_ms]
    assert len(x) > 50
    greedy = GreedyPolicy(world, 10.0, accuracy_table).decide_batch(x)
    bandit = LinUcbPolicy(world, 10.0, 0.0, 0.97, accuracy_table).decide_batch(x)
    assert bandit.tolist() == greedy.tolist()


def test_what_it_learns_is_discounted_ridge_regression(make_world) -> None:
    world = make_world(20.0)
    policy = LinUcbPolicy(world, 1.0, 3.0, 0.9, AccuracyTable(world))
    rng = np.random.default_rng(0)
    rows, targets = [], []
    for _ in range(25):
        x = observation(float(rng.uniform(5, 100)), float(rng.uniform(5, 40)))
        action = policy.decide(x)
        parts = Predictor(world).exchange_parts_ms(READ(x[None]))[0, action]
        sent = not SHIPPED.actions[action].is_local
        length = float(rng.uniform(20, 60)) if sent else np.nan
        policy.learn(told(action, length))
        rows.append(np.array([10.0, *parts]) * sent)
        targets.append(length - parts.sum() if sent else 0.0)
    weights = np.sqrt(0.9 ** np.arange(24, -1, -1))[:, None]
    x = np.concatenate([np.array(rows) * weights, 20.0 * np.eye(4)])
    y = np.concatenate([np.array(targets) * weights[:, 0], np.zeros(4)])
    solution = np.linalg.lstsq(x, y, rcond=None)[0]
    inverse = np.linalg.inv(policy._seen[0] + 400.0 * np.eye(4))
    np.testing.assert_allclose(inverse @ policy._missed[0], solution, rtol=1e-8)


def test_it_leaves_a_split_that_disappoints_and_comes_back(make_world) -> None:
    world = make_world(100.0)
    policy = LinUcbPolicy(world, 1.0, 5.0, 0.8, AccuracyTable(world))
    x = observation(100.0, 5.0)
    local = SHIPPED.is_local
    assert not local[policy.decide(x)]
    late_ms = world.scenario.timing.timeout_ms
    late = 0
    while not local[action := policy.decide(x)] and late < 20:
        policy.learn(told(action, late_ms))  # whatever the device predicts
        late += 1
    assert late < 20
    quiet = 0
    while local[action := policy.decide(x)] and quiet < 100:
        policy.learn(told(action, np.nan))  # nothing sent, nothing heard: it grows unsure
        quiet += 1
    assert 0 < quiet < 100


def test_one_memory_a_row(make_world) -> None:
    world = make_world([30.0, 1.0, 80.0])
    accuracy_table = AccuracyTable(world)
    keys = episode_keys(3, 6)
    make = lambda: LinUcbPolicy(world, 5.0, 5.0, 0.95, accuracy_table)  # noqa: E731
    together = simulate(world, make(), keys)
    alone = [simulate(world, make(), keys[k : k + 1]).action[0] for k in range(6)]
    assert together.action.tolist() == [a.tolist() for a in alone]
    policy = make()
    again = [simulate(world, policy, keys).cost.mean() for _ in range(2)]
    assert again[0] == again[1]  # `reset` forgets everything


def test_learning_pays_where_the_device_is_wrong(make_world) -> None:
    # Every answer takes 60 ms more at the server than the cost model believes.
    world = make_world(60.0, full_local_ms=60.0)
    slow = replace(world, server_ms=world.server_ms + 60.0)
    accuracy_table = AccuracyTable(world)
    keys = episode_keys(1, 16)
    greedy = summary(simulate(slow, GreedyPolicy(world, 1000.0, accuracy_table), keys))
    bandit = summary(simulate(slow, LinUcbPolicy(world, 1000.0, 2.0, 0.97, accuracy_table), keys))
    assert bandit["accuracy"] >= greedy["accuracy"] - 0.005
    assert bandit["cost"] < 0.9 * greedy["cost"]


def test_feedback_is_what_a_device_could_measure(make_world) -> None:
    world = make_world([50.0, 0.05])
    simulator = BatchSimulator(world, 20)
    simulator.reset(episode_keys(0, 20))
    seen = set()
    for _ in range(30):
        outcome = simulator.settle(np.arange(20))
        told = feedback(world, outcome)
        local = [a.is_local for a in SHIPPED.actions]
        assert np.isnan(told.exchange_ms[local]).all()
        fell = outcome.status == FALLBACK
        assert (told.exchange_ms[fell] == world.scenario.timing.timeout_ms).all()
        seen |= set(outcome.status.tolist())
    assert FALLBACK in seen


@pytest.mark.parametrize("status", ["ok", "fallback", "skipped"])
def test_feedback_of_a_measured_frame(status: str) -> None:
    action = next(a for a in SHIPPED.actions if a.name == "e3s1").index
    fallback = 7.0 if status == "fallback" else None
    row = Measurement(
        **dict.fromkeys(Measurement.__slots__)
        | {
            "action": action,
            "head_ms": 3.0,
            "encode_ms": 1.0,
            "fallback_ms": fallback,
            "queue_ms": 2.0,
            "delay_ms": 6.0 + 20.0 + (fallback or 0.0),
            "confidence": 0.9,
            "status": status,
        }
    )
    told = Feedback.of(row)
    if status == "skipped":
        assert np.isnan(told.exchange_ms[0])
    else:
        assert told.exchange_ms[0] == pytest.approx(20.0)
    assert np.isnan(told.energy_mj[0])
