"""Time from observation to action on the device, against stable-baselines3's ``predict``.

    python benchmarks/decision_latency.py [--policy FILE] [--decisions 20000]

Both run the same network on the same observations in the same process, one observation at
a time, turn by turn so that a busy machine slows both. Prints one JSON object: p50 and p99
of the exported policy in microseconds, p50 of ``model.predict(deterministic=True)``, and the
ratio of the two p50.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO

from agents.export_policy import bundle_of
from agents.train_config import TrainConfig
from cnn.topology import SHIPPED
from testbed.policy.network_policy import NetworkPolicy, load_policy
from testbed.policy.observation_fields import schema_of
from testbed.policy.policies import Policy

SCHEMA = schema_of(SHIPPED)

WARM_UP = 200


class Spaces(gymnasium.Env[Any, Any]):
    """Only the spaces: the network's shape is all that matters here."""

    observation_space = gymnasium.spaces.Box(-1, 1, (SCHEMA.obs_dim,), np.float32)
    action_space = gymnasium.spaces.Discrete(SHIPPED.n_actions)


def sb3_model(hidden: int) -> PPO:
    """A model of the shape that `sliproad agent train` makes."""
    torch.manual_seed(0)
    arch = {"pi": [hidden, hidden], "vf": [hidden, hidden]}
    kwargs = {"net_arch": arch, "activation_fn": torch.nn.Tanh}
    return PPO("MlpPolicy", Spaces(), policy_kwargs=kwargs, device="cpu")


def exported(model: PPO) -> NetworkPolicy:
    """The model's policy after a way through a file."""
    bundle = bundle_of(
        model,
        actions=range(SHIPPED.n_actions),
        name="agent",
        bundle_hash="",
        scenario="",
        algorithm="ppo",
        metrics={},
        provenance={},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.policy"
        bundle.save(path)
        policy = load_policy(path)
    assert isinstance(policy, NetworkPolicy)
    return policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", type=Path, help="policy file to time instead")
    parser.add_argument("--decisions", type=int, default=20_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = sb3_model(TrainConfig().hidden)
    policy: Policy = exported(model)
    if args.policy is not None:
        policy = load_policy(args.policy)
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (args.decisions + WARM_UP, SCHEMA.obs_dim)).astype(np.float32)
    ours, theirs = [], []
    for i, observation in enumerate(observations):
        began = time.perf_counter_ns()
        policy.decide(observation)
        ours.append(time.perf_counter_ns() - began)
        if i % 10 == 0:
            began = time.perf_counter_ns()
            model.predict(observation, deterministic=True)
            theirs.append(time.perf_counter_ns() - began)
    us = np.array(ours[WARM_UP:]) / 1e3
    sb3_us = np.array(theirs[WARM_UP // 10 :]) / 1e3
    p50, p99 = np.percentile(us, (50, 99))
    sb3_p50 = float(np.median(sb3_us))
    result = {
        "p50_us": round(float(p50), 2),
        "p99_us": round(float(p99), 2),
        "sb3_predict_p50_us": round(sb3_p50, 1),
        "ratio": round(sb3_p50 / float(p50), 1),
        "decisions": args.decisions,
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
