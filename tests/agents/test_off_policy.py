"""Off-policy estimates against what the candidate really costs in simulation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from policy_manifests import static_manifest
from typer.testing import CliRunner

from agents.baselines.prediction import AccuracyTable
from agents.baselines.rules import EdgentPolicy, GreedyPolicy
from agents.cli import app
from agents.off_policy import ESTIMATORS, Estimate, Log, estimate
from agents.rollout import simulate
from cnn.common.errors import DataError
from cnn.topology import SHIPPED
from offload_env.batch_simulator import BatchSimulator
from offload_env.episode import episode_keys
from testbed.policy.exploration import ExploringPolicy
from testbed.policy.observation_fields import schema_of
from testbed.policy.policies import Policy, StaticPolicy
from testbed.policy.policy_file import PolicyBundle

SCHEMA = schema_of(SHIPPED)

SEEDS = range(8)


def log_in(world, policy: ExploringPolicy, keys: np.ndarray) -> Log:
    """What a device that explored would have logged, drive by drive."""
    simulator = BatchSimulator(world, len(keys))
    simulator.reset(keys)
    policy.reset()
    steps = []
    for _ in range(world.scenario.timing.n_frames):
        seen = simulator.observe()
        action = policy.decide_batch(seen)
        done = simulator.settle(action)
        steps.append((seen, action, policy.propensities, done.cost, done.delay_ms))
    seen, action, propensity, cost, delay = (
        np.stack(part, 1).reshape(-1, *part[0].shape[1:]) for part in zip(*steps, strict=True)
    )
    return Log(seen, action, propensity, {"cost": cost, "delay_ms": delay})


@pytest.fixture(scope="module")
def judged(make_world) -> tuple[float, list[Estimate]]:
    """The candidate's true cost, and its estimates from the logs of eight other runs."""
    world = make_world([25.0, 6.0, 60.0], floor=0.98, n_frames=100)
    accuracy_table = AccuracyTable(world)
    logging, candidate = EdgentPolicy(world, 60.0), GreedyPolicy(world, 5.0, accuracy_table)
    truth = simulate(world, candidate, episode_keys(500, 200)).cost.mean()
    found = [
        estimate(
            log_in(world, ExploringPolicy(logging, 0.2, seed), episode_keys(seed, 30)),
            candidate,
            world,
            seed=seed,
        )
        for seed in SEEDS
    ]
    return float(truth), found


@pytest.mark.slow(2)
def test_doubly_robust_covers_the_truth(judged) -> None:
    truth, found = judged
    covered = [e.figures["cost"]["dr"].low <= truth <= e.figures["cost"]["dr"].high for e in found]
    assert np.mean(covered) >= 0.75
    # The log alone would have said something else.
    assert all(abs(e.logged["cost"] - truth) > 0.05 * truth for e in found)


def test_doubly_robust_errs_less_than_inverse_propensity(judged) -> None:
    truth, found = judged
    error = {
        name: np.mean([abs(e.figures["cost"][name].mean - truth) for e in found])
        for name in ESTIMATORS
    }
    assert error["dr"] < 0.7 * error["ips"]
    widths = {n: np.mean([_width(e, n) for e in found]) for n in ESTIMATORS}
    assert widths["dr"] < widths["ips"]


def _width(found: Estimate, name: str) -> float:
    interval = found.figures["cost"][name]
    return interval.high - interval.low


def test_the_logs_own_policy_is_estimated_by_its_own_mean(make_world) -> None:
    world = make_world(20.0, n_frames=100)
    policy: Policy = StaticPolicy(SHIPPED.action(2, 0))
    log = log_in(world, ExploringPolicy(policy, 0.0), episode_keys(0, 5))
    found = estimate(log, policy, world)
    for name in ESTIMATORS:
        assert found.figures["cost"][name].mean == pytest.approx(found.logged["cost"])
    assert found.match == 1.0
    assert found.effective_frames == pytest.approx(found.frames)


