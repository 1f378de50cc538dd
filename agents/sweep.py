"""Sweeps over accuracy floors and weights: specialists, the conditioned policy, the frontier.

A preference is an accuracy floor, as in the device's task settings, and a weight of delay against
energy. For each one a specialist is trained for it alone; one conditioned policy
(`agents.train_conditioned`) serves all. Both drive the same held-out drives as the best static
pair, chosen on training drives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agents.baselines.rules import full_local
from agents.baselines.tuning import best_static
from agents.evaluation import Interval, floor_on, interval, resamples
from agents.floor_kept import keeps
from agents.rollout import Rollout, simulate, summary
from agents.run_files import POLICY, write_table
from agents.train_config import TrainConfig
from agents.train_once import train_once
from cnn.common.errors import require, shown
from cnn.common.files import write_bytes, write_text
from offload_env.episode import episode_keys
from offload_env.preferences import Preferences, preferring
from offload_env.world import World
from testbed.policy.network_policy import load_policy
from testbed.policy.policies import Policy

CONDITIONED: Final = "conditioned"
SPECIALIST: Final = "specialist"
STATIC: Final = "best-static"
FULL_LOCAL: Final = "full-local"

MAX_SPECIALISTS: Final = 400
SHARES: Final = (0.2, 0.5, 0.8)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Results of a sweep.

    Attributes:
        scenario: its name.
        points: one row a policy and preference: ``policy``, ``floor`` (of the device's task
            settings), ``owed`` (the floor required on the test frames), ``delay_share``, the
            figures of `agents.rollout.summary`, ``keeps_floor`` (accuracy at least what is
            required), ``on_frontier``.
        differences: conditioned policy's cost less the specialist's, paired by drive, by
            (floor, share).
        drives: test drives of each point.
        seed: of drives and bootstrap.
    """

    scenario: str
    points: pd.DataFrame
    differences: dict[tuple[float, float], Interval]
    drives: int
    seed: int

    def ratios(self) -> list[float]:
        """Conditioned policy's cost over the specialist's, one a preference."""
        costs = self.points.pivot_table("cost", ["floor", "delay_share"], "policy")
        ratios: list[float] = (costs[CONDITIONED] / costs[SPECIALIST]).tolist()
        return ratios

    def below_floor(self) -> list[str]:
        """A line for every learnt policy that misses the required floor under some preference."""
        missed = self.points[~self.points["keeps_floor"].astype(bool)]
        lines = []
        for name in (SPECIALIST, CONDITIONED):
            rows = missed[missed["policy"] == name]
            if len(rows):
                short = 100 * (rows["owed"] - rows["accuracy"]).max()
                lines.append(
                    f"{name} MISSES the accuracy owed under {len(rows)} of "
                    f"{len(self.differences)} preferences, by {short:.2f} points at most: "
                    "its cost there does not count"
                )
        return lines

    def as_json(self) -> dict[str, Any]:
        """The printed result."""
        ratios = self.ratios()
        return {
            "scenario": self.scenario,
            "points": self.points.to_dict("records"),
            "conditioned_over_specialist": {
                "mean_cost_ratio": float(np.mean(ratios)),
                "worst_cost_ratio": float(np.max(ratios)),
                "differences": [
                    {"floor": floor, "delay_share": share, **asdict(found)}
                    for (floor, share), found in self.differences.items()
                ],
            },
            "drives": self.drives,
            "seed": self.seed,
        }

    def save(self, folder: Path) -> None:
        """Write ``sweep.parquet``, ``sweep.json`` and ``sweep.png``, each whole or not at all."""
        from agents.plots import frontier_png

        write_table(folder / "sweep.parquet", self.points)
        write_text(folder / "sweep.json", json.dumps(self.as_json(), indent=1) + "\n")
        write_bytes(folder / "sweep.png", frontier_png(self.points))


def default_floors(world: World, margin: float) -> tuple[float, ...]:
    """Three floors from one that hardly binds to the strictest that can be kept."""
    low, high = Preferences.of(world, margin).floor
    return tuple(float(f) for f in np.linspace(low, high, 3))


def check_preferences(floors: Sequence[float], shares: Sequence[float]) -> None:
    """Raise `ConfigError` unless there is at least one of each and all lie in [0, 1]."""
    hint = "give them with commas between, such as --floors 0.985,0.99 --weights 0.2,0.8"
    given = f"floors {shown(floors)} and weights {shown(shares)}"
    fine = bool(floors and shares) and all(0 <= v <= 1 for v in (*floors, *shares))
    require(fine, given, "at least one of each, all in 0..1", hint)
    few = len(floors) * len(shares) <= MAX_SPECIALISTS
    require(few, given, f"at most {MAX_SPECIALISTS} pairs of them, each a training", hint)
    names = {specialist_folder(Path(), floor, share) for floor in floors for share in shares}
    apart = len(names) == len(floors) * len(shares)
    require(apart, given, "floors 0.0001 and weights 0.01 apart, at least", hint)


