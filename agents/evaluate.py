"""Policies compared on drives that training never saw, paired frame by frame."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agents.rollout import PERCENTILES, Rollout, episode_keys, simulate, summary
from agents.statistics import Interval, gap_closed, interval, paired_differences, resamples
from agents.table_file import write_table
from agents.tuning import tuned_baselines
from cnn.action import ACTIONS
from cnn.files import write_text
from offload_env.schedule import Schedule, best_schedule
from offload_env.world import MAIN, World
from testbed.decide.policy import StaticPolicy
from testbed.decide.staged_policy import AnyPolicy

Floats = NDArray[np.float64]

AGENT = "agent"
STAGED = "staged-agent"
BEST_STATIC = "best-static"
CLAIRVOYANT = "clairvoyant"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results of one scenario on its test drives.

    Attributes:
        scenario: name.
        floor: accuracy that is owed: the main exit's on the very same frames less the
            scenario's margin, or the scenario's explicit floor.
        policies: figures by policy (see `agents.rollout.summary`), ``clairvoyant`` among
            them.
        intervals: 95 % bootstrap intervals of the mean cost, by policy.
        differences: other policies' cost less the agent's, paired by drive; empty without
            an agent.
        differences_staged: the same against the staged agent.
        bound_cost: cost below which no policy that keeps the floor can go.
        gap_closed: share of the way from the best static pair to the bound; None without
            an agent.
        gap_closed_staged: the same of the staged agent.
        rollouts: by policy.
        statics: figures of all twenty static pairs, by action name.
        best_static: name of the static pair chosen on training drives.
        drives: number of test drives.
        frames: frames of a drive.
        seed: of the drives.
    """

    scenario: str
    floor: float
    policies: dict[str, dict[str, float]]
    intervals: dict[str, Interval]
    differences: dict[str, Interval]
    differences_staged: dict[str, Interval]
    bound_cost: float
    gap_closed: float | None
    gap_closed_staged: float | None
    rollouts: dict[str, Rollout]
    statics: dict[str, dict[str, float]]
    best_static: str
    drives: int
    frames: int
    seed: int

    @property
    def better(self) -> str | None:
        """The learnt policy with the lower cost of those that keep the floor (of all, if none
        does); None without one."""
        learnt = [name for name in (AGENT, STAGED) if name in self.policies]
        kept = [name for name in learnt if self.policies[name]["accuracy"] >= self.floor]
        return min(kept or learnt, key=lambda name: self.policies[name]["cost"], default=None)

    def as_json(self) -> dict[str, Any]:
        """The printed result: figures, intervals, gains against full local processing."""
        local = self.policies["full-local"]
        agent = self.policies[self.better] if self.better else None
        return {
            "scenario": self.scenario,
            "policies": self.policies,
            "bound_cost": self.bound_cost,
            "gap_closed": self.gap_closed,
            "gap_closed_staged": self.gap_closed_staged,
            "delay_gain": local["delay_ms"] / agent["delay_ms"] if agent else None,
            "energy_gain": local["energy_mj"] / agent["energy_mj"] if agent else None,
            "floor": self.floor,
            "best_static": self.best_static,
            "cost_intervals": {k: asdict(v) for k, v in self.intervals.items()},
            "cost_over_agent": {k: asdict(v) for k, v in self.differences.items()},
            "cost_over_staged_agent": {k: asdict(v) for k, v in self.differences_staged.items()},
            "drives": self.drives,
            "frames": self.frames,
            "seed": self.seed,
        }

    def save(self, folder: Path) -> None:
        """Write ``evaluation.json`` and ``frames.parquet``, each whole or not at all."""
        table = pd.concat([r.frame() for r in self.rollouts.values()], ignore_index=True)
        table["policy"] = table["policy"].astype("category")
        write_table(folder / "frames.parquet", table)
        write_text(folder / "evaluation.json", json.dumps(self.as_json(), indent=1) + "\n")


def evaluate(
    train_world: World,
    test_world: World,
    agents: Mapping[str, AnyPolicy],
    *,
    drives: int = 256,
    seed: int = 0,
    tuning_drives: int = 64,
    progress: Callable[[str], object] = lambda name: None,
) -> Evaluation:
    """Tune the baselines on training drives, then drive everything on the same test drives.

    Args:
        train_world: frames and traces that baselines are tuned on.
        test_world: frames and traces that nothing was tuned on.
        agents: learnt policies by name (``agent``, ``staged-agent``).
        drives: test drives, each `scenario.timing.n_frames` frames.
        seed: of drives and bootstrap.
        tuning_drives: training drives a baseline's candidates are measured on.
        progress: called with the name of each policy when it is done.
    """
    baselines = tuned_baselines(train_world, seed, tuning_drives, progress=progress)
    keys = episode_keys(seed + 7, drives)
    rollouts: dict[str, Rollout] = {}
    for name, policy in {**agents, **baselines}.items():
        rollouts[name] = simulate(test_world, policy, keys)
        progress(name)
    statics = {a.name: summary(simulate(test_world, StaticPolicy(a), keys)) for a in ACTIONS}
    policies = {name: summary(r) for name, r in rollouts.items()}
    progress("clairvoyant (searching)")
    floor = floor_on(test_world, rollouts["full-local"].row)
    bound, schedule = best_schedule(test_world, keys, floor=floor)
    policies[CLAIRVOYANT] = _clairvoyant(schedule)
    weights = resamples(drives, seed)
    per_drive = {name: r.cost.mean(1) for name, r in rollouts.items()}

    def closed(name: str) -> float | None:
        if name not in policies:
            return None
        return gap_closed(policies[BEST_STATIC]["cost"], policies[name]["cost"], bound.cost)

    def differences(name: str) -> dict[str, Interval]:
        return paired_differences(per_drive, name, weights) if name in rollouts else {}

    return Evaluation(
        scenario=test_world.scenario.name,
        floor=floor,
        policies=policies,
        intervals={name: interval(cost, weights) for name, cost in per_drive.items()},
        differences=differences(AGENT),
        differences_staged=differences(STAGED),
        bound_cost=bound.cost,
        gap_closed=closed(AGENT),
        gap_closed_staged=closed(STAGED),
        rollouts=rollouts,
        statics=statics,
        best_static=baselines[BEST_STATIC].name,
        drives=drives,
        frames=test_world.scenario.timing.n_frames,
        seed=seed,
    )


def floor_on(world: World, rows: NDArray[np.int64]) -> float:
    """Accuracy owed on the frames `rows`: paired, so that no draw of frames is favoured."""
    constraint = world.scenario.constraint
    if constraint.accuracy_floor > 0:
        return constraint.accuracy_floor
    return max(0.0, float(world.correct[rows, MAIN].mean()) - constraint.accuracy_margin)


def _clairvoyant(schedule: Schedule) -> dict[str, float]:
    """Figures of the best feasible schedule found, as `agents.rollout.summary`."""
    out = {
        "cost": schedule.mean_cost,
        "delay_ms": float(schedule.delay_ms.mean()),
        "energy_mj": float(schedule.energy_mj.mean()),
        "accuracy": schedule.mean_accuracy,
        "deadline_miss": float(schedule.miss.mean()),
    }
    for q, value in zip(PERCENTILES, np.percentile(schedule.delay_ms, PERCENTILES), strict=True):
        out[f"delay_p{q}_ms"] = float(value)
    return out
