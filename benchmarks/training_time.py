"""Seconds until a fresh agent is within 2 % of the shipped policy's cost.

    python benchmarks/training_time.py [--scenario urban-5g] [--reference FILE] [--seed 1]

The reference is the shipped policy of the scenario (or --reference). Both policies are
judged on the same drives, which are neither the training's nor its validation's: training
frames and traces, another seed. Time runs from the first environment step, evaluation
excluded, to the end of the first update after which the greedy policy costs at most 1.02
times the reference and keeps its accuracy (or the floor). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from agents import training
from agents.contenders import shipped_policy
from agents.rollout import simulate, summary
from agents.supervisor import greedy_policy
from agents.train_config import TrainConfig
from offload_env.episode import episode_keys
from offload_env.world import World, build_world
from testbed.policy.network_policy import load_policy
from testbed.policy.policies import Policy

WITHIN = 1.02
JUDGE_SEED = 77_000_001
JUDGE_DRIVES = 128


class ReachedError(Exception):
    """The fresh agent is as good as asked for."""


class Judge:
    """Compares the policy in training with the reference, and keeps the clock."""

    def __init__(self, world: World, reference: Policy) -> None:
        self.world = world
        self.keys = episode_keys(JUDGE_SEED, JUDGE_DRIVES)
        self.target = summary(simulate(world, reference, self.keys))
        self.spent_s, self.resumed_s = 0.0, time.monotonic()
        self.steps, self.latest = 0, dict[str, float]()

    def look(self, model: Any, config: TrainConfig) -> None:
        self.spent_s += time.monotonic() - self.resumed_s
        self.steps = model.num_timesteps
        policy = greedy_policy(model, config, self.world.topology)
        self.latest = summary(simulate(self.world, policy, self.keys))
        owed = min(self.world.accuracy_floor, self.target["accuracy"])
        if self.latest["cost"] <= WITHIN * self.target["cost"] and self.latest["accuracy"] >= owed:
            raise ReachedError
        self.resumed_s = time.monotonic()


class Look(BaseCallback):
    """Looks after every `every` steps, when an update is done."""

    def __init__(self, judge: Judge, config: TrainConfig, every: int) -> None:
        super().__init__()
        self.judge, self.config, self.every, self.next = judge, config, every, every

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.next:
            self.next = self.num_timesteps + self.every
            self.judge.look(self.model, self.config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="urban-5g")
    parser.add_argument("--reference", type=Path, help="policy file instead of the shipped one")
    parser.add_argument("--steps", type=int, default=10_000_000, help="give up after so many")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    world = build_world(args.scenario, "train")
    reference = (
        load_policy(args.reference, world.table.bundle_hash)
        if args.reference
        else shipped_policy(world)
    )
    if reference is None:
        parser.error(f"no policy is shipped for {args.scenario}: give one with --reference")
    judge = Judge(world, reference)
    config = TrainConfig(
        scenario=args.scenario, steps=args.steps, seed=args.seed, validate_every=args.steps
    )
    reached = False
    with tempfile.TemporaryDirectory() as folder:
        try:
            training.train(
                config,
                Path(folder),
                world=world,
                extra=lambda own: CallbackList([own, Look(judge, config, 131_072)]),
            )
        except ReachedError:
            reached = True
    print(
        json.dumps(
            {
                "seconds": round(judge.spent_s, 1) if reached else None,
                "steps": judge.steps,
                "cost": judge.latest.get("cost"),
                "accuracy": judge.latest.get("accuracy"),
                "reference_cost": judge.target["cost"],
                "reference_accuracy": judge.target["accuracy"],
                "scenario": args.scenario,
                "seed": args.seed,
            }
        )
    )


if __name__ == "__main__":
    main()
