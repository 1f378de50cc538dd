"""How fast the environments step, and how much of PPO's training they take.

    python benchmarks/env_throughput.py [--scenario urban-5g] [--lanes 4096] [--rounds 5]

* ``scalar_steps_per_s``: `OffloadEnv.step` (observation, reward and info included), one
  process on one core, random actions.
* ``vector_steps_per_s``: lanes times `OffloadVectorEnv.step` a second (observations, rewards,
  infos and resets included), one process on one core, random actions.
* ``sb3_ppo_steps_per_s``: frames a second of stable-baselines3's PPO as `sliproad agent train`
  sets it up, learning included, all cores.
* ``env_share_of_training_time``: share of that run's wall time spent inside the environment
  (its adapter to stable-baselines3 included).

Speeds are the median over rounds; the slowest and fastest go to standard error. Prints one
JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from cnn.topology import SHIPPED
from offload_env.env import OffloadEnv
from offload_env.vector_env import OffloadVectorEnv
from offload_env.world import World, build_world


def main() -> None:
    """Run the three measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="urban-5g", help="name or TOML file")
    parser.add_argument("--lanes", type=int, default=4096, help="lanes of the vector environment")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each measurement")
    parser.add_argument("--ppo-steps", type=int, default=200_000, help="frames of PPO training")
    options = parser.parse_args()
    world = build_world(options.scenario, "train")
    with one_core():
        scalar = measure(lambda: scalar_steps_per_s(world), options.rounds, "scalar")
        vector = measure(lambda: vector_steps_per_s(world, options.lanes), options.rounds, "vector")
    ppo, share = ppo_steps_per_s(world, options.ppo_steps)
    print(
        json.dumps(
            {
                "scalar_steps_per_s": round(scalar),
                "vector_steps_per_s": round(vector),
                "sb3_ppo_steps_per_s": round(ppo),
                "env_share_of_training_time": round(share, 4),
                "scenario": options.scenario,
                "lanes": options.lanes,
            }
        )
    )


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(once: Callable[[], float], rounds: int, name: str) -> float:
    """Median of `rounds` measurements after one to warm up."""
    once()
    values = [once() for _ in range(rounds)]
    print(f"{name}: {min(values):,.0f} .. {max(values):,.0f} steps/s", file=sys.stderr)
    return statistics.median(values)


def scalar_steps_per_s(world: World, steps: int = 20_000) -> float:
    """One environment, one decision at a time."""
    env = OffloadEnv(world=world)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, SHIPPED.n_actions, steps).tolist()
    began = time.perf_counter()
    for action in actions:
        if env.step(action)[3]:
            env.reset()
    return steps / (time.perf_counter() - began)


def vector_steps_per_s(world: World, lanes: int, steps: int = 320) -> float:
    """Many drives at once, over at least one episode's end."""
    env = OffloadVectorEnv(lanes, world=world)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, SHIPPED.n_actions, lanes) for _ in range(16)]
    began = time.perf_counter()
    for i in range(steps):
        env.step(batches[i % 16])
    return steps * lanes / (time.perf_counter() - began)


def ppo_steps_per_s(world: World, steps: int) -> tuple[float, float]:
    """PPO as the project trains it: (frames a second, share of the time in the environment)."""
    from stable_baselines3 import PPO
    from torch import nn

    from agents.sb3_adapter import OffloadVecEnv
    from agents.train_config import TrainConfig

    config = TrainConfig()
    env = OffloadVecEnv(OffloadVectorEnv(config.n_envs, world=world))
    inside = 0.0
    step_wait = env.step_wait

    def timed() -> object:
        nonlocal inside
        began = time.perf_counter()
        result = step_wait()
        inside += time.perf_counter() - began
        return result

    env.step_wait = timed  # type: ignore[method-assign,assignment]
    width = [config.hidden, config.hidden]
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=config.n_steps,
        batch_size=config.batch_size,
        n_epochs=config.epochs,
        learning_rate=config.learning_rate,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        policy_kwargs={"net_arch": {"pi": width, "vf": width}, "activation_fn": nn.Tanh},
        device="cpu",
        seed=0,
    )
    rollout = config.n_envs * config.n_steps
    model.learn(rollout)  # warm up
    inside = 0.0
    steps = max(steps, 2 * rollout) // rollout * rollout
    began = time.perf_counter()
    model.learn(steps)
    wall = time.perf_counter() - began
    return steps / wall, inside / wall


if __name__ == "__main__":
    main()
