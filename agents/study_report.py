"""The result of a study: a row for each trial, and what the seeds say of each setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.evaluation import Interval
from agents.floor_kept import keeps
from agents.run_files import POLICY
from agents.seed_statistics import interquartile_mean, probability_of_improvement
from agents.study import Trial
from agents.terminal import Comparison
from testbed.policy.policy_file import PolicyBundle


@dataclass(frozen=True, slots=True)
class StudyResult:
    """See the module's text.

    Attributes:
        trials: of the study, in order.
        rows: of the finished trials: validation figures, floor, whether it is kept.
        seed: first seed of the trainings, and seed of the bootstrap.
    """

    trials: Sequence[Trial]
    rows: Sequence[dict[str, Any]]
    seed: int

    @property
    def names(self) -> list[str]:
        """Labels of the settings."""
        return list(dict.fromkeys(trial.setting for trial in self.trials))

    def costs(self, setting: str) -> NDArray[np.float64]:
        """Validation costs, float64 (seeds, scenarios)."""
        of = [r for r in self.rows if r["setting"] == setting]
        scenarios = dict.fromkeys(row["scenario"] for row in of)
        columns = [[r["cost"] for r in of if r["scenario"] == name] for name in scenarios]
        return np.array(columns, dtype=np.float64).T

    def setting(self, name: str) -> dict[str, Any]:
        """Figures of a setting over seeds, over all scenarios and in each."""
        of = [row for row in self.rows if row["setting"] == name]
        costs = self.costs(name)
        scenarios = list(dict.fromkeys(row["scenario"] for row in of))
        single = (interquartile_mean(costs[:, [i]], self.seed) for i in range(len(scenarios)))
        return {
            "setting": name,
            "runs": len(of),
            "keep_floor": sum(row["keeps_floor"] for row in of),
            "cost_iqm": asdict(interquartile_mean(costs, self.seed)),
            "cost_iqm_by_scenario": {
                s: asdict(found) for s, found in zip(scenarios, single, strict=True)
            },
        }

    def improvement(self) -> list[dict[str, Any]]:
        """For each pair of settings, how probably a run of the first costs less."""
        return [
            {
                "setting": one,
                "over": other,
                "probability": asdict(
                    probability_of_improvement(self.costs(one), self.costs(other), self.seed)
                ),
            }
            for one, other in combinations(self.names, 2)
        ]

    def as_json(self) -> dict[str, Any]:
        """The content of ``study.json``."""
        return {
            "seed": self.seed,
            "trials": list(self.rows),
            "settings": [self.setting(name) for name in self.names],
            "improvement": self.improvement(),
        }


def row_of(trial: Trial, folder: Path) -> dict[str, Any]:
    """Figures of a finished trial, as its policy file has them.

    Args:
        trial: of the study.
        folder: the trial's run.
    """
    metrics = PolicyBundle.load(folder / POLICY).manifest["metrics"]
    validation, floor = metrics["validation"], float(metrics["accuracy_floor"])
    config = trial.config
    return {
        "trial": trial.name,
        "setting": trial.setting,
        "scenario": trial.scenario,
        "env": config.env,
        "algo": config.algo,
        **trial.point,
        "seed": config.seed,
        "steps": config.steps,
        "cost": validation["cost"],
        "accuracy": validation["accuracy"],
        "delay_ms": validation["delay_ms"],
        "energy_mj": validation["energy_mj"],
        "best_step": validation["step"],
        "floor": floor,
        "keeps_floor": keeps(validation["accuracy"], floor),
    }


def tables(result: dict[str, Any]) -> list[Comparison]:
    """The settings, cheapest first, and how probably one improves on another.

    Args:
        result: from `StudyResult.as_json`.
    """
    order = sorted(result["settings"], key=lambda found: found["cost_iqm"]["mean"])
    rows: list[tuple[str, ...]] = [
        (f["setting"], _shown(f["cost_iqm"], 4), f"{f['keep_floor']} of {f['runs']}") for f in order
    ]
    notes = ["interquartile mean of the validation cost, with its stratified 95 % interval"]
    if any(f["keep_floor"] < f["runs"] for f in order):
        notes.append("a run that misses the floor is cheap at the price of accuracy")
    columns = ("setting", "cost", "runs that keep the floor")
    out = [Comparison("Settings over seeds and scenarios", columns, rows, notes)]
    if result["improvement"]:
        pairs: list[tuple[str, ...]] = [
            (f"{f['setting']} below {f['over']}", _shown(f["probability"], 2))
            for f in result["improvement"]
        ]
        out.append(Comparison("Probability of improvement", ("cost of", "probability"), pairs, []))
    return out


def _shown(found: dict[str, float], digits: int) -> str:
    value = Interval(**found)
    return f"{value.mean:.{digits}f} ({value.low:.{digits}f} .. {value.high:.{digits}f})"
