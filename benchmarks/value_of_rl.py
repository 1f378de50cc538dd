"""What learning adds: agents of several seeds against every method that does not look ahead by
learning.

    python benchmarks/value_of_rl.py [SCENARIO ...] [--spec benchmarks/value_of_rl.toml ...]
        [--study runs/value-of-rl] [--drives 128] [--seed 0] [--json]

The agents are trainings of the study files `--spec`, all ``value_of_rl*.toml`` here if left out.
The first setting of a grid looks at one frame alone (discount 0), the last one ahead. Trainings
that the study's folder, ``STUDY/NAME OF THE FILE``, does not hold yet are made first, by ``sliproad
agent tune`` (extra ``ray``; hours, and only for files with a scenario that is asked for). Of each
setting the run that is cheapest on training drives among those that keep the floor there is judged:
the *agent*, and one of the *others*. The others besides are all tuned baselines: static pairs,
rules, the bandit, `planner` (one frame ahead) and `mpc` (model-predictive control of the frames
that follow).

Prints ``{"scenarios": {name: {"agent_cost", "best_other", "best_other_cost", "gain", "gain_ci_low",
"by_track", "ratio_to_bound", "accuracy", "floor", "keeps_floor", "seeds", "others"}}, "wins"}`` on
test drives. `best_other` is the cheapest of the others that keep the floor there (the most accurate
if none does), `gain` the share of its cost that the agent saves, `gain_ci_low` the lower end of the
95 % interval over drives, paired. `by_track` has the same end where whole tracks are drawn instead,
and the share of these draws in which the agent's accuracy is below the floor. `seeds` are the costs
of all runs of the agent's setting on the test drives, with their interquartile mean. `wins` counts
scenarios in which the agent keeps the floor and saves 5 % at least with an interval above 0.
Replayed: answers measured, times from the fitted cost models, link generated, powers published.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from agents.baselines.tuning import tuned_baselines
from agents.contenders import contender
from agents.evaluation import interval, resamples
from agents.floor_kept import floor_kept, keeps, rank, track_places, tracks_driven
from agents.rollout import Rollout, simulate
from agents.run_files import POLICY, STUDY_SPEC
from agents.seed_statistics import interquartile_mean
from agents.study import Trial, read_study
from agents.study_report import row_of
from offload_env.bound.proof import lower_bound
from offload_env.episode import episode_keys
from offload_env.world import World, build_world

SPECS: Final = sorted(Path(__file__).parent.glob("value_of_rl*.toml"))
LEAST_GAIN: Final = 0.05


def trained(spec: Path, out: Path, seed: int) -> list[Trial]:
    """The trials of a study in `out`; those that are missing are trained."""
    trials = read_study(spec).trials(seed)
    if not all((out / "trials" / trial.name / POLICY).is_file() for trial in trials):
        line = f"agent tune {shlex.quote(str(spec))} --local --seed {seed}"
        line += f" --out {shlex.quote(str(out))}"
        line += " --resume" if (out / STUDY_SPEC).exists() else ""
        print(f"sliproad {line}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "agents", *shlex.split(line)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return trials


def chosen(trials: Sequence[Trial], out: Path) -> Trial:
    """The run that is cheapest on training drives among those that keep the floor there."""

    def rank_of(trial: Trial) -> tuple[bool, float]:
        row = row_of(trial, out / "trials" / trial.name)
        return rank(row["cost"], row["accuracy"], row["floor"])

    return min(trials, key=rank_of)


def figures(name: str, trials: Sequence[Trial], out: Path, drives: int, seed: int) -> Any:
    """What is printed of one scenario."""
    world, keys = build_world(name, "test"), episode_keys(seed, drives)
    floor = world.accuracy_floor
    driven = {n: simulate(world, p, keys) for n, p in baselines(name, seed).items()}

    def drive(trial: Trial) -> Rollout:
        return simulate(world, contender(out / "trials" / trial.name, world).policy, keys)

    by_setting: dict[str, list[Trial]] = {}
    for trial in trials:
        by_setting.setdefault(trial.setting, []).append(trial)
    *myopic, ahead = by_setting
    for setting in myopic:
        driven[setting] = drive(chosen(by_setting[setting], out))
    runs = {trial.name: drive(trial) for trial in by_setting[ahead]}
    agent = runs[chosen(by_setting[ahead], out).name]
    other = best_of(driven, floor)
    weights, cost = resamples(drives, seed), agent.cost.mean(1)
    theirs = driven[other].cost.mean(1)
    saved = (weights @ (theirs - cost)) / (weights @ theirs)
    costs = np.array([[run.cost.mean()] for run in runs.values()])
    return {
        "agent_cost": float(cost.mean()),
        "best_other": other,
        "best_other_cost": float(theirs.mean()),
        "gain": 1.0 - float(cost.mean() / theirs.mean()),
        "gain_ci_low": float(np.percentile(saved, 2.5)),
        "by_track": by_track(world, agent, driven[other], seed),
        "ratio_to_bound": float(cost.mean() / lower_bound(world, keys, floor=floor).cost),
        "accuracy": float(agent.correct.mean()),
        "accuracy_ci": asdict(interval(agent.correct.mean(1, dtype=np.float64), weights)),
        "floor": floor,
        "keeps_floor": keeps(float(agent.correct.mean()), floor),
        "seeds": {"costs": costs.ravel().tolist(), "iqm": asdict(interquartile_mean(costs, seed))},
        "others": {
            n: {"cost": float(r.cost.mean()), "accuracy": float(r.correct.mean())}
            for n, r in driven.items()
        },
    }


def by_track(world: World, agent: Rollout, other: Rollout, seed: int) -> dict[str, float]:
    """Lower end of the gain, and share of draws below the floor, over resamples of whole tracks."""
    track = track_places(world, agent.row)
    weights = resamples(tracks_driven(world, agent.row), seed)
    cost, theirs = (weights @ np.bincount(track, r.cost.ravel()) for r in (agent, other))
    kept = floor_kept(world, agent.row, agent.correct, weights)
    return {
        "gain_ci_low": float(np.percentile(1.0 - cost / theirs, 2.5)),
        "below_floor": kept.tracks_below,
    }


def baselines(name: str, seed: int) -> Mapping[str, Any]:
    """The tuned baselines of a scenario."""

    def say(what: str) -> None:
        print(f"{name}: {what}", file=sys.stderr, flush=True)

    world: World = build_world(name, "train")
    return tuned_baselines(world, seed, progress=say)


def best_of(driven: Mapping[str, Rollout], floor: float) -> str:
    """The cheapest that keeps the floor, else the most accurate."""
    ranks = {
        n: rank(float(r.cost.mean()), float(r.correct.mean()), floor) for n, r in driven.items()
    }
    return min(ranks, key=lambda n: ranks[n])


def main() -> None:
    """Train what is missing, judge, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scenarios", nargs="*", help="all of the studies if left out")
    parser.add_argument("--spec", type=Path, nargs="+", default=SPECS, help="Study files.")
    parser.add_argument("--study", type=Path, default=Path("runs/value-of-rl"), help="Folder.")
    parser.add_argument("--drives", type=int, default=128, help="Test drives.")
    parser.add_argument("--seed", type=int, default=0, help="First seed, and seed of the drives.")
    parser.add_argument("--json", action="store_true", help="Print JSON alone.")
    given = parser.parse_args()
    of_spec = {spec: read_study(spec).scenarios for spec in given.spec}
    known = [name for names in of_spec.values() for name in names]
    if unknown := set(given.scenarios) - set(known):
        parser.error(f"scenario {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    found = {}
    for spec, everyone in of_spec.items():
        names = [name for name in everyone if name in given.scenarios or not given.scenarios]
        if not names:
            continue
        out = given.study / spec.stem
        trials = trained(spec, out, given.seed)
        for name in names:
            of = [trial for trial in trials if trial.scenario == name]
            found[name] = figures(name, of, out, given.drives, given.seed)
            if not given.json:
                print(row(name, found[name]), file=sys.stderr, flush=True)
    wins = sum(
        r["keeps_floor"] and r["gain"] >= LEAST_GAIN and r["gain_ci_low"] > 0
        for r in found.values()
    )
    print(json.dumps({"scenarios": found, "wins": wins}))


def row(name: str, r: Mapping[str, Any]) -> str:
    """One scenario as a row of the table of docs/results.md."""
    cells = (
        f"`{name}`",
        f"{r['agent_cost']:.4f}",
        f"{r['best_other_cost']:.4f} {r['best_other']}",
        f"{100 * r['gain']:.1f} % ({100 * r['gain_ci_low']:.1f})",
        f"{r['ratio_to_bound']:.3f}",
        f"{100 * r['accuracy']:.2f} ({100 * r['floor']:.2f})",
        f"{r['seeds']['iqm']['mean']:.4f}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
