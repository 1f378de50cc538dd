"""Policies compared on drives that training never saw, paired frame by frame.

Intervals are a bootstrap over whole drives. It is written here because all policies share one draw
of weights, so that their differences are paired; `scipy.stats.bootstrap` does not offer that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agents.baselines.rules import static_policies
from agents.baselines.tuning import tuned_baselines
from agents.energy_figures import EnergyFigures, energy_figures
from agents.floor_kept import FloorKept, floor_kept, keeps, required, tracks_driven
from agents.rollout import (
    Rollout,
    check_network,
    mean_figures,
    simulate,
    simulate_each,
    summary,
)
from agents.run_files import write_table
from cnn.common.files import write_text
from cnn.common.plug_ins import PlugIn
from offload_env.bound.search import best_schedule
from offload_env.episode import episode_keys
from offload_env.world import World
from testbed.policy.plugged_policy import PluggedPolicy
from testbed.policy.policies import Policy

Floats = NDArray[np.float64]

TUNING_DRIVES: Final = 64
"""Training drives on which baselines are tuned, at most; a quick look takes fewer."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the ends of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def resamples(drives: int, seed: int, n: int = 2000) -> NDArray[np.float64]:
    """Weights of `n` bootstrap resamples of whole drives, float64 (n, drives), rows sum to 1.

    Drives, not frames, are drawn: frames of one drive share its trace and its tracks.
    """
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(drives, np.full(drives, 1.0 / drives), size=n)
    weights: NDArray[np.float64] = counts / drives
    return weights


def interval(per_drive: Floats, weights: Floats) -> Interval:
    """Percentile bootstrap of the mean of one figure a drive, float64 (drives,)."""
    means = weights @ per_drive
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(float(per_drive.mean()), float(low), float(high))


def paired_differences(
    per_drive: Mapping[str, Floats], reference: str, weights: Floats
) -> dict[str, Interval]:
    """Every other policy's figure less the reference's, drive by drive.

    Args:
        per_drive: float64 (drives,) by policy, on the same drives.
        reference: policy to subtract.
        weights: from `resamples`.
    """
    base = per_drive[reference]
    return {
        name: interval(values - base, weights)
        for name, values in per_drive.items()
        if name != reference
    }


def gap_closed(best_static: float, policy: float, bound: float) -> float | None:
    """Share of the way from the best static pair's cost to the bound that a policy goes.

    None if there is no relevant gap to close.
    """
    gap = best_static - bound
    return None if gap < 1e-6 * abs(best_static) else (best_static - policy) / gap


