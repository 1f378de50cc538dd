"""An exported policy decides as stable-baselines3 does, without torch; what it promises."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO

from agents.export_policy import bundle_of, reference_profile_of
from agents.rollout import simulate
from agents.train_checkpoint import MODELS
from cnn.topology import SHIPPED
from offload_env.episode import episode_keys
from testbed.policy.network_policy import load_policy
from testbed.policy.observation_fields import schema_of
from testbed.policy.policies import RandomPolicy, StaticPolicy
from testbed.policy.reference_profile import LEVELS

SCHEMA = schema_of(SHIPPED)
N_OBSERVATIONS = 100_000
ROUNDING = 64 * float(np.finfo(np.float32).eps)
"""Error of a dot product of 64 float32 terms, relative."""


class Blank(gymnasium.Env[Any, Any]):
    """Spaces of the offloading environment; nothing happens in it."""

    observation_space = gymnasium.spaces.Box(-1, 1, (SCHEMA.obs_dim,), np.float32)

    def __init__(self, n_actions: int) -> None:
        self.action_space = gymnasium.spaces.Discrete(n_actions)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(SCHEMA.obs_dim, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(SCHEMA.obs_dim, np.float32), 0.0, False, False, {}


def scattered(model: Any) -> Any:
    """Weights far from the near-uniform start, as a trained policy has them."""
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model


def make(algo: str, n_actions: int = SHIPPED.n_actions) -> Any:
    env = Blank(n_actions)
    torch.manual_seed(3)
    if algo == "ppo":
        return scattered(PPO("MlpPolicy", env, policy_kwargs={"net_arch": [64, 64]}, device="cpu"))
    kwargs: dict[str, Any] = {"net_arch": [64, 64]}
    if algo == "qr-dqn":
        kwargs["n_quantiles"] = 7
    kind: Any = MODELS[algo]
    return scattered(kind("MlpPolicy", env, policy_kwargs=kwargs, device="cpu", buffer_size=10))


def top_two_gap(model: Any, observations: Any) -> Any:
    """Best less second-best output in float64, relative to the largest."""
    policy = copy.deepcopy(model.policy).double()
    x = torch.as_tensor(observations, dtype=torch.float64)
    with torch.no_grad():
        if isinstance(model, DQN):
            out = policy.q_net.q_net(x)
        elif isinstance(model, QRDQN):
            quantiles = policy.quantile_net.quantile_net(x)
            out = quantiles.view(len(x), model.n_quantiles, -1).mean(1)
        else:
            out = policy.action_net(policy.mlp_extractor.policy_net(x))
    best = out.sort(dim=1).values
    return ((best[:, -1] - best[:, -2]) / out.abs().max(1).values).numpy()


def saved(model: Any, path: Path, actions: list[int]) -> Path:
    bundle_of(
        model,
        actions=actions,
        name="agent",
        bundle_hash="f" * 64,
        scenario="urban-5g",
        algorithm="ppo",
        metrics={},
        provenance={"seed": 3},
    ).save(path)
    return path


@pytest.mark.slow(6)
@pytest.mark.parametrize("algo", ["ppo", "dqn", "qr-dqn"])
def test_same_decisions_as_stable_baselines3(algo: str, tmp_path: Path) -> None:
    model = make(algo)
    path = saved(model, tmp_path / "p.policy", list(range(SHIPPED.n_actions)))
    policy = load_policy(path, "f" * 64)
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (N_OBSERVATIONS, SCHEMA.obs_dim)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    assert len(set(expected)) >= 10
    gap = top_two_gap(model, observations)
    for decided in (policy.decide_batch(observations), [policy.decide(o) for o in observations]):
        differs = np.flatnonzero(np.asarray(decided) != expected)
        # Summation order differs, so two outputs equal to rounding may swap. Even
        # stable-baselines3 disagrees with itself there between batch sizes.
        assert (gap[differs] < ROUNDING).all(), gap[differs]
        assert len(differs) <= 5


@pytest.mark.slow(2)
def test_outputs_of_fewer_actions_are_mapped(tmp_path: Path) -> None:
    actions = [1, 4, 8, 19]
    model = make("ppo", len(actions))
    policy = load_policy(saved(model, tmp_path / "p.policy", actions))
    rng = np.random.default_rng(1)
    observations = rng.uniform(-1, 1, (2000, SCHEMA.obs_dim)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    assert np.array_equal(policy.decide_batch(observations), np.array(actions)[expected])


def test_runs_where_torch_and_stable_baselines3_are_absent(tmp_path: Path) -> None:
    model = make("ppo")
    path = saved(model, tmp_path / "p.policy", list(range(SHIPPED.n_actions)))
    code = f"""
import json, sys
for name in ("torch", "stable_baselines3", "gymnasium", "pandas"):
    sys.modules[name] = None  # importing it would fail from here on
import numpy as np
from testbed.policy.network_policy import load_policy
policy = load_policy({str(path)!r}, "f" * 64)
x = np.random.default_rng(5).uniform(-1, 1, (1000, {SCHEMA.obs_dim})).astype(np.float32)
print(json.dumps([policy.decide(o) for o in x]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    x = np.random.default_rng(5).uniform(-1, 1, (1000, SCHEMA.obs_dim)).astype(np.float32)
    expected, _ = model.predict(x, deterministic=True)
    assert json.loads(out.stdout) == expected.tolist()


def test_the_promise_is_made_of_the_same_drives_as_the_evaluation(make_world: object) -> None:
    world = make_world(10.0)  # type: ignore[operator]
    keys = episode_keys(3, 4)
    reference = reference_profile_of(world, RandomPolicy(5), keys, window=20)
    rollout = simulate(world, RandomPolicy(5), keys)
    for name, values in (
        ("delay_ms", rollout.delay_ms),
        ("energy_mj", rollout.energy_mj),
        ("confidence", rollout.confidence),
        ("miss_rate", rollout.miss),
    ):
        drives, frames = values.shape
        means = [
            np.nanmean(values[d, i : i + 20]) for d in range(drives) for i in range(frames - 19)
        ]
        assert reference.quantiles[name] == pytest.approx(np.quantile(means, LEVELS), rel=1e-5)
    shares = np.bincount(rollout.action.ravel(), minlength=20) / rollout.action.size
    assert reference.actions == pytest.approx(shares)
    assert reference.windows == drives * (frames - 19)
    low, high = reference.low("uplink_mbps"), reference.high("uplink_mbps")
    assert low is not None
    assert high is not None
    assert 0.1 <= low <= high <= 300


def test_a_policy_that_never_changes_its_mind_has_no_shift(make_world: object) -> None:
    world = make_world(10.0)  # type: ignore[operator]
    reference = reference_profile_of(world, StaticPolicy(SHIPPED.action(3, 1)), episode_keys(1, 2))
    assert reference.action_shift == 0
    assert reference.actions[SHIPPED.action(3, 1).index] == 1
