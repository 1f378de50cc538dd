"""Train a small agent for half a minute and compare it with three fixed choices.

    python examples/03_train_tiny_agent.py [--steps 200000]

So short a training shows the way, not what an agent can reach: `sliproad agent train` runs
ten times as long. Needs the extra [train].
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from agents import TrainConfig, simulate, summary, train
from offload_env import build_world, episode_keys
from testbed import Policy, StaticPolicy, policy_from_bundle

SCENARIO = "urban-5g"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000, help="frames to train on")
    steps = parser.parse_args().steps

    config = TrainConfig(scenario=SCENARIO, steps=steps, validate_every=steps // 2, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        result = train(config, Path(folder) / "run")
    print(f"trained on {steps} frames in {result.seconds:.0f} s\n")

    # The exported policy, as a device reads it: numpy alone, no torch.
    agent = policy_from_bundle(result.bundle)

    # Other tracks and other drives than those it was trained on; the same for everybody.
    world = build_world(SCENARIO, "test")
    keys = episode_keys(seed=2, episodes=32)
    network = world.topology
    rivals: list[Policy] = [
        StaticPolicy(network.action(5, 5), "full local"),
        StaticPolicy(network.action(5, 0), "full offload"),
        StaticPolicy(network.action(3, 3), "exit 3, local"),
    ]
    print(f"{'policy':>14} {'cost':>6} {'delay ms':>9} {'energy mJ':>10} {'accuracy':>9}")
    for policy in (agent, *rivals):
        s = summary(simulate(world, policy, keys))
        print(
            f"{policy.name:>14} {s['cost']:>6.3f} {s['delay_ms']:>9.1f}"
            f" {s['energy_mj']:>10.1f} {s['accuracy']:>9.4f}"
        )
    print(f"accuracy must be at least {world.accuracy_floor:.4f}")


if __name__ == "__main__":
    main()