def train_all(
    train_world: World,
    config: TrainConfig,
    out: Path,
    floors: Sequence[float],
    shares: Sequence[float],
    progress: Callable[[str], object] = lambda name: None,
) -> dict[tuple[float, float] | None, Policy]:
    """A specialist for each (floor, share), and the conditioned policy under None.

    Policies in `out` that were trained with the same settings are read and not trained again; a
    training that was interrupted is resumed.

    Args:
        train_world: training world.
        config: settings of every training, the conditioned one included.
        out: folder; ``specialists/NAME/`` are training runs, ``conditioned.policy`` a file.
        floors, shares: the preferences; the conditioned policy is trained for the whole
            range between the lowest and the highest of each.
        progress: called with the name of what is being trained.

    Raises:
        TrainingInterrupted: at SIGINT or SIGTERM; the work so far is kept in `out`.
    """
    from agents.train_conditioned import already_trained, train_conditioned

    check_preferences(floors, shares)
    config = config.of(train_world.topology)
    policies: dict[tuple[float, float] | None, Policy] = {}
    progress(f"{CONDITIONED} ({config.steps} steps)")
    asked = Preferences((min(floors), max(floors)), (min(shares), max(shares)))
    path = out / "conditioned.policy"
    if not already_trained(path, config, asked):
        train_conditioned(config, path, world=train_world, preferences=asked)
    policies[None] = load_policy(path, train_world.table.bundle_hash)
    for floor in floors:
        for share in shares:
            folder = specialist_folder(out, floor, share)
            progress(folder.name)
            world = preferring(train_world, floor, share)
            train_once(config, folder, world)
            policies[floor, share] = load_policy(folder / POLICY, world.table.bundle_hash)
    return policies


def specialist_folder(out: Path, floor: float, share: float) -> Path:
    """The run folder of the specialist for one preference."""
    return out / "specialists" / f"floor{floor:.4f}-delay{share:.2f}"


def evaluate_sweep(
    train_world: World,
    test_world: World,
    policies: dict[tuple[float, float] | None, Policy],
    *,
    margin: float,
    drives: int = 128,
    seed: int = 0,
    progress: Callable[[str], object] = lambda name: None,
) -> Sweep:
    """Drive the conditioned policy and the specialists on the same test drives.

    Args:
        train_world: the best static pair of each preference is chosen on it.
        test_world: not used for any choice.
        policies: as `train_all` returns them.
        margin: accuracy asked of the best static pair above the floor on training drives.
        drives: test drives.
        seed: of drives and bootstrap.
        progress: called with each preference when it is done.
    """
    keys, tuning = episode_keys(seed + 7, drives), episode_keys(seed, min(drives, 64))
    weights = resamples(drives, seed)
    rows: list[dict[str, Any]] = []
    differences: dict[tuple[float, float], Interval] = {}
    for asked, specialist in policies.items():
        if asked is None:
            continue
        world = preferring(test_world, *asked)
        static = best_static(preferring(train_world, *asked), tuning, asked[0] + margin)
        local = simulate(world, full_local(world.topology), keys)
        driven = {
            SPECIALIST: simulate(world, specialist, keys),
            CONDITIONED: simulate(world, policies[None], keys),
            STATIC: simulate(world, static, keys),
            FULL_LOCAL: local,
        }
        owed = floor_on(world, local.row)
        rows += [_row(name, asked, owed, rollout) for name, rollout in driven.items()]
        paired = driven[CONDITIONED].cost.mean(1) - driven[SPECIALIST].cost.mean(1)
        differences[asked] = interval(paired, weights)
        progress(f"floor {asked[0]:.4f}, delay weight {asked[1]:.2f}")
    points = pd.DataFrame(rows)
    points["on_frontier"] = frontier(points)
    return Sweep(test_world.scenario.name, points, differences, drives, seed)


def _row(
    name: str, asked: tuple[float, float], owed: float, rollout: Rollout
) -> dict[str, str | float]:
    where = {"floor": asked[0], "owed": owed, "delay_share": asked[1]}
    figures = summary(rollout)
    return {"policy": name, **where, **figures, "keeps_floor": keeps(figures["accuracy"], owed)}


def frontier(points: pd.DataFrame) -> NDArray[np.bool_]:
    """Rows that no other row beats in delay, energy and accuracy at once, bool (N,)."""
    gains = np.column_stack([points["delay_ms"], points["energy_mj"], -points["accuracy"]])
    no_worse = (gains[:, None] <= gains[None]).all(2)
    better = (gains[:, None] < gains[None]).any(2)
    free: NDArray[np.bool_] = np.logical_not((no_worse & better).any(0))
    return free
