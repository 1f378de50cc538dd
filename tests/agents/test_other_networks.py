"""Agents, rules and reports of networks of other forms than the shipped one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import NETWORKS, THREE_EXITS, TWO_EXITS, made_up_cost, network_id, scenario_of
from policy_manifests import static_manifest

from agents import train_checkpoint as checkpoint
from agents.action_plots import action_shares, drive_timeline
from agents.baselines.rules import CascadePolicy, full_local, static_policies
from agents.baselines.tuning import tuned_baselines
from agents.contenders import contender
from agents.drive_picture import Driven, drive_picture
from agents.evaluation import AGENT, STAGED, evaluate
from agents.from_records import device_speed, log_of
from agents.off_policy import estimate
from agents.report import driven_actions, driven_shares, write_report
from agents.rollout import Rollout, simulate
from agents.train_conditioned import preference_figures, train_conditioned
from agents.train_config import TrainConfig
from agents.training import train
from cnn.common.errors import BundleError, ConfigError
from cnn.topology import Topology
from offload_env.episode import episode_keys
from offload_env.outcome import SKIPPED
from offload_env.server_load import ServerLoad
from offload_env.world import World, build_world
from testbed.policy.decision_points import DecisionSpace, decision_points
from testbed.policy.network_policy import load_policy
from testbed.policy.policies import CommitOnce, Learner, Policy, RandomPolicy, StaticPolicy
from testbed.policy.policy_file import PolicyBundle
from testbed.records.record_file import read_records
from testbed.traces.trace import constant_trace

NO_FRAME_SENT = Topology(3, (1, 3), (1,), ((2, 2, 2),))
"""Only features can be sent."""
ONE_EXIT = Topology(2, (2,), (0,), ((4, 4, 3),))
"""Nothing to decide within a frame."""
EVERY = (*NETWORKS, NO_FRAME_SENT, ONE_EXIT)
KEYS = episode_keys(3, 4)

for_every = pytest.mark.parametrize("topology", EVERY, ids=network_id)


@pytest.fixture(scope="module")
def world_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., World]:
    """``world_of(topology, split)``: drives of 32 frames over a made-up network's answers."""
    folders: dict[Topology, Path] = {}

    def world(topology: Topology, split: Any = "train") -> World:
        if topology not in folders:
            folders[topology] = tmp_path_factory.mktemp("network")
        scenario = scenario_of(topology, folders[topology])
        timing = replace(scenario.timing, n_frames=32)
        return build_world(replace(scenario, timing=timing), split)

    return world


class ModelPolicy:
    """A model of stable-baselines3 that is asked itself."""

    name, memoryless = "model", True

    def __init__(self, model: Any, space: DecisionSpace, outputs: tuple[int, ...]) -> None:
        self.space, self._model, self._outputs = space, model, np.array(outputs)

    def reset(self) -> None:
        """Nothing to forget."""

    def decide(self, observation: Any, point: int = 0) -> int:
        return int(self.decide_batch(observation[None], np.array([point]))[0])

    def decide_batch(self, observations: Any, points: Any = None) -> Any:
        masks = {}
        if self.space.is_staged:
            legal = decision_points(self.space.topology).legal
            masks = {"action_masks": legal[points][:, self._outputs]}
        return self._outputs[self._model.predict(observations, deterministic=True, **masks)[0]]


@pytest.mark.slow(15)
@pytest.mark.parametrize(
    ("topology", "env"),
    [*((topology, "frame") for topology in NETWORKS), (THREE_EXITS, "staged")],
    ids=lambda value: value if isinstance(value, str) else network_id(value),
)
def test_a_trained_policy_decides_as_its_model_after_a_way_through_a_file(
    topology: Topology, env: str, world_of: Any, small_run: TrainConfig, tmp_path: Path
) -> None:
    world = world_of(topology)
    algo = "maskable-ppo" if env == "staged" else "ppo"
    config = replace(small_run, algo=algo, env=env)
    train(config, tmp_path, world=world)
    model, _ = checkpoint.load_best(algo, tmp_path)
    file = PolicyBundle.load(tmp_path / "agent.policy")
    assert file.topology == topology
    assert file.manifest["provenance"]["config"]["actions"] == list(range(topology.n_actions))
    policy = contender(tmp_path, world_of(topology, "test")).policy
    assert policy.space == config.space(topology)
    test_world = world_of(topology, "test")
    asked = ModelPolicy(model, policy.space, config.outputs(topology))
    expected, driven = simulate(test_world, asked, KEYS), simulate(test_world, policy, KEYS)
    np.testing.assert_array_equal(driven.action, expected.action)
    np.testing.assert_array_equal(driven.cost, expected.cost)


