"""The shipped staged policies away from home: in other scenarios, on other links, devices, cameras.

    python benchmarks/generalisation.py [--drives 64] [--seed 0] [--json]

*Matrix*: each policy (row) drives the test drives of every scenario of its network (column). A cell
is its cost over that of the policy that was trained there, and its accuracy above that scenario's
floor, in points. *Changes*: each policy in its own scenario with all round trips doubled, with a
device 1.5 times slower, with a camera 1.25 times slower and faster, and, if SLIPROAD_DATA is set,
on the measured days of its kind of link that nobody trained on. There the cost is over that of a
`planner` that is tuned in the changed scenario itself, on 24 training drives. Where a run-time
control of accuracy pays (`sliproad agent control`), the policy with it is one row more.

Prints ``{"matrix": {row: {column: {"cost", "ratio", "over_floor"}}}, "changes": {row: {change:
{"cost", "ratio", "over_floor", "planner_cost", "planner_over_floor"}}}, "drives", "seed"}``;
without ``--json`` also both as tables of Markdown on the standard error. Replayed: answers
measured, times from the fitted cost models, links generated but for the measured days, powers
published.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from agents.baselines.tuning import tuned_planner
from agents.contenders import Contender, shipped_contenders
from agents.control_command import DRIVES, MOST
from agents.credit_control import controlled, doubled_round_trips, figures_each
from agents.evaluation import STAGED
from agents.train_config import MARGIN
from offload_env.episode import Keys, episode_keys
from offload_env.scenario import Scenario, load_scenario, scenario_names
from offload_env.sources import measured_traces
from offload_env.world import World, build_world
from testbed.policy.network_policy import policy_from_bundle
from testbed.policy.policies import Policy

TUNED_ON: Final = 24
"""Training drives of the planner."""
Worlds = Callable[[Scenario], tuple[World, World]]
"""The training and the test world of a changed scenario."""


def worlds(scenario: Scenario) -> tuple[World, World]:
    """Training and test world."""
    return build_world(scenario, "train"), build_world(scenario, "test")


def far(scenario: Scenario) -> tuple[World, World]:
    """The same with all round trips doubled."""
    return doubled_round_trips(scenario, "train"), doubled_round_trips(scenario, "test")


def slower(scenario: Scenario, factor: float) -> Scenario:
    """The same on a device that takes `factor` times as long."""
    device = scenario.device
    if device.full_local_ms:
        device = replace(device, full_local_ms=factor * device.full_local_ms)
    else:
        device = replace(device, slowdown=factor * device.slowdown)
    return replace(scenario, device=device)


def paced(scenario: Scenario, factor: float) -> Scenario:
    """The same with `factor` times as long between two frames."""
    timing = replace(scenario.timing, period_ms=factor * scenario.timing.period_ms)
    return replace(scenario, timing=timing)


HOME: Final = "at home"
DAYS: Final = "measured days"
CHANGES: Final[Mapping[str, Worlds]] = {
    "round trips x 2": far,
    "device x 1.5": lambda scenario: worlds(slower(scenario, 1.5)),
    "period x 1.25": lambda scenario: worlds(paced(scenario, 1.25)),
    "period x 0.8": lambda scenario: worlds(paced(scenario, 0.8)),
}


def matrix(homes: Mapping[str, tuple[World, Contender]], drives: int, seed: int) -> Any:
    """Every policy in every scenario of its network."""
    found: dict[str, dict[str, dict[str, float]]] = {row: {} for row in homes}
    keys = episode_keys(seed, drives)
    for column, (world, _) in homes.items():
        network = world.table.bundle_hash
        rows = [r for r, (home, _) in homes.items() if home.table.bundle_hash == network]
        driven = figures_each([homes[row][1].policy for row in rows], world, keys)
        for row, there in zip(rows, driven, strict=True):
            found[row][column] = {"cost": there.cost, "over_floor": 100 * there.over_floor}
        print(f"matrix: {column}", file=sys.stderr, flush=True)
    for cells in found.values():
        for column, cell in cells.items():
            cell["ratio"] = cell["cost"] / found[column][column]["cost"]
    return found


def changes(homes: Mapping[str, tuple[World, Contender]], drives: int, seed: int) -> Any:
    """Every policy at home, and where its home has changed; then with control, where it pays."""

    def planner_of(train: World) -> Policy:
        floor = train.accuracy_floor + MARGIN
        return tuned_planner(train, episode_keys(seed, TUNED_ON), floor)

    found: dict[str, dict[str, dict[str, float]]] = {}
    keys = episode_keys(seed, drives)
    for row, (home, own) in homes.items():
        train = build_world(home.scenario, "train")
        policies = {row: own.policy}
        control = controlled(own.bundle, train, episode_keys(seed, DRIVES), MOST)
        if control is not None:
            policies[f"{row}, control"] = policy_from_bundle(control.bundle)
        planner = planner_of(train)
        cells = {HOME: beside(planner, policies, home, keys)}
        if os.environ.get("SLIPROAD_DATA"):
            days = measured_traces(home.scenario, "test").traces
            away = build_world(home.scenario, "test", traces=days)
            cells[DAYS] = beside(planner, policies, away, keys)
        for change, of in CHANGES.items():
            changed, test = of(home.scenario)
            cells[change] = beside(planner_of(changed), policies, test, keys)
        for name in policies:
            found[name] = {change: rows[name] for change, rows in cells.items()}
        print(f"changes: {row}", file=sys.stderr, flush=True)
    return found


def beside(
    planner: Policy, policies: Mapping[str, Policy], test: World, keys: Keys
) -> dict[str, dict[str, float]]:
    """A cell for each policy: what it costs, and what the planner does."""
    cells = {}
    theirs, *driven = figures_each([planner, *policies.values()], test, keys)
    for name, found in zip(policies, driven, strict=True):
        cells[name] = {
            "cost": found.cost,
            "ratio": found.cost / theirs.cost,
            "over_floor": 100 * found.over_floor,
            "planner_cost": theirs.cost,
            "planner_over_floor": 100 * theirs.over_floor,
        }
    return cells


def table(rows: Mapping[str, Mapping[str, Mapping[str, float]]], columns: Sequence[str]) -> str:
    """Ratio and accuracy above the floor of every cell, in Markdown."""
    lines = ["| policy | " + " | ".join(columns) + " |", "|" + " --- |" * (1 + len(columns))]
    for row, cells in rows.items():
        texts = [
            f"{cells[c]['ratio']:.2f} ({cells[c]['over_floor']:+.1f})" if c in cells else ""
            for c in columns
        ]
        lines.append(f"| `{row}` | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main() -> None:
    """Drive all, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--drives", type=int, default=64, help="Drives of each cell.")
    parser.add_argument("--seed", type=int, default=0, help="Of the drives.")
    parser.add_argument("--json", action="store_true", help="Print JSON alone.")
    given = parser.parse_args()
    homes: dict[str, tuple[World, Contender]] = {}
    for name in scenario_names():
        world = build_world(load_scenario(name), "test")
        if STAGED in (shipped := shipped_contenders(world)):
            homes[name] = world, shipped[STAGED]
    away = matrix(homes, given.drives, given.seed)
    changed = changes(homes, given.drives, given.seed)
    if not given.json:
        for group in {tuple(cells): None for cells in away.values()}:
            rows = {row: cells for row, cells in away.items() if tuple(cells) == group}
            print(table(rows, group), "\n", file=sys.stderr)
        print(table(changed, [HOME, DAYS, *CHANGES]), file=sys.stderr)
    result = {"matrix": away, "changes": changed, "drives": given.drives, "seed": given.seed}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
