"""A policy with the control of accuracy: what it charges, when, and where it pays."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from agents.careful import disagreement
from agents.cli import agent_app
from agents.contenders import shipped_path
from agents.credit_control import at_credit, controlled, figures
from agents.rollout import simulate
from cnn.common.errors import BundleError, ConfigError
from cnn.topology import SHIPPED
from offload_env.episode import episode_keys
from offload_env.sources import load_traces
from offload_env.world import World, build_world
from testbed.policy.decision_points import decision_points
from testbed.policy.network_policy import policy_from_bundle
from testbed.policy.observation_fields import schema_of
from testbed.policy.policy_file import PolicyBundle

SCHEMA = schema_of(SHIPPED)
CREDIT = next(f.index for f in SCHEMA.fields if f.name == "accuracy_credit")
PRICE = 200.0


@pytest.fixture(scope="module")
def train() -> World:
    return build_world("urban-5g")


def shipped(staged: bool) -> PolicyBundle:
    return PolicyBundle.load(shipped_path("urban-5g", staged=staged))


def charged(activation: str, credit: float) -> float:
    """The share of the price at a credit, by its definition."""
    if activation == "relu":
        return min(1.0, max(0.0, credit / -0.01))
    step = math.tanh(2.0 * math.tanh((credit + 0.005) / 0.005)) / math.tanh(2.0)
    return (1.0 - step) / 2.0


def outputs(bundle: PolicyBundle, seen: NDArray[np.float32]) -> NDArray[np.float32]:
    policy = policy_from_bundle(bundle)
    assert hasattr(policy, "outputs")
    found: NDArray[np.float32] = policy.outputs(seen)
    return found


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("staged", [False, True])
def test_the_price_rises_as_the_credit_falls(
    train: World, tmp_path: Path, staged: bool, activation: str
) -> None:
    before = shipped(staged)
    before = replace(before, manifest={**before.manifest, "activation": activation})
    disagree = disagreement(train)
    path = tmp_path / "with.policy"
    at_credit(before, PRICE, disagree).save(path)
    after = PolicyBundle.load(path)  # any device reads it
    pairs = before.manifest["actions"]
    if staged:
        pairs = decision_points(SHIPPED).canonical[pairs]
    rng = np.random.default_rng(0)
    seen = rng.uniform(-1, 1, (40, before.space.obs_dim)).astype(np.float32)
    for credit in (0.05, 0.0, -0.002, -0.005, -0.008, -0.01, -0.05):
        seen[:, CREDIT] = SCHEMA.scale_one(CREDIT, credit)
        expected = outputs(before, seen) - PRICE * charged(activation, credit) * disagree[pairs]
        np.testing.assert_allclose(outputs(after, seen), expected, rtol=1e-4, atol=1e-3)
    assert charged(activation, 0.0) < 0.06
    assert charged(activation, 0.02) < 1e-3
    assert charged(activation, -0.01) > 0.94


def test_where_round_trips_double_it_wins_accuracy_back(train: World) -> None:
    keys = episode_keys(0, 32)
    before = shipped(staged=True)
    with_certificate = {**before.manifest, "certificate": {"level": 0.9, "margin": 0.1}}
    found = controlled(replace(before, manifest=with_certificate), train, keys, 0.01)
    assert found is not None
    # The traces by hand, on other drives of other signs.
    traces = [replace(t, rtt_ms=2 * t.rtt_ms) for t in load_traces(train.scenario, "test")]
    far = build_world("urban-5g", "test", traces=traces)
    lost, left = (
        float(simulate(far, policy_from_bundle(b), keys).correct.mean()) - far.accuracy_floor
        for b in (before, found.bundle)
    )
    assert lost < -0.008
    assert left > 0.5 * lost
    assert found.home.cost <= 1.01 * found.home_before.cost
    assert found.home == figures(policy_from_bundle(found.bundle), train, keys)
    assert "certificate" not in found.bundle.manifest
    assert found.bundle.manifest["control"] == found.as_json()
    promised = found.bundle.manifest["metrics"]["promise"]
    assert promised != before.manifest["metrics"]["promise"]
    with pytest.raises(BundleError, match="with a control"):
        controlled(found.bundle, train, keys, 0.01)


def test_a_static_policy_is_refused(train: World) -> None:
    static = {**shipped(staged=False).manifest, "kind": "static", "layers": 0, "name": "still"}
    with pytest.raises(BundleError, match=r"still.* of 0 layers"):
        at_credit(PolicyBundle(static, {}), PRICE, disagreement(train))


def test_the_command_writes_a_policy_or_says_why_not(tmp_path: Path) -> None:
    source, out = str(shipped_path("urban-5g")), tmp_path / "careful.policy"
    given = ["control", "--policy", source, "--out", str(out), "--json"]
    said = CliRunner().invoke(agent_app, given, catch_exceptions=False).stdout
    result = json.loads(said.splitlines()[-1])
    assert result["written"] == str(out)
    assert result["away"]["over_floor"] > result["away_before"]["over_floor"]
    assert PolicyBundle.load(out).space.name == "frame"
    # The shipped policy there is a static pair, which no price of errors changes.
    nothing = tmp_path / "nothing.policy"
    given = ["control", "--scenario", "motorway-camera", "--out", str(nothing)]
    with pytest.raises(ConfigError, match=r"no control pays.*give a larger --most"):
        CliRunner().invoke(agent_app, given, catch_exceptions=False)
    assert not nothing.exists()
