"""Which of several policies of one scenario to ship: all on the same training drives.

    python benchmarks/compare_policies.py runs/a/agent.policy runs/b/agent.policy

Runs of different seeds were validated on different drives, and each kept the model that did best on
its own. Here all policy files of a scenario drive the same drives, over training frames and
traces, that no run has used. Prints ``{"scenario", "floor", "policies": [{"file", "cost",
"accuracy", "keeps_floor", "cost_over_first": {"mean", "low", "high"}}], "ship"}``: differences
are paired by drive with 95 % bootstrap intervals, ``ship`` is the cheapest that keeps the floor,
null if none does. Test frames are not touched.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agents.evaluation import interval, resamples
from agents.rollout import simulate, summary
from offload_env.episode import episode_keys
from offload_env.world import build_world
from testbed.policy.network_policy import policy_from_bundle
from testbed.policy.policy_file import PolicyBundle

KEYS_SEED = 555_555
"""Far from the seeds of validation (1,000,003 and up) and of tuning and evaluation (0 and up)."""


def main() -> None:
    """Drive every policy and print the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policies", nargs="+", type=Path, help="policy files of one scenario")
    parser.add_argument("--drives", type=int, default=512, help="training drives")
    parser.add_argument("--seed", type=int, default=0, help="of the drives and the bootstrap")
    options = parser.parse_args()
    bundles = [PolicyBundle.load(path) for path in options.policies]
    scenarios = {str(bundle.manifest["scenario"]) for bundle in bundles}
    if len(scenarios) != 1:
        parser.error(f"policies of {', '.join(sorted(scenarios))}; expected those of one scenario")
    world = build_world(scenarios.pop(), "train")
    keys = episode_keys(KEYS_SEED + options.seed, options.drives)
    weights = resamples(options.drives, options.seed)
    results: list[dict[str, Any]] = []
    first = None
    for path, bundle in zip(options.policies, bundles, strict=True):
        rollout = simulate(world, policy_from_bundle(bundle), keys)
        per_drive = rollout.cost.mean(1)
        first = per_drive if first is None else first
        figures = summary(rollout)
        results.append(
            {
                "file": str(path),
                "cost": figures["cost"],
                "accuracy": figures["accuracy"],
                "keeps_floor": bool(figures["accuracy"] >= world.accuracy_floor),
                "cost_over_first": asdict(interval(per_drive - first, weights)),
            }
        )
    kept = [r for r in results if r["keeps_floor"]]
    best = min(kept, key=lambda r: r["cost"], default=None)
    print(
        json.dumps(
            {
                "scenario": world.scenario.name,
                "floor": world.accuracy_floor,
                "policies": results,
                "ship": best["file"] if best else None,
                "drives": options.drives,
                "seed": options.seed,
            }
        )
    )


if __name__ == "__main__":
    main()