@dataclass(frozen=True, slots=True)
class Origin:
    """The file of a learnt policy.

    Attributes:
        path: of the policy file.
        sha256: of that file's bytes, hexadecimal.
        shipped: whether it came with the package.
        scenario: name of the scenario it was trained for; empty if its manifest does not say.
    """

    path: Path
    sha256: str
    shipped: bool
    scenario: str

    def as_json(self) -> dict[str, Any]:
        """``path``, ``sha256``, ``shipped`` and ``trained_for``."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "shipped": self.shipped,
            "trained_for": self.scenario,
        }

    def __str__(self) -> str:
        kind = "shipped policy" if self.shipped else "policy"
        return f"{kind} {self.path}, sha256 {self.sha256[:12]}"


AGENT = "agent"
STAGED = "staged-agent"
BEST_STATIC = "best-static"
CLAIRVOYANT = "clairvoyant"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results of one scenario on its test drives.

    Attributes:
        scenario: name.
        floor: accuracy that is required: the main exit's on the very same frames less the
            scenario's margin, or the scenario's explicit floor.
        policies: figures by policy (see `agents.rollout.summary`), ``clairvoyant`` among
            them.
        intervals: 95 % bootstrap intervals of the mean cost, by policy.
        differences: other policies' cost less a learnt one's, paired by drive, by learnt policy.
        bound_cost: cost below which no policy that keeps the floor can go.
        gap_closed: share of the way from the best static pair to the bound, by learnt policy
            that keeps the floor; None if there is no gap.
        rollouts: by policy.
        statics: figures of all static pairs, by action name.
        best_static: name of the static pair chosen on training drives.
        drives: number of test drives.
        frames: frames of a drive.
        seed: of the drives.
        origins: files of the learnt policies, by name; without one for a policy that was
            given as an object.
        measure: ``accuracy``, or ``quality`` if the frames have qualities: then every figure
            named accuracy is a mean quality, and the floor is one of mean quality.
        plug_ins: by name, which plug-in a policy is of, and which of its candidates was chosen.
        floors: how each policy keeps the floor by drive, track and class.
        energy: means a frame in several ways, of policies that were driven.
    """

    scenario: str
    floor: float
    policies: dict[str, dict[str, float]]
    intervals: dict[str, Interval]
    differences: dict[str, dict[str, Interval]]
    bound_cost: float
    gap_closed: dict[str, float | None]
    rollouts: dict[str, Rollout]
    statics: dict[str, dict[str, float]]
    best_static: str
    drives: int
    frames: int
    seed: int
    origins: Mapping[str, Origin] = field(default_factory=dict)
    measure: str = "accuracy"
    plug_ins: Mapping[str, str] = field(default_factory=dict)
    floors: Mapping[str, FloorKept] = field(default_factory=dict)
    energy: Mapping[str, EnergyFigures] = field(default_factory=dict)

    def keeps_floor(self, name: str) -> bool:
        """Whether a policy's accuracy on these drives is at least the floor."""
        return keeps(self.policies[name]["accuracy"], self.floor)

    @property
    def better(self) -> str | None:
        """The learnt policy with the lower cost of those that keep the floor (of all, if none
        does); None without one."""
        learnt = [name for name in (AGENT, STAGED) if name in self.policies]
        kept = [name for name in learnt if self.keeps_floor(name)]
        return min(kept or learnt, key=lambda name: self.policies[name]["cost"], default=None)

    def as_json(self) -> dict[str, Any]:
        """The printed result: figures, intervals, gains against full local processing."""
        local = self.policies["full-local"]
        agent = self.policies[self.better] if self.better else None
        return {
            "scenario": self.scenario,
            "policies": {name: self._row(name) for name in self.policies},
            "bound_cost": self.bound_cost,
            "gap_closed": self.gap_closed.get(AGENT),
            "gap_closed_staged": self.gap_closed.get(STAGED),
            "gains_of": self.better,
            "keeps_floor": None if self.better is None else self.keeps_floor(self.better),
            "delay_gain": local["delay_ms"] / agent["delay_ms"] if agent else None,
            "energy_gain": local["energy_mj"] / agent["energy_mj"] if agent else None,
            "energy_gains": self.energy_gains(),
            "floor": self.floor,
            "measure": self.measure,
            "best_static": self.best_static,
            "cost_intervals": {k: asdict(v) for k, v in self.intervals.items()},
            "cost_over_agent": self._cost_over(AGENT),
            "cost_over_staged_agent": self._cost_over(STAGED),
            "drives": self.drives,
            "frames": self.frames,
            "seed": self.seed,
        }

    def _row(self, name: str) -> dict[str, Any]:
        """One policy in `as_json`: figures, whether they keep the floor, and its file."""
        row: dict[str, Any] = {**self.policies[name], "keeps_floor": self.keeps_floor(name)}
        if name in self.floors:
            row |= self.floors[name].as_json()
        if name in self.energy:
            row["energy"] = self.energy[name].as_json()
        if name in self.origins:
            row |= self.origins[name].as_json()
        if name in self.plug_ins:
            row["plug_in"] = self.plug_ins[name]
        return row

    def energy_gains(self) -> dict[str, float]:
        """Times less energy than full local processing, by what is counted."""
        if self.better is None or self.better not in self.energy:
            return {}
        local, agent = self.energy["full-local"], self.energy[self.better]
        counted = ("whole", "active", "above_idle")
        return {name: getattr(local, name) / getattr(agent, name) for name in counted}

    def _cost_over(self, name: str) -> dict[str, Any]:
        return {k: asdict(v) for k, v in self.differences.get(name, {}).items()}

    def save(self, folder: Path) -> None:
        """Write ``evaluation.json`` and ``frames.parquet``, each whole or not at all."""
        table = pd.concat([r.frame() for r in self.rollouts.values()], ignore_index=True)
        table["policy"] = table["policy"].astype("category")
        write_table(folder / "frames.parquet", table)
        write_text(folder / "evaluation.json", json.dumps(self.as_json(), indent=1) + "\n")


