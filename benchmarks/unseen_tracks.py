"""Does the accuracy that a policy keeps on its training tracks hold on tracks it never saw?

    python benchmarks/unseen_tracks.py [--scenario fast-device] [--steps 2000000] [--margin 0.001]

Cuts the training tracks (never the test tracks) into folds by physical sign, all drives past a
sign in one fold; trains an agent on all folds but one and drives it on the one left out. Prints
``{"folds": [{"seen", "unseen"}], "worst_unseen"}``: accuracy above the floor, in points, the
floor being the main exit's accuracy on the very frames driven less the scenario's margin. This is
what `agents.train_config.MARGIN` was chosen by.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents.evaluation import floor_on
from agents.rollout import simulate
from agents.train_config import MARGIN, TrainConfig
from agents.training import train
from cnn.calibration_tracks import signs_of, some_tracks
from cnn.frame_table import embedded_table
from offload_env.episode import episode_keys
from offload_env.scenario import load_scenario
from offload_env.world import World, build_world
from testbed.policy.network_policy import policy_from_bundle
from testbed.policy.policies import Policy


def main() -> None:
    """Train on all folds but one, judge on that one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="fast-device", help="one in which exits decide")
    parser.add_argument("--steps", type=int, default=2_000_000, help="of each training run")
    parser.add_argument("--margin", type=float, default=MARGIN, help="asked for above the floor")
    parser.add_argument("--folds", type=int, default=2, help="parts the tracks are cut into")
    parser.add_argument("--drives", type=int, default=256, help="drives a policy is judged on")
    parser.add_argument("--seed", type=int, default=0, help="of folds, training and drives")
    options = parser.parse_args()
    table = embedded_table(load_scenario(options.scenario).frames.train)
    sign = signs_of(table)
    fold = np.random.default_rng(options.seed).permutation(sign.max() + 1) % options.folds
    keys = episode_keys(options.seed + 99, options.drives)
    results = []
    for k in range(options.folds):
        left_out = fold[sign] == k
        seen = build_world(options.scenario, table=some_tracks(table, ~left_out))
        unseen = build_world(options.scenario, table=some_tracks(table, left_out))
        config = TrainConfig(
            options.scenario, steps=options.steps, margin=options.margin, seed=options.seed
        )
        with tempfile.TemporaryDirectory() as folder:
            policy = policy_from_bundle(train(config, Path(folder), world=seen).bundle)
        worlds = {"seen": seen, "unseen": unseen}
        results.append({n: round(above_floor(w, policy, keys), 3) for n, w in worlds.items()})
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    worst = min(r["unseen"] for r in results)
    print(json.dumps({"folds": results, "worst_unseen": worst, "margin": options.margin}))


def above_floor(world: World, policy: Policy, keys: NDArray[np.uint64]) -> float:
    """Accuracy above the floor on these drives, points."""
    rollout = simulate(world, policy, keys)
    return 100.0 * (float(rollout.correct.mean()) - floor_on(world, rollout.row))


if __name__ == "__main__":
    main()
