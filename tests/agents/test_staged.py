"""The staged agent: adapter, returns by frame, rollout, policy file, training, evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO

from agents.evaluation import AGENT, evaluate
from agents.evaluation import STAGED as STAGED_AGENT
from agents.export_policy import bundle_of
from agents.live_run import replay
from agents.report import write_report
from agents.rollout import simulate
from agents.sb3_adapter import FrameRolloutBuffer, OffloadVecEnv
from agents.train_config import TrainConfig
from agents.training import error_probability, train
from cnn.common.errors import BundleError, ConfigError
from cnn.frame_table import FrameTable
from cnn.topology import SHIPPED, Action
from offload_env.batch_simulator import FALLBACK, SKIPPED
from offload_env.env import OffloadStagedEnv
from offload_env.episode import episode_keys
from offload_env.vector_env import OffloadStagedVectorEnv
from offload_env.world import build_world
from testbed.policy.decision_points import START, decision_points
from testbed.policy.network_policy import NetworkPolicy, load_policy
from testbed.policy.observation_fields import schema_of
from testbed.policy.policies import CommitOnce, Policy, RandomPolicy, StaticPolicy, require_space
from testbed.policy.policy_file import PolicyBundle

POINTS = decision_points(SHIPPED)
SCHEMA = schema_of(SHIPPED)

N_OBSERVATIONS = 100_000
ROUNDING = 64 * float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def config(small_run: TrainConfig) -> TrainConfig:
    return replace(small_run, algo="maskable-ppo", env="staged")


def random_policy(seed: int = 0, hidden: int = 16) -> NetworkPolicy:
    """A staged policy that takes many paths."""
    rng = np.random.default_rng(seed)
    sizes = [SCHEMA.staged_obs_dim, hidden, POINTS.n_actions]
    weights = [rng.normal(0, 2 / n**0.5, (m, n)).astype(np.float32) for n, m in pairwise(sizes)]
    biases = [np.zeros(n, np.float32) for n in sizes[1:]]
    return NetworkPolicy(weights, biases, space=POINTS.staged)


class ByBrightness(StaticPolicy):
    """Local processing of some frames, sending of others, as the brightness has it."""

    def decide(self, observation: Any, point: int = START) -> int:
        return int(self.decide_batch(observation[None])[0])

    def decide_batch(self, observations: Any, points: Any = None) -> Any:
        some = np.floor(1e3 * observations[:, SCHEMA.features_at]) % 2 == 0
        return np.where(some, self.action.index, SHIPPED.action(4, 1).index)


@pytest.mark.parametrize(
    "policy",
    [random_policy(), CommitOnce(ByBrightness(SHIPPED.action(5, 5), "at once"))],
    ids=["many ways", "at once"],
)
def test_batched_staged_rollout_equals_the_single_environment(make_world, policy: Any) -> None:
    world = make_world([100.0, 0.3, 3.0], n_frames=40)
    keys = episode_keys(5, 3)
    rollout = simulate(world, policy, keys)
    env = OffloadStagedEnv(world=world)
    evaluated, timed_out = policy.name == "at once", False
    for drive, key in enumerate(keys):
        observation, _ = env.reset(options={"key": int(key)})
        done: list[dict[str, Any]] = []
        while len(done) < 40:
            action = policy.decide(observation, env.simulator.point)
            observation, *_, info = env.step(action)
            evaluated |= not info["frame_done"]
            timed_out |= bool(env.simulator.point >= 5)
            done += [info] if info["frame_done"] else []
        for name in ("delay_ms", "energy_mj", "cost"):
            np.testing.assert_allclose(getattr(rollout, name)[drive], [i[name] for i in done])
        np.testing.assert_array_equal(rollout.correct[drive], [i["accuracy"] for i in done])
    assert evaluated
    assert timed_out or policy.name == "at once"


@pytest.mark.parametrize(
    "policy",
    [StaticPolicy(a) for a in (SHIPPED.action(2, 2), SHIPPED.action(3, 1), SHIPPED.action(5, 5))]
    + [RandomPolicy(3)],
    ids=lambda policy: policy.name,
)
def test_one_decision_a_frame_is_the_frame_level_policy(make_world, policy: Policy) -> None:
    world = make_world([100.0, 0.01, 3.0], n_frames=40)
    keys = episode_keys(1, 4)
    staged, plain = (simulate(world, each, keys) for each in (CommitOnce(policy), policy))
    driven = plain.status != SKIPPED  # a skipped frame is not decided about
    assert driven.mean() > 0.5
    local = isinstance(policy, StaticPolicy) and policy.action.is_local
    assert local or (plain.status == FALLBACK).any()
    np.testing.assert_array_equal(staged.action[driven], plain.action[driven])
    for name in ("delay_ms", "energy_mj", "cost", "correct", "row", "status"):
        np.testing.assert_allclose(getattr(staged, name), getattr(plain, name))


@pytest.mark.parametrize("action", [SHIPPED.action(4, 4), SHIPPED.action(5, 0)], ids=str)
def test_the_replay_of_a_live_run_takes_policies_of_either_kind(action: Action) -> None:
    world = build_world("urban-5g", "test")
    table = first_frames(world.table, 150)
    of = {
        kind: replay(world, table, world.traces[0], policy, 500.0, seed=0)
        for kind, policy in {
            "staged": CommitOnce(StaticPolicy(action)),
            "plain": StaticPolicy(action),
        }.items()
    }
    assert of["staged"] == pytest.approx(of["plain"])


def first_frames(table: FrameTable, n: int) -> FrameTable:
    cut = {
        field.name: value[:n]
        for field in fields(table)
        if isinstance(value := getattr(table, field.name), np.ndarray)
    }
    return replace(table, **cut)


def test_rewards_fall_when_frames_end_and_sums_count_frames(make_world) -> None:
    world, lanes = make_world(20.0, n_frames=7), 5
    chance = error_probability(world.table)
    adapter = OffloadVecEnv(OffloadStagedVectorEnv(lanes, world=world), error_probability=chance)
    native = OffloadStagedVectorEnv(lanes, world=world)
    adapter.seed(11)
    np.testing.assert_array_equal(adapter.reset(), native.reset(seed=11)[0])
    adapter.multiplier = 3.0
    rng = np.random.default_rng(0)
    costs: list[float] = []
    for _ in range(40):
        masks = np.stack(adapter.env_method("action_masks"))
        np.testing.assert_array_equal(masks, native.action_masks())
        actions = np.array([rng.choice(np.flatnonzero(m)) for m in masks])
        rows = native.simulator.row.copy()
        adapter.step_async(actions)
        observation, reward, done, _ = adapter.step_wait()
        expected, _, _, truncated, info = native.step(actions)
        np.testing.assert_array_equal(observation, expected)
        np.testing.assert_array_equal(done, truncated)
        ended = info["frame_done"]
        np.testing.assert_array_equal(adapter.frame_done, ended)
        assert (reward[~ended] == 0).all()
        assert (info["status"][ended] == 0).all()
        wrong = (chance[rows, info["action"]] - chance[rows].mean(1))[ended]
        np.testing.assert_allclose(reward[ended], -info["cost"][ended] - 3.0 * wrong, rtol=1e-4)
        costs += info["cost"][ended].tolist()
    assert adapter.sums.frames == len(costs) < 40 * lanes
    assert adapter.sums.take()[0]["cost"] == pytest.approx(np.mean(costs))


def test_only_finished_frames_are_discounted() -> None:
    """Against the sum that defines generalised advantage estimation, written out."""
    steps, lanes, gamma, lam = 6, 2, 0.8, 0.7
    space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    actions = gymnasium.spaces.Discrete(2)
    buffer = FrameRolloutBuffer(steps, space, actions, "cpu", lam, gamma, lanes)
    rng = np.random.default_rng(0)
    ended = rng.random((steps, lanes)) < 0.5
    rewards, values = rng.normal(size=(2, steps, lanes)).astype(np.float32)
    last = rng.normal(size=lanes).astype(np.float32)
    starts = np.zeros((steps + 1, lanes), np.float32)
    starts[4, 1], ended[3, 1] = 1, True  # lane 1's drive ends with step 3
    now = {"step": 0}
    buffer.follow(lambda: ended[now["step"]])
    buffer.reset()
    for t in range(steps):
        now["step"] = t
        zeros = np.zeros((lanes, 1), np.float32)
        value, log_prob = torch.as_tensor(values[t])[:, None], torch.zeros(lanes)
        buffer.add(zeros, zeros, rewards[t], starts[t], value, log_prob)
    buffer.compute_returns_and_advantage(torch.as_tensor(last)[:, None], starts[steps] > 0)
    following = np.vstack([values[1:], last])
    for lane in range(lanes):
        for t in range(steps):
            total, weight = 0.0, 1.0
            for k in range(t, steps):
                g = (gamma if ended[k, lane] else 1.0) * (1 - starts[k + 1, lane])
                surprise = rewards[k, lane] + g * following[k, lane] - values[k, lane]
                total += weight * surprise
                weight *= g * (lam if ended[k, lane] else 1.0)
            assert buffer.advantages[t, lane] == pytest.approx(total, abs=1e-5)


class Blank(gymnasium.Env[Any, Any]):
    """Spaces of the staged environment; nothing happens in it."""

    observation_space = gymnasium.spaces.Box(-1, 1, (SCHEMA.staged_obs_dim,), np.float32)
    action_space = gymnasium.spaces.Discrete(POINTS.n_actions)

    def action_masks(self) -> Any:
        return POINTS.legal[0]


def exported(path: Path) -> tuple[Any, NetworkPolicy]:
    torch.manual_seed(3)
    kwargs = {"net_arch": [64, 64]}
    model = MaskablePPO("MlpPolicy", Blank(), policy_kwargs=kwargs, device="cpu")
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    bundle_of(
        model,
        actions=range(POINTS.n_actions),
        name="staged-agent",
        bundle_hash="f" * 64,
        scenario="urban-5g",
        algorithm="maskable-ppo",
        metrics={},
        provenance={},
    ).save(path)
    policy = load_policy(path, "f" * 64)
    assert isinstance(policy, NetworkPolicy)
    return model, policy


@pytest.mark.slow(2)
def test_same_decisions_as_stable_baselines3_under_legal_masks(tmp_path: Path) -> None:
    model, policy = exported(tmp_path / "s.policy")
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (N_OBSERVATIONS, SCHEMA.staged_obs_dim)).astype(np.float32)
    positions = rng.integers(0, 5, N_OBSERVATIONS)
    masks = POINTS.legal[positions]
    expected, _ = model.predict(observations, deterministic=True, action_masks=masks)
    assert len(set(expected)) >= 10
    logits = np.where(masks, policy.outputs(observations).astype(np.float64), -np.inf)
    best = np.sort(logits, axis=1)
    gap = (best[:, -1] - best[:, -2]) / np.abs(best[:, -1])
    one_by_one = [
        policy.decide(o, p) for o, p in zip(observations, positions.tolist(), strict=True)
    ]
    for decided in (policy.decide_batch(observations, positions), np.array(one_by_one)):
        assert masks[np.arange(N_OBSERVATIONS), decided].all()
        differs = np.flatnonzero(decided != expected)
        assert (gap[differs] < ROUNDING).all()  # equal to rounding: summation order differs
        assert len(differs) <= 5


def test_a_policy_file_is_refused_where_it_does_not_fit(tmp_path: Path) -> None:
    _, policy = exported(tmp_path / "s.policy")
    assert policy.name == "staged-agent"
    assert require_space(policy, POINTS.staged) is policy
    with pytest.raises(BundleError, match="staged"):
        require_space(policy, POINTS.frame)
    with pytest.raises(BundleError, match="model bundle"):
        load_policy(tmp_path / "s.policy", "e" * 64)
    bundle = PolicyBundle.load(tmp_path / "s.policy")
    assert bundle.manifest["observation"]["schema_hash"] == SCHEMA.staged_hash
    other = {**bundle.manifest, "observation": {"schema_hash": "0" * 64}}
    PolicyBundle(other, bundle.arrays).save(tmp_path / "o.policy")
    with pytest.raises(BundleError, match="observation schema"):
        load_policy(tmp_path / "o.policy")


def test_algorithm_and_environment_must_fit(config: TrainConfig) -> None:
    for wrong in ({"env": "staged"}, {"algo": "maskable-ppo"}, {"env": "other"}):
        with pytest.raises(ConfigError):
            TrainConfig(**wrong)
    some = replace(config, actions=(0, 1, 2, 19))
    assert [POINTS.name(a) for a in some.outputs(SHIPPED)] == [
        *("e1s0", "e1s1", "e2s0", "e5s5", "answer", "e1s0-hurried", "e2s0-hurried")
    ]
    with pytest.raises(ConfigError, match="e5s5"):
        replace(config, actions=(0, 1)).of(SHIPPED)


@pytest.mark.slow(2)
def test_staged_training_resumes_bit_for_bit(
    make_world, tmp_path: Path, config: TrainConfig, cut_off: Callable[..., None]
) -> None:
    world = make_world(20.0)
    whole = train(config, tmp_path / "whole", world=world)

    cut_off(config, tmp_path / "parts", world, 5 * 256)
    parts = train(config, tmp_path / "parts", world=world, resume=True)
    for name, array in whole.bundle.arrays.items():
        np.testing.assert_array_equal(parts.bundle.arrays[name], array)
    loaded = load_policy(tmp_path / "whole" / "agent.policy", world.table.bundle_hash)
    assert loaded.name == STAGED_AGENT


@pytest.mark.slow(5)
def test_evaluation_pairs_staged_with_frame_level_policies(make_world, tmp_path: Path) -> None:
    world = make_world([100.0, 0.1, 0.1], floor=0.98, n_frames=30)
    agents = {
        AGENT: StaticPolicy(SHIPPED.action(3, 3), AGENT),
        STAGED_AGENT: CommitOnce(StaticPolicy(SHIPPED.action(2, 2))),
    }
    test_world = replace(world, split="test")
    result = evaluate(world, test_world, agents, drives=4, tuning_drives=4)
    np.testing.assert_array_equal(result.rollouts[STAGED_AGENT].row, result.rollouts[AGENT].row)
    out = result.as_json()
    best, staged = (out["policies"][n]["cost"] for n in ("best-static", STAGED_AGENT))
    assert out["gap_closed_staged"] == pytest.approx((best - staged) / (best - out["bound_cost"]))
    assert out["cost_over_staged_agent"][AGENT]["mean"] == pytest.approx(
        out["policies"][AGENT]["cost"] - staged
    )
    # Both keep the floor; e2s2 costs less than e3s3, so the gains are its gains.
    local = out["policies"]["full-local"]
    assert out["delay_gain"] == pytest.approx(
        local["delay_ms"] / out["policies"][STAGED_AGENT]["delay_ms"]
    )
    text = write_report(result, test_world, agents, tmp_path / "report.html").read_text()
    assert "One drive of the staged agent" in text
