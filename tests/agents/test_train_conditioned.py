"""Prices between nodes, the stretched input folded back, and a policy that serves two users."""

from __future__ import annotations

import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from agents.rollout import simulate
from agents.supervisor import TrainingInterrupted
from agents.train_conditioned import (
    PriceGrid,
    Stretch,
    already_trained,
    preference_figures,
    train_conditioned,
)
from agents.train_config import TrainConfig
from cnn.topology import SHIPPED
from offload_env.episode import episode_keys
from offload_env.preferences import Preferences, floor_at, preferring
from testbed.meters.power import RadioPower
from testbed.policy.decision_points import decision_points
from testbed.policy.network_policy import NetworkPolicy, load_policy
from testbed.policy.observation_fields import schema_of
from testbed.policy.policies import StaticPolicy
from testbed.policy.policy_file import PolicyBundle

SCHEMA = schema_of(SHIPPED)

pytestmark = pytest.mark.slow(15)

ASKED = Preferences((0.98, 0.995), (0.0, 1.0))


def test_prices_between_nodes_are_bilinear() -> None:
    grid = PriceGrid(ASKED, 0.0, 0.004)
    plane = 3.0 + 200.0 * (grid.floors[:, None] - 0.98) - 2.0 * grid.shares[None, :]
    rng = np.random.default_rng(0)
    floor, share = rng.uniform(0.98, 0.995, 50), rng.uniform(0, 1, 50)
    weights = grid.weights(floor, share)
    np.testing.assert_allclose(weights.sum((1, 2)), 1.0)
    found = np.tensordot(weights, plane, 2)
    np.testing.assert_allclose(found, 3.0 + 200.0 * (floor - 0.98) - 2.0 * share)


def test_a_price_rises_only_where_accuracy_is_missing() -> None:
    grid = PriceGrid(ASKED, 10.0, 0.004)
    strict, lax = grid.floors[[-1]], grid.floors[[0]]
    middle = grid.shares[[1]]
    grid.add(grid.weights(strict, middle), strict, np.array([0.989]))
    grid.add(grid.weights(lax, middle), lax, np.array([0.994]))
    grid.ascend(100.0)
    assert grid.values[-1, 1] == pytest.approx(10.0 + 100.0 * (0.995 + 0.004 - 0.989))
    assert grid.values[0, 1] == pytest.approx(10.0 + 100.0 * (0.98 + 0.004 - 0.994))
    untouched = np.ones_like(grid.values, bool)
    untouched[[0, -1], 1] = False
    assert (grid.values[untouched] == 10.0).all()
    grid.add(grid.weights(lax, middle), lax, np.array([1.0]))
    grid.ascend(1e6)
    assert grid.values[0, 1] == 0.0


def test_the_folded_policy_reads_the_observation_as_it_is() -> None:
    rng = np.random.default_rng(1)
    sizes = (SCHEMA.obs_dim, 16, 20)
    arrays = {
        f"{kind}{i}": rng.normal(size=shape).astype(np.float32)
        for i, (n_in, n_out) in enumerate(pairwise(sizes))
        for kind, shape in (("weight", (n_out, n_in)), ("bias", (n_out,)))
    }
    stretch = Stretch(ASKED, SHIPPED)
    folded = stretch.fold(PolicyBundle({}, arrays)).arrays
    x = rng.uniform(-1, 1, (200, SCHEMA.obs_dim)).astype(np.float32)
    low, high = (2 * (f - 0.8) / 0.2 - 1 for f in ASKED.floor)
    x[:, floor_at(SCHEMA)] = rng.uniform(low, high, 200)
    stretched = stretch.apply(x.copy())
    assert np.abs(stretched[:, floor_at(SCHEMA)]).max() <= 1.001

    def network(a: dict[str, np.ndarray]) -> NetworkPolicy:
        return NetworkPolicy(
            [a["weight0"], a["weight1"]],
            [a["bias0"], a["bias1"]],
            space=decision_points(SHIPPED).frame,
        )

    expected = network(arrays).outputs(stretched)
    np.testing.assert_allclose(network(dict(folded)).outputs(x), expected, atol=2e-3)


