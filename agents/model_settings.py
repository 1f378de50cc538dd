"""What a run's settings mean to stable-baselines3."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from agents.config import TrainConfig


def common_settings(config: TrainConfig) -> dict[str, Any]:
    """Arguments of every algorithm's model."""

    def rate(left: float) -> float:
        return config.learning_rate * (0.1 + 0.9 * left)

    return {"seed": config.seed, "device": "cpu", "gamma": config.gamma, "learning_rate": rate}


def ppo_settings(config: TrainConfig) -> dict[str, Any]:
    """Arguments of PPO and of what is built on it, `common_settings` among them."""
    width = [config.hidden, config.hidden]
    return {
        **common_settings(config),
        "n_steps": config.n_steps,
        "n_epochs": config.epochs,
        # Whole minibatches, also with fewer lanes than usual.
        "batch_size": math.gcd(config.batch_size, config.n_envs * config.n_steps),
        "gae_lambda": config.gae_lambda,
        "ent_coef": config.entropy,
        "policy_kwargs": {"net_arch": {"pi": width, "vf": width}, "activation_fn": nn.Tanh},
    }
