"""Baselines tuned on training drives, as carefully as the agent is.

Every candidate drives the same training drives. The cheapest of those that keep the accuracy floor
is chosen; if none keeps it, the most accurate one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agents.baselines.answer_odds import AnswerOdds
from agents.baselines.linucb import LinUcbPolicy
from agents.baselines.planner import PlannerPolicy
from agents.baselines.prediction import AccuracyTable
from agents.baselines.rules import (
    CascadePolicy,
    EdgentPolicy,
    GreedyPolicy,
    NeurosurgeonPolicy,
    ThresholdPolicy,
    full_local,
    static_policies,
)
from agents.baselines.usual_exchange import UsualExchange
from agents.floor_kept import rank
from agents.rollout import simulate_each
from agents.train_config import MARGIN
from cnn.common.plug_ins import PlugIn
from cnn.topology import Topology
from offload_env.episode import episode_keys
from offload_env.world import World
from testbed.policy.plugged_policy import plugged_policies
from testbed.policy.policies import Policy, RandomPolicy, StaticPolicy

THRESHOLDS: Final = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995)
PRICES: Final = tuple(float(p) for p in np.geomspace(0.1, 1000, 17))
BUDGETS: Final = (0.25, 0.4, 0.6, 0.8, 1.0, 1.5)
"""Edgent's latency budget as a share of the scenario's deadline."""
BANDIT_PRICES: Final = tuple(float(p) for p in np.geomspace(0.5, 100, 8))
DEPTHS: Final = (0.4, 0.6, 1.0)
"""How deep, as a share of all exits, the threshold starts and the cascade ends: 2, 3, 5 of five."""
OPTIMISM_MS: Final = (0.0, 4.0, 10.0)
KEEP: Final = (0.97, 0.9, 0.99)
"""LinUCB's factor on old exchanges, per frame; the first is used for the other two grids."""

ERROR_PRICES: Final = tuple(float(p) for p in np.geomspace(0.01, 100, 13))
"""The planner's, ascending."""
HALVINGS: Final = 3
"""How often the step between two of them is halved: a tenth of a point of accuracy counts."""
FRESHNESS_BONUSES: Final = (0.0, 0.4, 0.8, 1.6)
"""In the cost of full local processing, which is 1."""
HORIZON: Final = 8
"""Frames that the `mpc` plays."""
LOOKAHEAD_BONUSES: Final = (0.0, 0.4, 0.8, 1.6)
LOOKAHEAD_PRICES: Final = tuple(float(p) for p in np.geomspace(0.4, 12.8, 11))
"""The `mpc`'s, in that of the tuned planner: accuracy costs time, and it sees what time costs. The
steps are small, as a price too high costs accuracy again: sure answers come late, frames are
skipped."""


_CHEAP_LANES: Final = 256
"""Up to so many drives side by side take about as long as one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy and its result on the training drives."""

    policy: Policy
    cost: float
    accuracy: float


def measure(world: World, policy: Policy, keys: NDArray[np.uint64]) -> Candidate:
    """Drive a policy and keep its mean cost and accuracy."""
    return next(measure_each(world, [policy], keys))


def measure_each(
    world: World, policies: Iterable[Policy], keys: NDArray[np.uint64]
) -> Iterator[Candidate]:
    """`measure` of policies that all decide in one space."""
    every = list(policies)
    for policy, rollout in zip(every, simulate_each(world, every, keys), strict=True):
        yield Candidate(policy, float(rollout.cost.mean()), float(rollout.correct.mean()))


def choose(candidates: Iterable[Candidate], floor: float) -> Candidate:
    """Cheapest candidate that keeps the floor, else the most accurate."""
    return min(candidates, key=lambda c: rank(c.cost, c.accuracy, floor))


def best_static(world: World, keys: NDArray[np.uint64], floor: float) -> StaticPolicy:
    """The static pair chosen on the drives `keys`."""
    statics = static_policies(world.topology)
    policy = choose(measure_each(world, statics, keys), floor).policy
    assert isinstance(policy, StaticPolicy)
    return policy


def tuned_baselines(
    world: World,
    seed: int,
    drives: int = 128,
    margin: float = MARGIN,
    progress: Callable[[str], object] = lambda name: None,
    plug_ins: Sequence[PlugIn] = (),
) -> dict[str, Policy]:
    """Every baseline by name, with parameters chosen on training drives.

    Args:
        world: a training world.
        seed: of the drives and of the random policy.
        drives: training drives a candidate is measured on.
        margin: accuracy asked for above the floor, as for agents.
        progress: called with each baseline's name when it is done.
        plug_ins: of policies that are tuned beside them (`testbed.policy.plugged_policy`).

    Returns:
        ``full-local``, ``full-offload`` (where the frame itself can be sent), ``best-static``,
        ``random``, ``neurosurgeon``, ``edgent``, ``threshold``, ``greedy``, ``linucb``, and
        ``spinn``, ``planner`` and ``mpc``, which decide within the frame; then the plug-ins by
        name.

    Raises:
        ConfigError: if a plug-in fails.
    """
    at = world.topology
    keys = episode_keys(seed, drives)
    floor = world.accuracy_floor + margin

    def tune(candidates: Iterable[Policy]) -> Policy:
        return choose(measure_each(world, candidates, keys), floor).policy

    out: dict[str, Policy] = {"full-local": full_local(at)}
    if 0 in at.splits:
        frame_sent = at.action(at.n_blocks, 0)
        out["full-offload"] = StaticPolicy(frame_sent, "full-offload", at)
    out["random"] = RandomPolicy(seed, topology=at)
    out["neurosurgeon"] = NeurosurgeonPolicy(world)
    static = best_static(world, keys, floor)
    out["best-static"] = static
    progress("best-static")
    deadline = world.scenario.timing.deadline_ms
    exits = exits_at(at, DEPTHS)
    out["edgent"] = tune(EdgentPolicy(world, share * deadline) for share in BUDGETS)
    progress("edgent")
    out["threshold"] = tune(
        ThresholdPolicy(world, sure, error_probability, start)
        for start in exits
        for i, error_probability in enumerate(THRESHOLDS)
        for sure in (*THRESHOLDS[i + 2 :: 2], 1.1)
    )
    progress("threshold")
    accuracy_table = AccuracyTable(world)
    out["greedy"] = tune(GreedyPolicy(world, price, accuracy_table) for price in PRICES)
    progress("greedy")
    out["linucb"] = _tuned_linucb(world, keys, floor, accuracy_table)
    progress("linucb")
    out["spinn"] = tune(CascadePolicy(world, sure, last) for last in exits for sure in THRESHOLDS)
    progress("spinn")
    out["planner"] = planner = tuned_planner(world, keys, floor)
    progress("planner")
    out["mpc"] = tuned_mpc(world, keys, floor, planner)
    progress("mpc")
    for plug_in in plug_ins:
        # One by one: they may decide in different spaces.
        plugged = plugged_policies(plug_in, at, world)
        out[plug_in.name] = choose((measure(world, p, keys) for p in plugged), floor).policy
        progress(plug_in.name)
    for name, policy in out.items():
        policy.name = name
    static.name = f"best-static {static.action.name}"
    return out


