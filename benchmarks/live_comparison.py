"""Does the live testbed rank the policies as the replay does?

    python benchmarks/live_comparison.py [--scenario urban-5g] [--frames 2000] [--out DIR]

Drives the shipped agents, frame-level and staged, the best static pair (chosen on training
drives) and full local processing through real processes (server, link, device) over one held-out
trace, in turns of a hundred frames: every policy meets the same frames over the same stretch of
trace within minutes of the others, so that a machine that changes its speed favours none. Each
turn is replayed in the simulator as well. Prints ``{"frames", "policies": {name: {"live":
{"delay_ms", "energy_mj", "accuracy", "cost"}, "replay": {...}}}, "same_ranking", ...}``.
Computing on the device is modelled (it keeps the pace of the scenario's; ``pace`` says whether
this machine was fast enough), all other times, bytes and answers are measured, energy is modelled
by published powers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from importlib import resources
from pathlib import Path

import numpy as np
from tqdm import tqdm

from agents.baselines.rules import full_local
from agents.baselines.tuning import best_static
from agents.live_run import FrameSource, frame_table, replay, run_live, warm_runtime
from agents.train_config import MARGIN
from offload_env.episode import episode_keys
from offload_env.world import World, build_world
from testbed.device.processor import PaceKept
from testbed.policy.network_policy import load_policy
from testbed.policy.policies import Policy

FIGURES = ("delay_ms", "energy_mj", "accuracy", "cost")
TURN = 100


def main() -> None:
    """Drive in turns, replay every turn, compare the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="urban-5g", help="name or TOML file")
    parser.add_argument("--policy", type=Path, help="policy file; the shipped ones if left out")
    parser.add_argument("--frames", type=int, default=2000, help="frames of each policy")
    parser.add_argument("--seed", type=int, default=0, help="of frames and trace")
    parser.add_argument("--out", type=Path, help="folder for the records; else temporary")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        out = options.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        out.mkdir(parents=True, exist_ok=True)
        print(
            json.dumps(compare(options.scenario, options.policy, options.frames, options.seed, out))
        )


def contenders(world: World, path: Path | None) -> dict[str, tuple[Policy, tuple[str, str]]]:
    """Each policy and the device's option for it."""
    assets, name = Path(str(resources.files("agents"))) / "assets", world.scenario.name
    files = {"agent": assets / f"{name}.policy", "staged-agent": assets / f"{name}.staged.policy"}
    if path is not None:
        files = {"agent": path}
    agents = {
        key: (load_policy(file, world.table.bundle_hash), ("--policy", str(file)))
        for key, file in files.items()
    }
    train = build_world(world.scenario, "train")
    keys = episode_keys(0, 64)
    floor = train.accuracy_floor + MARGIN
    static = best_static(train, keys, floor)
    local = full_local(world.topology)
    return {
        **agents,
        f"best-static {static.action.name}": (static, ("--action", static.action.name)),
        "full-local": (local, ("--action", local.action.name)),
    }


def compare(
    scenario: str, path: Path | None, frames: int, seed: int, out: Path
) -> dict[str, object]:
    """All turns; the figures of each policy, live and replayed."""
    world = build_world(scenario, "test")
    policies = contenders(world, path)
    name = "gtsrb:policy-test" if os.environ.get("SLIPROAD_DATA") else "render"
    trace = world.traces[seed % len(world.traces)]
    runtime = warm_runtime()
    turns = max(1, frames // TURN)
    per_turn: dict[str, dict[str, list[dict[str, float]]]] = {
        policy: {"live": [], "replay": []} for policy in policies
    }
    rng, kept = np.random.default_rng(seed), PaceKept(0, 0)
    for turn in tqdm(range(turns), desc="turns", file=sys.stderr):
        source = FrameSource(name, seed + 1000 + turn)
        table = frame_table(runtime, source, TURN, lambda done: None)
        offset_s = float(rng.uniform(0, trace.duration_s))
        for key in rng.permutation(list(policies)):
            policy, decide = policies[str(key)]
            records = out / f"turn{turn}-{str(key).split()[0]}.parquet"
            run = run_live(world, trace, source, decide, TURN, records, offset_s)
            kept += run.kept
            per_turn[str(key)]["live"].append(run.figures(world))
            per_turn[str(key)]["replay"].append(
                replay(world, table, trace, policy, run.offset_ms, source.seed)
            )
    means = {
        policy: {
            kind: {f: float(np.mean([turn[f] for turn in rows])) for f in FIGURES}
            for kind, rows in kinds.items()
        }
        for policy, kinds in per_turn.items()
    }
    ranking = {
        kind: sorted(means, key=lambda policy: means[policy][kind]["cost"])
        for kind in ("live", "replay")
    }
    return {
        "frames": turns * TURN,
        "scenario": world.scenario.name,
        "source": name,
        "trace": trace.name,
        "pace": kept.to_json(),
        "policies": means,
        "ranking": ranking,
        "same_ranking": ranking["live"] == ranking["replay"],
    }


if __name__ == "__main__":
    main()
