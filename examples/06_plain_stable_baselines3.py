"""Stable-baselines3's own PPO on the plain reward, and with the accuracy floor in it.

    python examples/06_plain_stable_baselines3.py [--steps 60000] [--seed 0]

The plain reward ends below the floor; `KeepFloor` prices wrong answers by dual ascent. `sliproad
agent train` reaches more (less noise, the best validated policy). Needs the extra [train].
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from offload_env import FloorPrice, KeepFloor, OffloadVectorEnv

SCENARIO = "poor-coverage"


def learn(steps: int, seed: int, **wrapper: Any) -> PPO:
    name = "offload_env:sliproad/Offload-v0"  # the part before the colon is imported first
    drives = make_vec_env(name, 8, seed=seed, env_kwargs={"scenario": SCENARIO}, **wrapper)
    # An action matters to the next few frames only; a short horizon leaves later noise out.
    settings: Any = {"n_steps": 512, "batch_size": 256, "gamma": 0.9, "learning_rate": 1e-3}
    return PPO("MlpPolicy", drives, seed=seed, device="cpu", **settings).learn(steps)


def drive(model: PPO, drives: int = 64) -> str:
    """Cost and accuracy on test drives, and full local processing's accuracy on their frames."""
    envs = OffloadVectorEnv(drives, SCENARIO, "test")
    seen, _ = envs.reset(seed=2)
    cost, right, local = [], [], []
    for _ in range(envs.world.scenario.timing.n_frames):
        local.append(envs.world.correct[envs.simulator.row, envs.world.topology.main])
        seen, _, _, _, info = envs.step(model.predict(seen, deterministic=True)[0])
        cost.append(info["cost"])
        right.append(info["accuracy"])
    floor = np.mean(local) - envs.world.scenario.constraint.accuracy_margin
    kept = "kept" if np.mean(right) >= floor else "BELOW"
    return f"cost {np.mean(cost):.3f}, accuracy {np.mean(right):.4f}, floor {floor:.4f} {kept}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60_000, help="frames to train on")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print("plain reward: ", drive(learn(given.steps, given.seed)))
    price = FloorPrice()
    wrapper = {"wrapper_class": KeepFloor, "wrapper_kwargs": {"price": price}}
    print("with KeepFloor:", drive(learn(given.steps, given.seed, **wrapper)))
    print(f"price of a wrong answer at the end: {price.value:.1f}")


if __name__ == "__main__":
    main()