def exits_at(topology: Topology, depths: Iterable[float]) -> list[int]:
    """Exits at shares of the way through all exits, ascending, each once; 1 is the main exit."""
    places = {max(1, round(depth * topology.n_exits)) for depth in depths}
    return [topology.exits[place - 1] for place in sorted(places)]


def _tuned_linucb(
    world: World, keys: NDArray[np.uint64], floor: float, accuracy_table: AccuracyTable
) -> Policy:
    """Price and optimism on a grid, then the forgetting factor at the best of them."""

    def candidates(pairs: Iterable[tuple[float, float]], keep: float) -> list[Candidate]:
        policies = (LinUcbPolicy(world, p, optimism, keep, accuracy_table) for p, optimism in pairs)
        return list(measure_each(world, policies, keys))

    everyone = candidates(((p, o) for o in OPTIMISM_MS for p in BANDIT_PRICES), KEEP[0])
    found = choose(everyone, floor).policy
    assert isinstance(found, LinUcbPolicy)
    for keep in KEEP[1:]:
        everyone += candidates([(found.price, found.optimism_ms)], keep)
    return choose(everyone, floor).policy


def tuned_planner(
    world: World, keys: NDArray[np.uint64], floor: float, bonuses: Sequence[float] = ()
) -> PlannerPolicy:
    """The planner that keeps a floor on training drives; `bonuses` replace its own grid's."""
    planner = PlannerPolicy(world, ERROR_PRICES[0], 0.0, AnswerOdds(world))
    return _tuned(world, keys, floor, planner, bonuses or FRESHNESS_BONUSES, ERROR_PRICES)


def tuned_mpc(
    world: World,
    keys: NDArray[np.uint64],
    floor: float,
    planner: PlannerPolicy,
    bonuses: Sequence[float] = (),
) -> PlannerPolicy:
    """The `mpc` that keeps a floor on training drives; its prices are near the tuned planner's.

    `bonuses` replace its own grid's.
    """
    prices = [share * planner.error_price for share in LOOKAHEAD_PRICES]
    usual = UsualExchange(world)
    mpc = PlannerPolicy(world, prices[0], 0.0, AnswerOdds(world), HORIZON, usual)
    return _tuned(world, keys, floor, mpc, bonuses or LOOKAHEAD_BONUSES, prices)


def _tuned(
    world: World,
    keys: NDArray[np.uint64],
    floor: float,
    planner: PlannerPolicy,
    bonuses: Sequence[float],
    prices: Sequence[float],
) -> PlannerPolicy:
    """For every bonus the least price of errors that keeps the floor: dearer ones only cost more.

    The first of `prices` (ascending) that keeps it, then halvings of the step that leads there.
    With few drives several prices are measured at once; those above the first are then dropped.

    Args:
        planner: priced anew.
    """
    found: dict[float, list[Candidate]] = {bonus: [] for bonus in bonuses}

    def measured(pairs: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float, Candidate]]:
        """Bonus, price and candidate of pairs of the two."""
        candidates = measure_each(world, [planner.priced(p, b) for b, p in pairs], keys)
        return ((b, p, c) for (b, p), c in zip(pairs, candidates, strict=True))

    steps: dict[float, tuple[float, float]] = {}
    searching = set(bonuses)
    at_once = max(1, _CHEAP_LANES // (len(bonuses) * len(keys)))
    for first in range(0, len(prices), at_once):
        ahead = [(b, p) for p in prices[first : first + at_once] for b in bonuses if b in searching]
        for bonus, price, candidate in measured(ahead):
            if bonus not in searching:
                continue  # a lower price of this block keeps it
            if candidate.accuracy >= floor:
                searching.remove(bonus)
                if found[bonus]:
                    steps[bonus] = (prices[len(found[bonus]) - 1], price)
            found[bonus].append(candidate)
    for _ in range(HALVINGS):
        middle = [(bonus, float(np.sqrt(low * high))) for bonus, (low, high) in steps.items()]
        for bonus, price, candidate in measured(middle):
            low, high = steps[bonus]
            steps[bonus] = (low, price) if candidate.accuracy >= floor else (price, high)
            found[bonus].append(candidate)
    chosen = choose(chain.from_iterable(found.values()), floor).policy
    assert isinstance(chosen, PlannerPolicy)
    return chosen