@pytest.mark.slow(5)
def test_one_policy_serves_all_preferences_of_another_network(
    world_of: Any, small_run: TrainConfig, tmp_path: Path
) -> None:
    world = world_of(TWO_EXITS)
    config = replace(small_run, steps=512, validate_every=256)
    result = train_conditioned(config, tmp_path / "c.policy", world=world)
    policy = load_policy(tmp_path / "c.policy", world.table.bundle_hash)
    assert policy.space.topology == TWO_EXITS
    row = result.validation[0]
    keys = episode_keys(config.validation_seed, 8)
    found = preference_figures(world, policy, keys, row["floor"], row["delay_share"])
    assert found == pytest.approx(row)  # the file decides as the policy that was validated


@pytest.mark.parametrize("actions", [(), (1, 0), (0, 99)], ids=str)
def test_actions_that_a_network_lacks_cannot_be_trained(actions: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"some of 0\.\.4"):
        TrainConfig(actions=actions).of(TWO_EXITS)


class Checked:
    """A policy whose every decision must be legal."""

    memoryless = False

    def __init__(self, policy: Policy) -> None:
        self.policy, self.name, self.space = policy, policy.name, policy.space
        self.legal = decision_points(policy.space.topology).legal

    def reset(self) -> None:
        """Start a drive."""
        self.policy.reset()

    def decide(self, observation: Any, point: int = 0) -> int:
        return self.policy.decide(observation, point)

    def decide_batch(self, observations: Any, points: Any = None) -> Any:
        chosen = self.policy.decide_batch(observations, points)
        assert chosen.dtype == np.int64
        if self.space.is_staged:
            assert self.legal[points, chosen].all()
        else:
            assert 0 <= chosen.min() <= chosen.max() < self.space.n_actions
        return chosen

    def learn(self, feedback: Any) -> None:
        if isinstance(self.policy, Learner):
            self.policy.learn(feedback)


@pytest.mark.slow(10)
@for_every
def test_every_baseline_drives_with_legal_actions(topology: Topology, world_of: Any) -> None:
    found = tuned_baselines(world_of(topology), seed=2, drives=2)
    names = {"full-local", "random", "neurosurgeon", "best-static", "edgent", "threshold"}
    names |= {"greedy", "linucb", "spinn", "planner", "mpc"}
    assert set(found) == (names | {"full-offload"} if 0 in topology.splits else names)
    rollouts = {n: simulate(world_of(topology, "test"), Checked(p), KEYS) for n, p in found.items()}
    last = topology.n_blocks
    assert (rollouts["full-local"].action == topology.index(last, last)).all()
    if "full-offload" in rollouts:
        assert (rollouts["full-offload"].action == topology.index(last, 0)).all()
    assert (topology.exit_of[rollouts["neurosurgeon"].action] == last).all()
    assert set(rollouts["random"].action.ravel()) == set(range(topology.n_actions))


@for_every
def test_what_static_policies_cost_on_a_quiet_link(topology: Topology, world_of: Any) -> None:
    """Nobody waits, nothing varies: the sums of the cost model's figures."""
    world = world_of(topology, "test")
    quiet = replace(world.scenario, server=ServerLoad())
    cost = replace(made_up_cost(topology), jitter=0.0)
    world = build_world(quiet, "test", traces=[constant_trace(50.0, 4.0)], cost=cost)
    for policy in static_policies(topology):
        driven = simulate(world, policy, KEYS, frames=10)
        a = policy.action.index
        expected = cost.device_ms[a]
        if not policy.action.is_local:
            sent = 8 * (cost.payload_bytes[a] + cost.wire_overhead_bytes) / (1e3 * 50.0)
            expected += sent + 4.0 + cost.net_ms + cost.server_ms[a]
        np.testing.assert_allclose(driven.delay_ms, expected)
        if policy.action.is_local:
            energy_mj = cost.busy_mw * expected / 1e3
            price = world.delay_price * expected + world.energy_price * energy_mj
            np.testing.assert_allclose(driven.cost, price)


@pytest.mark.slow(3)
@for_every
@pytest.mark.parametrize("sure", [0.55, 0.9, 1.1])
def test_the_cascade_is_branchynet_where_nothing_can_be_sent(
    topology: Topology, sure: float, world_of: Any
) -> None:
    dead = constant_trace(0.001, 900.0)
    world = build_world(world_of(topology).scenario, "train", traces=[dead])
    policy = CascadePolicy(world, sure, topology.n_blocks)
    driven = simulate(world, policy, KEYS)
    table = world.table
    for action, row, status in zip(
        *(a[:, 5:].ravel() for a in (driven.action, driven.row, driven.status)), strict=True
    ):
        seen = table.confidence[row, list(topology.local)]
        confident = (e for e, c in zip(topology.exits, seen, strict=True) if c >= sure)
        if status != SKIPPED and topology.is_local[action]:
            assert topology.exit_of[action] == next(confident, topology.n_blocks)
    assert topology.is_local[driven.action].mean() > 0.7


