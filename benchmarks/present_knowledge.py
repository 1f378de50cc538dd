"""What would it be worth to know, at every decision, how link and server are just then?

    python benchmarks/present_knowledge.py [SCENARIO ...] [--drives 128] [--seed 0]

No device can know it: it learns of link and server by sending. Here an agent is trained all the
same whose observation tells the present: rate, round trip and wait at the server are the true ones
at every decision, and none is ever old. Settings are those of the staged agents that look ahead in
`value_of_rl*.toml`, with one seed; its teacher is told, too. Prints ``{"scenarios": {name:
{"bound_cost", "floor", "shipped": {"cost", "accuracy", "over_bound"}, "told": {...}}}, "drives",
"seed"}``. What the told agent saves is the worth of the present; what it leaves open above the
bound needs the future, or more training. Replayed on each scenario's test drives; about eight
minutes a scenario.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agents.contenders import contender, shipped_agents
from agents.rollout import simulate
from agents.study import Trial, read_study
from agents.training import train, world_of
from offload_env import batch_simulator
from offload_env.bound.proof import lower_bound
from offload_env.episode import episode_keys
from offload_env.exchange import server_wait_ms
from offload_env.lanes import BatchObserver, Lanes
from offload_env.world import World, build_world
from testbed.policy.decision_points import DecisionSpace
from testbed.policy.policies import Policy

SCENARIOS: Final = ("city-rrc", "robot-rrc", "motorway-rrc", "motorway-tail", "bursty-tail")
"""Where agents save most over all other methods."""
SPECS: Final = sorted(Path(__file__).parent.glob("value_of_rl*.toml"))
_LEAST_BITS_PER_MS: Final = 1.0


class Told(BatchObserver):
    """Observations that tell the present of link and server."""

    def observe(self, s: Lanes, space: DecisionSpace | None = None) -> NDArray[np.float32]:
        """As `BatchObserver.observe`."""
        pool, now = self.world.pool, s.start + s.compute + s.waited + s.rest
        at = pool.index(s.lane, np.floor((now + s.offset) / s.lane.period_ms))
        one_way = pool.one_way_ms[at]
        told = copy.copy(s)
        told.ms_per_kb = 8e3 / np.maximum(pool.bits_per_ms[at], _LEAST_BITS_PER_MS)
        told.rtt_ms = 2 * one_way + self.world.cost.net_ms
        told.server_wait_ms = server_wait_ms(self.world.server_work_ms, s.cell0, now + one_way)
        told.transfer_s = told.server_s = s.start * 1e-3
        return super().observe(told, space)


def main() -> None:
    """Drive the shipped agents, train and drive those that are told, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scenarios", nargs="*", default=SCENARIOS)
    parser.add_argument("--drives", type=int, default=128, help="test drives")
    parser.add_argument("--seed", type=int, default=0, help="of the training and the drives")
    options = parser.parse_args()
    keys = episode_keys(options.seed, options.drives)
    found: dict[str, dict[str, Any]] = {}
    for name in options.scenarios:
        test = build_world(name, "test")
        bound = lower_bound(test, keys).cost
        shipped = driven(test, shipped_agents(test)["staged-agent"], keys, bound)
        told = told_agent(recipe(name, options.seed), test, keys, bound)
        floor = test.accuracy_floor
        found[name] = {"bound_cost": bound, "floor": floor, "shipped": shipped, "told": told}
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    print(json.dumps({"scenarios": found, "drives": options.drives, "seed": options.seed}))


def recipe(name: str, seed: int) -> Trial:
    """How the agents of a scenario that look ahead were trained."""
    trials = [trial for spec in SPECS for trial in read_study(spec).trials(seed)]
    return next(t for t in trials if t.scenario == name and t.config.gamma > 0)


def told_agent(
    trial: Trial, test: World, keys: NDArray[np.uint64], bound: float
) -> dict[str, float]:
    """Figures of an agent that is told the present in training and on the test drives."""
    world = world_of(trial.config)
    # The simulator makes its observer by this name.
    batch_simulator.BatchObserver = Told  # type: ignore[misc]
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(trial.config_in(world), Path(folder), world=world)
            return driven(test, contender(Path(folder), test).policy, keys, bound)
    finally:
        batch_simulator.BatchObserver = BatchObserver  # type: ignore[misc]


def driven(test: World, policy: Policy, keys: NDArray[np.uint64], bound: float) -> dict[str, float]:
    """Figures of a policy on test drives."""
    rollout = simulate(test, policy, keys)
    cost = float(rollout.cost.mean())
    accuracy = float(rollout.correct.mean())
    return {"cost": cost, "accuracy": accuracy, "over_bound": cost / bound}


if __name__ == "__main__":
    main()