def test_estimators_against_their_formulas(make_world) -> None:
    world = make_world(20.0)
    rng = np.random.default_rng(0)
    n = 600
    action = rng.integers(0, 20, n)
    y = rng.normal(size=n)
    seen = rng.uniform(-1, 1, (n, SCHEMA.obs_dim)).astype(np.float32)
    log = Log(seen, action, np.full(n, 1 / 20), {"y": y})
    found = estimate(log, StaticPolicy(SHIPPED.actions[4]), world)
    same = action == 4
    assert found.figures["y"]["ips"].mean == pytest.approx(20 * y[same].sum() / n)
    assert found.figures["y"]["snips"].mean == pytest.approx(y[same].mean())
    assert found.match == pytest.approx(same.mean())
    assert found.effective_frames == pytest.approx(same.sum())


def test_a_log_must_be_usable() -> None:
    x, a = np.zeros((300, SCHEMA.obs_dim), np.float32), np.zeros(300, np.int64)
    good = np.full(300, 0.5)
    Log(x, a, good, {"cost": good})
    for bad in (
        {"propensity": np.zeros(300), "outcomes": {"cost": good}},
        {"propensity": good, "outcomes": {"cost": good * np.nan}},
        {"propensity": good, "outcomes": {"cost": good[:200]}},
    ):
        with pytest.raises(DataError, match="log"):
            Log(x, a, **bad)
    with pytest.raises(DataError, match="frames"):
        Log(x[:50], a[:50], good[:50], {"cost": good[:50]})


def test_command(make_world, drive, tmp_path: Path) -> None:
    world = make_world(20.0, n_frames=400)
    records = tmp_path / "records"
    records.mkdir()
    drive(world, records / "r.parquet", 1, explore=0.3)
    candidate = tmp_path / "e2s0.policy"
    PolicyBundle(static_manifest(world.table.bundle_hash, "urban-5g"), {}).save(candidate)
    command = ["agent", "estimate", "--records", records, "--policy", candidate, "--json"]
    result = CliRunner().invoke(app, [str(c) for c in command], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout.strip().splitlines()[-1])
    assert set(printed["estimates"]) >= {"delay_ms", "energy_mj", "cost", "confidence"}
    dr = printed["estimates"]["delay_ms"]["dr"]
    assert dr["low"] <= dr["mean"] <= dr["high"]
    assert printed["frames"] > 300


def test_says_when_the_records_hardly_show_the_candidate(make_world) -> None:
    world = make_world([25.0, 6.0, 60.0], n_frames=100)
    log = log_in(
        world, ExploringPolicy(StaticPolicy(SHIPPED.action(5, 5)), 0.01, 1), episode_keys(1, 10)
    )
    alike = estimate(log, StaticPolicy(SHIPPED.action(5, 5)), world)
    assert alike.enough
    other = estimate(log, StaticPolicy(SHIPPED.action(2, 1)), world)
    matches = log.propensity[log.action == SHIPPED.action(2, 1).index]
    assert other.effective_frames == pytest.approx(len(matches))  # equal weights, Kish
    assert not other.enough
    assert other.as_json()["enough_frames"] is False


def test_a_candidate_never_seen_has_no_weighted_estimate(make_world) -> None:
    world = make_world([25.0, 6.0, 60.0], n_frames=100)
    log = log_in(
        world, ExploringPolicy(StaticPolicy(SHIPPED.action(5, 5)), 0.01, 1), episode_keys(1, 10)
    )
    seen = log.action != SHIPPED.action(3, 0).index
    outcomes = {name: values[seen] for name, values in log.outcomes.items()}
    log = Log(log.observation[seen], log.action[seen], log.propensity[seen], outcomes)
    found = estimate(log, StaticPolicy(SHIPPED.action(3, 0)), world)
    assert found.effective_frames == 0
    for name in ("ips", "snips"):
        assert np.isnan(found.figures["cost"][name].mean)
    assert np.isfinite(found.figures["cost"]["dr"].mean)