def evaluate(
    train_world: World,
    test_world: World,
    agents: Mapping[str, Policy],
    *,
    drives: int = 256,
    seed: int = 0,
    tuning_drives: int | None = None,
    origins: Mapping[str, Origin] | None = None,
    progress: Callable[[str], object] = lambda name: None,
    plug_ins: Sequence[PlugIn] = (),
) -> Evaluation:
    """Tune the baselines on training drives, then drive all policies on the same test drives.

    Args:
        train_world: frames and traces that baselines are tuned on.
        test_world: frames and traces that were not used for tuning.
        agents: learnt policies by name (``agent``, ``staged-agent``).
        drives: test drives, each `scenario.timing.n_frames` frames.
        seed: of drives and bootstrap.
        tuning_drives: training drives a baseline's candidates are measured on; None is as
            many as `drives`, at most `TUNING_DRIVES`.
        origins: where the learnt policies come from, by name; kept in the result.
        progress: called with the name of each policy when it is done.
        plug_ins: of policies to tune and drive beside the baselines.

    Raises:
        ConfigError: if the worlds and policies are not all of one network, or a plug-in fails.
    """
    at = test_world.topology
    at.require_same(train_world.topology, "training frames", "the test frames")
    for policy in agents.values():
        check_network(test_world, policy)
    if tuning_drives is None:
        tuning_drives = min(drives, TUNING_DRIVES)
    baselines = tuned_baselines(
        train_world, seed, tuning_drives, progress=progress, plug_ins=plug_ins
    )
    keys = episode_keys(seed + 7, drives)
    rollouts: dict[str, Rollout] = {}
    for name, policy in {**agents, **baselines}.items():
        rollouts[name] = simulate(test_world, policy, keys)
        progress(name)
    pairs = static_policies(at)
    driven = simulate_each(test_world, pairs, keys)
    statics = {p.action.name: summary(r) for p, r in zip(pairs, driven, strict=True)}
    policies = {name: summary(r) for name, r in rollouts.items()}
    progress("clairvoyant (searching)")
    floor = floor_on(test_world, rollouts["full-local"].row)
    bound, schedule = best_schedule(test_world, keys, floor=floor)
    policies[CLAIRVOYANT] = mean_figures(
        schedule.cost, schedule.delay_ms, schedule.energy_mj, schedule.accuracy, schedule.miss
    )
    rows = rollouts["full-local"].row  # the same for every policy
    answers: dict[str, NDArray[Any]] = {name: r.correct for name, r in rollouts.items()}
    answers[CLAIRVOYANT] = schedule.accuracy
    by_track = resamples(tracks_driven(test_world, rows), seed)
    weights = resamples(drives, seed)
    per_drive = {name: r.cost.mean(1) for name, r in rollouts.items()}

    kept = [name for name in agents if keeps(policies[name]["accuracy"], floor)]
    static = policies[BEST_STATIC]["cost"]
    return Evaluation(
        scenario=test_world.scenario.name,
        floor=floor,
        policies=policies,
        intervals={name: interval(cost, weights) for name, cost in per_drive.items()},
        differences={name: paired_differences(per_drive, name, weights) for name in agents},
        bound_cost=bound.cost,
        gap_closed={n: gap_closed(static, policies[n]["cost"], bound.cost) for n in kept},
        rollouts=rollouts,
        statics=statics,
        best_static=baselines[BEST_STATIC].name,
        drives=drives,
        frames=test_world.scenario.timing.n_frames,
        seed=seed,
        origins=dict(origins or {}),
        measure=test_world.table.measure,
        plug_ins={
            name: f"{policy.plug_in}: {policy.policy.name}"
            for name, policy in baselines.items()
            if isinstance(policy, PluggedPolicy)
        },
        floors={
            name: floor_kept(test_world, rows, correct, by_track)
            for name, correct in answers.items()
        },
        energy={name: energy_figures(test_world, r) for name, r in rollouts.items()},
    )


def floor_on(world: World, rows: NDArray[np.int64]) -> float:
    """Accuracy required on the frames `rows`: paired, so that no draw of frames is favoured."""
    main = float(world.correct[rows, world.topology.main].mean())
    return max(0.0, required(world, main))
