"""What would it be worth to know, at every decision, whether the link is down?

    python benchmarks/outage_knowledge.py [--scenario slow-device] [--drives 128] [--seed 0]

No policy can know it: a device learns that its link is down by sending into it. This script tells
two policies all the same, the best static pair and the shipped frame-level agent: while the link
is down they answer locally with the exit that is cheapest on training drives. Prints ``{"scenario",
"bound_cost", "policies": {name: {"cost", "accuracy", "gap_closed", "failed", "failed_again"}},
"down"}``: ``failed`` is the share of frames that paid the time-out, ``failed_again`` of those
whose previous frame had paid it too, ``down`` of frames decided while the link was down. The
difference between a policy and its informed twin is the part of the gap that needs this knowledge;
what the twin leaves open needs the future. Replayed on the scenario's test drives.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.baselines.tuning import best_static
from agents.contenders import shipped_policy
from agents.evaluation import floor_on, gap_closed
from agents.rollout import uplink_now
from agents.train_config import MARGIN
from cnn.topology import SHIPPED, Action
from offload_env.batch_simulator import BatchSimulator
from offload_env.bound.proof import lower_bound
from offload_env.episode import episode_keys
from offload_env.outcome import FALLBACK
from offload_env.world import World, build_world
from testbed.policy.policies import Policy
from testbed.traces.generator_fit import OUTAGE_MBPS

Keys = NDArray[np.uint64]


def main() -> None:
    """Drive both policies with and without the knowledge and print the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="slow-device", help="name or TOML file")
    parser.add_argument("--drives", type=int, default=128, help="test drives")
    parser.add_argument("--seed", type=int, default=0, help="of the drives")
    options = parser.parse_args()
    train, test = build_world(options.scenario, "train"), build_world(options.scenario, "test")
    agent = shipped_policy(test)
    static = best_static(train, episode_keys(options.seed, 128), train.accuracy_floor + MARGIN)
    policies: dict[str, Policy] = {"best-static": static}
    if agent is not None:
        policies["agent"] = agent
    keys = episode_keys(options.seed + 7, options.drives)
    figures: dict[str, dict[str, Any]] = {}
    for name, policy in policies.items():
        figures[name] = drive(test, policy, keys, None)
        local = cheapest_local(train, policy, options.seed)
        figures[f"informed {name}"] = {**drive(test, policy, keys, local), "exit": local.exit}
    floor = floor_on(test, np.concatenate([test.rows(int(k), frames(test)) for k in keys]))
    bound = lower_bound(test, keys, floor=floor).cost
    best = figures["best-static"]["cost"]
    down = figures["best-static"]["down"]
    for values in figures.values():
        del values["down"]
        values["gap_closed"] = gap_closed(best, values["cost"], bound)
    print(
        json.dumps(
            {
                "scenario": options.scenario,
                "floor": floor,
                "bound_cost": bound,
                "down": down,
                "policies": figures,
                "drives": options.drives,
                "seed": options.seed,
            }
        )
    )


def frames(world: World) -> int:
    """Frames of a drive."""
    return world.scenario.timing.n_frames


def cheapest_local(world: World, policy: Policy, seed: int) -> Action:
    """The local exit with which an informed policy is cheapest on training drives."""
    keys = episode_keys(seed + 3, 64)
    candidates = [SHIPPED.action(e, e) for e in range(1, SHIPPED.n_exits + 1)]
    return min(candidates, key=lambda a: drive(world, policy, keys, a)["cost"])


def drive(world: World, policy: Policy, keys: Keys, local: Action | None) -> dict[str, float]:
    """Figures of a policy that takes `local` while the link is down (None: its own choice)."""
    simulator = BatchSimulator(world, len(keys))
    simulator.reset(keys)
    policy.reset()
    down: list[NDArray[Any]] = []
    outcomes = []
    for _ in range(frames(world)):
        down.append(uplink_now(simulator) < OUTAGE_MBPS)
        actions = policy.decide_batch(simulator.observe())
        if local is not None:
            actions = np.where(down[-1], local.index, actions)
        outcomes.append(simulator.settle(actions))
    failed = np.stack([o.status == FALLBACK for o in outcomes], axis=1)
    return {
        "cost": float(np.mean([o.cost for o in outcomes])),
        "accuracy": float(np.mean([o.correct for o in outcomes])),
        "failed": float(failed.mean()),
        "failed_again": float((failed[:, 1:] & failed[:, :-1]).mean()),
        "down": float(np.mean(down)),
    }


if __name__ == "__main__":
    main()
