"""Whether a scenario is worth learning: what the clairvoyant does, and what simple rules cost.

    python benchmarks/scenario_acceptance.py [--drives 64] [--seed 0] [scenario ...]

Prints ``{"scenarios": {name: {"local", "remote", "splits", "exits", "search_ratio", "static_ratio",
"planner_ratio", "accepted", "why_not"}}}`` for the scenarios of the second generation (or those
named). `local` and `remote` are shares of the frames in the best schedule that the clairvoyant
search found, `splits` and `exits` the shares of each S and E in it (S = E is a local answer). The
ratios are costs over the lower bound: of that schedule, of the best static pair (the cheapest that
keeps the floor on the test drives themselves, so the best that it can do) and of the tuned
`planner`. A scenario is accepted if local and remote have 15 % each, three splits and three exits
more than 5 % each, and the ratios are at least 1.3 (static) and 1.05 (planner). Replayed: answers
measured, times from the fitted cost models, link generated, powers published.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

from agents.baselines.rules import static_policies
from agents.baselines.tuning import choose, measure, measure_each, tuned_planner
from agents.train_config import MARGIN
from offload_env.bound.search import best_schedule
from offload_env.episode import episode_keys
from offload_env.scenario import second_generation
from offload_env.world import build_world

LEAST_SIDE, LEAST_SHARE, LEAST_STATIC, LEAST_PLANNER = 0.15, 0.05, 1.3, 1.05


def figures(name: str, drives: int, seed: int) -> dict[str, Any]:
    """What is printed of one scenario."""
    train, test = build_world(name, "train"), build_world(name, "test")
    keys, at = episode_keys(seed, drives), test.topology
    bound, schedule = best_schedule(test, keys)
    n = schedule.actions.size
    taken = Counter(schedule.actions.ravel().tolist())
    splits, exits = Counter[int](), Counter[int]()
    for index, count in taken.items():
        splits[at.actions[index].split] += count
        exits[at.actions[index].exit] += count
    local = sum(count for index, count in taken.items() if at.is_local[index]) / n
    static = choose(measure_each(test, static_policies(at), keys), test.accuracy_floor)
    tuned = tuned_planner(train, episode_keys(seed, 64), train.accuracy_floor + MARGIN)
    planner = measure(test, tuned, keys)
    out = {
        "local": local,
        "remote": 1.0 - local,
        "splits": {str(k): v / n for k, v in sorted(splits.items())},
        "exits": {str(k): v / n for k, v in sorted(exits.items())},
        "search_ratio": schedule.mean_cost / bound.cost,
        "static_ratio": static.cost / bound.cost,
        "planner_ratio": planner.cost / bound.cost,
    }
    why_not = [
        text
        for missed, text in (
            (min(local, 1.0 - local) < LEAST_SIDE, "local or remote below 15 %"),
            (_above(out["splits"]) < 3, "fewer than three splits above 5 %"),
            (_above(out["exits"]) < 3, "fewer than three exits above 5 %"),
            (out["static_ratio"] < LEAST_STATIC, "best static pair below 1.3 of the bound"),
            (out["planner_ratio"] < LEAST_PLANNER, "planner below 1.05 of the bound"),
        )
        if missed
    ]
    return {**out, "accepted": not why_not, "why_not": why_not}


def _above(shares: dict[str, float]) -> int:
    return sum(share > LEAST_SHARE for share in shares.values())


def main() -> None:
    """Scenario by scenario."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scenarios", nargs="*", help="all of the second generation if left out")
    parser.add_argument("--drives", type=int, default=64, help="test drives of each")
    parser.add_argument("--seed", type=int, default=0, help="of the drives")
    given = parser.parse_args()
    names = given.scenarios or second_generation()
    print(json.dumps({"scenarios": {n: figures(n, given.drives, given.seed) for n in names}}))


if __name__ == "__main__":
    main()