def test_one_policy_serves_who_wants_speed_and_who_saves_energy(make_world, tmp_path: Path) -> None:
    # A fast link and a slow device: sending is quicker, but the modem costs more energy.
    world = make_world(200.0, rtt_ms=2.0, full_local_ms=120.0)
    thirsty = RadioPower("made up", 10.0, 18_000.0, 300.0, 0.0, "made up")
    world = replace(world, cost=replace(world.cost, radio=thirsty))
    config = TrainConfig(
        scenario="toy",
        steps=65_536,
        n_envs=64,
        n_steps=16,
        batch_size=256,
        learning_rate=2e-3,
        validate_every=16_384,
        validate_drives=16,
        dual_start=0.0,
    )
    asked = Preferences((0.4, 0.5), (0.0, 1.0))
    result = train_conditioned(config, tmp_path / "c.policy", world=world, preferences=asked)
    policy = load_policy(tmp_path / "c.policy", world.table.bundle_hash)
    assert result.bundle.manifest["preferences"]["floor"] == asked.floor
    task = PolicyBundle.load(tmp_path / "c.policy").task
    assert task is not None
    assert (task.accuracy_floors, task.delay_shares) == (asked.floor, asked.delay_share)
    keys = episode_keys(5, 16)
    shares = []
    for share in (0.0, 1.0):
        found = preference_figures(world, policy, keys, 0.45, share)
        mine = preferring(world, 0.45, share)
        best = min(simulate(mine, StaticPolicy(a), keys).cost.mean() for a in SHIPPED.actions)
        assert found["cost"] < 1.15 * best
        shares.append((~SHIPPED.is_local[simulate(mine, policy, keys).action]).mean())
    assert shares[0] < 0.1
    assert shares[1] > 0.5


def test_an_interrupted_training_goes_on_bit_for_bit(make_world, tmp_path: Path) -> None:
    world = make_world([30.0, 5.0], floor=0.98)
    config = TrainConfig(
        scenario="toy", steps=2048, n_envs=16, n_steps=16, batch_size=128, hidden=8,
        validate_drives=2, validate_every=512, checkpoint_every=10**9,
    )  # fmt: skip

    def tell(step: int, row: dict[str, float]) -> None:
        if step == 3 * 256:
            signal.raise_signal(signal.SIGINT)

    whole = train_conditioned(config, tmp_path / "whole.policy", world=world, preferences=ASKED)
    parts = tmp_path / "parts.policy"
    with pytest.raises(TrainingInterrupted):
        train_conditioned(config, parts, world=world, preferences=ASKED, report=tell)
    assert not parts.exists()
    steps = []
    resumed = train_conditioned(
        config, parts, world=world, preferences=ASKED, report=lambda step, row: steps.append(step)
    )
    assert min(steps) > 3 * 256, "it began anew"
    for name, array in whole.bundle.arrays.items():
        np.testing.assert_array_equal(resumed.bundle.arrays[name], array)
    np.testing.assert_array_equal(whole.prices, resumed.prices)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("parts")] == ["parts.policy"]
    config = config.of(world.topology)
    assert already_trained(parts, config, ASKED)
    assert not already_trained(parts, replace(config, seed=1), ASKED)
    assert not already_trained(parts, config, Preferences((0.9, 0.995)))


def test_a_checkpoint_of_another_task_is_not_continued(make_world, tmp_path: Path) -> None:
    world = make_world([30.0, 5.0], floor=0.98)
    config = TrainConfig(
        scenario="toy", steps=1024, n_envs=16, n_steps=16, batch_size=128, hidden=8,
        validate_drives=2,
    )  # fmt: skip

    def tell(step: int, row: dict[str, float]) -> None:
        signal.raise_signal(signal.SIGTERM)

    path = tmp_path / "c.policy"
    with pytest.raises(TrainingInterrupted):
        train_conditioned(config, path, world=world, preferences=ASKED, report=tell)
    other = replace(config, n_envs=8, n_steps=32)
    steps: list[int] = []
    train_conditioned(
        other, path, world=world, preferences=ASKED, report=lambda step, row: steps.append(step)
    )
    assert min(steps) == 256