def shares_of(driven: Driven) -> float:
    """Shares of all ways through the network."""
    ways = ((e, s) for e in driven.topology.exits for s in (*driven.topology.splits, None))
    return sum(driven.share(e, s) for e, s in ways)


@pytest.mark.slow(6)
@for_every
def test_pictures_show_every_frame_once(topology: Topology, world_of: Any) -> None:
    world = world_of(topology, "test")
    rollout: Rollout = simulate(world, RandomPolicy(1, topology=topology), KEYS)
    shares = driven_shares(rollout)
    assert len(shares) == topology.n_actions + 2
    assert shares.sum() == pytest.approx(1)
    driven = Driven.of_rollout(rollout, 100.0)
    assert shares_of(driven) + (driven.status == SKIPPED).mean() == pytest.approx(1)
    assert driven_actions(world, StaticPolicy(0, topology=topology), KEYS).topology == topology
    frame = rollout.frame().query("drive == 0").assign(time_s=driven.time_s)
    for png in (
        action_shares({"random": shares}, topology),
        drive_timeline(frame, 100.0, topology),
        drive_picture(driven, driven, 100.0, "made up"),
    ):
        assert png.startswith(b"\x89PNG")


@pytest.mark.slow(5)
def test_an_evaluation_of_another_network_has_all_its_pairs(world_of: Any, tmp_path: Path) -> None:
    train_world, test_world = world_of(THREE_EXITS), world_of(THREE_EXITS, "test")
    local = full_local(THREE_EXITS)
    agents = {AGENT: StaticPolicy(1, AGENT, THREE_EXITS), STAGED: CommitOnce(local)}
    result = evaluate(train_world, test_world, agents, drives=4, tuning_drives=2)
    assert list(result.statics) == [action.name for action in THREE_EXITS.actions]
    kept = [m["cost"] for name, m in result.policies.items() if result.keeps_floor(name)]
    assert result.bound_cost <= min(kept) + 1e-9
    assert result.policies[STAGED]["cost"] == pytest.approx(result.policies["full-local"]["cost"])
    page = write_report(result, test_world, agents, tmp_path / "report.html").read_text()
    assert page.count("data:image/png") >= 6
    result.save(tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["best_static"].startswith("best-")


def test_records_teach_only_about_their_own_network(
    world_of: Any, drive: Any, tmp_path: Path
) -> None:
    world = world_of(THREE_EXITS)
    paths = [drive(world, tmp_path / f"{k}.parquet", k, explore=0.3) for k in range(8)]
    runs = [read_records(path) for path in paths]
    log = log_of(runs, world)
    assert log.observation.shape == (len(log.action), decision_points(THREE_EXITS).frame.obs_dim)
    assert device_speed(runs, world) == pytest.approx(1.0, rel=0.1)
    found = estimate(log, StaticPolicy(THREE_EXITS.main, topology=THREE_EXITS), world)
    assert np.isfinite(found.figures["cost"]["dr"].mean)
    other = world_of(TWO_EXITS)
    for refused in (
        lambda: log_of(runs, other),
        lambda: device_speed(runs, other),
        lambda: estimate(log, StaticPolicy(0, topology=TWO_EXITS), world),
    ):
        with pytest.raises(ConfigError, match="2 blocks"):
            refused()


def test_a_policy_of_another_network_is_refused(world_of: Any, tmp_path: Path) -> None:
    train_world, test_world = world_of(TWO_EXITS), world_of(TWO_EXITS, "test")
    other = StaticPolicy(0, "stranger", THREE_EXITS)
    said = r"policy 'stranger' of a network with 4 blocks, 3 exits .* expected a network with 2"
    with pytest.raises(ConfigError, match=said):
        evaluate(train_world, test_world, {AGENT: other}, drives=2)
    with pytest.raises(ConfigError, match=said):
        simulate(test_world, other, KEYS)
    with pytest.raises(ConfigError, match="training frames of a network with 4 blocks"):
        evaluate(world_of(THREE_EXITS), test_world, {}, drives=2)
    # All made-up networks have the same bundle hash.
    path, about = tmp_path / "s.policy", static_manifest("0" * 64, "made up", "0", THREE_EXITS)
    PolicyBundle(about, {}).save(path)
    with pytest.raises(BundleError, match="policy for a network with 4 blocks"):
        contender(path, test_world)
