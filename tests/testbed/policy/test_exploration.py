"""The exploring policy: its propensities are the frequencies that it really has."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cnn.common.errors import ConfigError
from cnn.topology import SHIPPED
from testbed.cli.app import app
from testbed.policy.exploration import ExploringPolicy
from testbed.policy.observation_fields import scaled_bounds, schema_of
from testbed.policy.policies import Policy, StaticPolicy
from testbed.records.record_file import read_records

SCHEMA = schema_of(SHIPPED)


def test_propensities_are_frequencies() -> None:
    policy = ExploringPolicy(StaticPolicy(7), 0.3, seed=1)
    x = np.zeros((40_000, SCHEMA.obs_dim), np.float32)
    actions = policy.decide_batch(x)
    frequency = np.bincount(actions, minlength=20) / len(actions)
    for action in range(20):
        stated = policy.propensities[actions == action]
        assert np.ptp(stated) == 0
        assert frequency[action] == pytest.approx(stated[0], abs=0.005)
    assert frequency @ np.ones(20) == pytest.approx(1.0)


def test_without_exploration_it_is_the_policy_itself() -> None:
    policy = ExploringPolicy(StaticPolicy(3), 0.0)
    assert isinstance(policy, Policy)
    assert set(policy.decide_batch(np.zeros((500, SCHEMA.obs_dim), np.float32)).tolist()) == {3}
    assert (policy.propensities == 1.0).all()
    with pytest.raises(ConfigError, match="share"):
        ExploringPolicy(StaticPolicy(3), 1.5)


def test_every_frame_keeps_its_own_decision() -> None:
    policy = ExploringPolicy(StaticPolicy(3), 0.5, seed=2)
    seen = {}
    for k, _ in enumerate(policy.following(range(6))):  # type: ignore[arg-type]
        if k == 2:
            continue  # skipped: no decision
        x = np.full(SCHEMA.obs_dim, k / 10, np.float32)
        action = policy.decide(x)
        seen[k] = (0.5 / 20 + 0.5 * (action == 3), x)
    for k, (propensity, x) in seen.items():
        found = policy.columns(k)
        assert found["propensity"] == pytest.approx(propensity)
        np.testing.assert_array_equal(found["observation"], x)
    assert np.isnan(policy.columns(2)["propensity"])
    assert np.isnan(policy.columns(5)["propensity"])  # taken already


def test_device_records_what_was_explored(tmp_path: Path) -> None:
    assert threading.current_thread() is threading.main_thread()
    out = tmp_path / "r.parquet"
    command = "device --local-only --action e1s1 --explore 0.5 --n-frames 30 --fps 0 --json --out"
    result = CliRunner().invoke(app, [*command.split(), str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.strip().splitlines()[-1])["frames"] == 30
    records = read_records(out)
    action, propensity = records.numbers("action"), records.numbers("propensity")
    np.testing.assert_allclose(propensity, 0.5 / 20 + 0.5 * (action == 1))
    assert len(set(action)) > 3
    seen = np.stack(records.table["observation"].to_pylist())
    assert seen.shape == (30, SCHEMA.obs_dim)
    low, high = scaled_bounds(SCHEMA.fields)  # a fast machine's full local processing is below -1
    assert (low <= seen).all()
    assert (seen <= high).all()
