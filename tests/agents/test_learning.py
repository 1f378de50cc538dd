"""A real training run finds the answer that is known: fast link -> offload, dead link -> local."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.rollout import simulate, summary
from agents.train_config import TrainConfig
from agents.training import train
from cnn.topology import SHIPPED
from offload_env.episode import episode_keys
from testbed.policy.network_policy import load_policy
from testbed.policy.policies import StaticPolicy

pytestmark = pytest.mark.slow(20)

CONFIG = TrainConfig(
    scenario="toy",
    steps=24_000,
    n_envs=64,
    n_steps=16,
    batch_size=256,
    learning_rate=2e-3,
    validate_every=8_000,
    validate_drives=8,
    dual_start=0.0,
)


@pytest.mark.parametrize(
    ("uplink_mbps", "answer"), [(200.0, "offload"), (0.001, "local")], ids=["fast", "dead"]
)
def test_learns_the_known_answer(uplink_mbps, answer, make_world, tmp_path: Path) -> None:
    world = make_world(uplink_mbps)
    result = train(CONFIG, tmp_path, world=world)
    policy = load_policy(tmp_path / "agent.policy", world.table.bundle_hash)
    keys = episode_keys(99, 16)
    driven = simulate(world, policy, keys)
    offloads = (~SHIPPED.is_local[driven.action]).mean()
    assert (offloads > 0.95) if answer == "offload" else (offloads < 0.05)
    # On a constant link nothing beats the best static pair by much, and nothing excuses
    # being much worse than it.
    best = min(summary(simulate(world, StaticPolicy(a), keys))["cost"] for a in SHIPPED.actions)
    assert summary(driven)["cost"] < 1.1 * best
    assert result.log["step"].is_monotonic_increasing
    assert result.log["accuracy"].between(0, 1).all()


OF_DUAL = TrainConfig(
    scenario="toy",
    steps=6 * 1024,
    n_envs=64,
    n_steps=16,
    batch_size=512,
    validate_every=10_000,
    validate_drives=4,
    dual_start=1.0,
    dual_rate=10.0,
    margin=0.0,
)


def test_the_multiplier_moves_against_the_floor(make_world, tmp_path: Path) -> None:
    config = OF_DUAL
    strict = train(config, tmp_path / "strict", world=make_world(50.0, floor=0.9999)).log
    lax = train(config, tmp_path / "lax", world=make_world(50.0, floor=0.01)).log
    assert strict["multiplier"].iloc[-1] > 1.0
    assert lax["multiplier"].iloc[-1] == 0.0
    missing = 0.9999 - strict["accuracy"].to_numpy()
    rate = 10.0 * (0.1 + 0.9 * (1.0 - strict["step"].to_numpy() / config.steps))
    expected = 1.0 + np.concatenate([[0.0], np.cumsum(rate * missing)[:-1]])
    np.testing.assert_allclose(strict["multiplier"], expected)


def test_a_gain_adds_to_the_multiplier_what_is_missing_now(make_world, tmp_path: Path) -> None:
    """A PID Lagrangian: the sum as without a gain, and the gain times a mean that forgets."""
    config = replace(OF_DUAL, dual_gain=50.0)
    log = train(config, tmp_path, world=make_world(50.0, floor=0.9999)).log
    missing = 0.9999 - log["accuracy"].to_numpy()
    rate = 10.0 * (0.1 + 0.9 * (1.0 - log["step"].to_numpy() / config.steps))
    total = 1.0 + np.concatenate([[0.0], np.cumsum(rate * missing)[:-1]])
    weights = np.tril(0.875 ** np.subtract.outer(np.arange(len(log)), np.arange(len(log))), -1)
    recent = weights @ missing / 0.875 / 8.0
    np.testing.assert_allclose(log["multiplier"], total + 50.0 * recent)
    assert (recent[1:] > 1e-4).all()


def test_the_multiplier_follows_the_policy_that_would_be_deployed(
    make_world, tmp_path: Path
) -> None:
    """From the first validation on: the rollouts' accuracy, corrected by the greedy policy's."""
    config = replace(OF_DUAL, steps=20 * 1024, validate_every=10 * 1024)
    log = train(config, tmp_path, world=make_world(50.0, floor=0.9999)).log
    seen = log["accuracy"].to_numpy()
    at = int(np.flatnonzero(log["validation_accuracy"].notna())[0])
    assert at == 9
    gap = log["validation_accuracy"].iloc[at] - seen[at - 7 : at + 1].mean()
    assert abs(gap) > 1e-4
    rate = 10.0 * (0.1 + 0.9 * (1.0 - log["step"].to_numpy() / config.steps))
    missing = 0.9999 - seen - np.where(np.arange(len(seen)) > at, gap, 0.0)
    expected = 1.0 + np.concatenate([[0.0], np.cumsum(rate * missing)[:-1]])
    np.testing.assert_allclose(log["multiplier"], expected)
