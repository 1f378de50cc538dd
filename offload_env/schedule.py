"""The best feasible schedule found: a beam search in the real simulator, knowing everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.action import N_ACTIONS
from cnn.errors import ConfigError
from offload_env.batch import OFFLOADS, BatchSimulator
from offload_env.bound import LowerBound, Relaxed
from offload_env.hashing import Keys
from offload_env.relaxation import SKIP, options
from offload_env.simulator import SKIPPED
from offload_env.world import LOCAL, World

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
WIDTH: Final = 6
"""Beam width: states kept for each episode."""
_SEARCHES: Final = 7
"""Multipliers tried on the way to the floor."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Actions for whole episodes and what they cost in the simulator.

    Attributes:
        actions: int64 (E, n), canonical.
        cost, delay_ms, energy_mj, accuracy: float64 (E, n) each, accuracy 0 or 1.
        miss: bool (E, n).
    """

    actions: Ints
    cost: Floats
    delay_ms: Floats
    energy_mj: Floats
    accuracy: Floats
    miss: NDArray[np.bool_]

    @property
    def mean_cost(self) -> float:
        """Mean cost of a frame."""
        return float(self.cost.mean())

    @property
    def mean_accuracy(self) -> float:
        """Mean accuracy."""
        return float(self.accuracy.mean())


def best_schedule(
    world: World,
    keys: Keys,
    *,
    floor: float | None = None,
    n_frames: int | None = None,
    width: int = WIDTH,
) -> tuple[LowerBound, Schedule]:
    """The lower bound, and a schedule that keeps the floor at the least cost found.

    Args:
        world: scenario and split.
        keys: uint64 (E,), episodes.
        floor: accuracy owed on average over all episodes; None takes the world's.
        n_frames: frames of each episode; None takes the scenario's.
        width: beam width; more is slower and better.

    Raises:
        ConfigError: if no schedule found keeps the floor.
    """
    n = world.scenario.timing.n_frames if n_frames is None else n_frames
    floor = world.accuracy_floor if floor is None else floor
    relaxed = Relaxed(world, options(world, keys, n))
    bound = relaxed.bound(floor)
    found: list[Schedule] = []
    low, high, m = 0.0, np.inf, bound.multiplier
    for _ in range(_SEARCHES):
        schedule = beam_search(world, keys, relaxed, m, n, width)
        found.append(schedule)
        if schedule.mean_accuracy >= floor:
            high = m
            m = 0.5 * (low + high)
        else:
            low = m
            m = max(2.0 * m, 0.5) if np.isinf(high) else 0.5 * (low + high)
    return bound, _mix(found, floor)


def replay(world: World, keys: Keys, actions: Ints) -> Schedule:
    """Run given actions, int64 (E, n), through the simulator."""
    simulator = BatchSimulator(world, len(keys))
    simulator.reset(keys)
    outcomes = [simulator.step(actions[:, i]) for i in range(actions.shape[1])]
    return Schedule(
        actions,
        np.stack([o.cost for o in outcomes], 1),
        np.stack([o.delay_ms for o in outcomes], 1),
        np.stack([o.energy_mj for o in outcomes], 1),
        np.stack([o.correct for o in outcomes], 1).astype(np.float64),
        np.stack([o.miss for o in outcomes], 1),
    )


def beam_search(
    world: World, keys: Keys, relaxed: Relaxed, multiplier: float, n: int, width: int
) -> Schedule:
    """Beam search for the least cost + multiplier * errors.

    Args:
        world: scenario and split.
        keys: uint64 (E,), episodes.
        relaxed: their relaxation, for the cost to go.
        multiplier: price of an error.
        n: frames of each episode.
        width: states kept for each episode.
    """
    episodes = len(keys)
    to_go = relaxed.to_go(multiplier)
    simulator = BatchSimulator(world, episodes)
    simulator.reset(keys)
    state = simulator.lanes
    owner = np.arange(episodes)
    score, last = np.zeros(episodes), np.zeros(episodes, np.int64)
    path = np.empty((episodes, 0), np.int64)
    for i in range(n):
        # Every kept state tries every action.
        parent = np.repeat(np.arange(len(owner)), N_ACTIONS)
        action = np.tile(np.arange(N_ACTIONS), len(owner))
        simulator = BatchSimulator(world, len(parent))
        simulator.lanes = state.take(parent)
        outcome = simulator.step(action)
        total = score[parent] + outcome.cost + multiplier * (1.0 - outcome.correct)
        sent = OFFLOADS[action] & (outcome.status != SKIPPED)
        latest = np.where(sent, i + 1, last[parent])
        whose = owner[parent]
        hope = total + to_go[whose, i + 1, latest]
        keep = _survivors(whose, hope, simulator.lanes.start, latest, width)
        state = simulator.lanes.take(keep)
        owner, score, last = whose[keep], total[keep], latest[keep]
        path = np.concatenate([path[parent[keep]], action[keep, None]], 1)
    best = np.array(
        [np.flatnonzero(owner == e)[score[owner == e].argmin()] for e in range(episodes)]
    )
    return replay(world, keys, path[best])


def _survivors(
    whose: Ints, hope: Floats, start: Floats, latest: Ints, width: int
) -> NDArray[np.intp]:
    """Per episode the `width` most hopeful states that are not dominated outright.

    Of states that start the next frame at the same time and exchanged last at the same
    frame only the best is kept: their futures differ by little or nothing.
    """
    order = np.lexsort((hope, latest, np.round(start, 3), whose))
    same = (
        (np.diff(whose[order]) == 0)
        & (np.diff(np.round(start, 3)[order]) == 0)
        & (np.diff(latest[order]) == 0)
    )
    unique = order[np.concatenate([[True], ~same])]
    ranked = unique[np.lexsort((hope[unique], whose[unique]))]
    first = np.searchsorted(whose[ranked], whose[ranked], "left")
    kept: NDArray[np.intp] = ranked[np.arange(len(ranked)) - first < width]
    return kept


def _mix(found: list[Schedule], floor: float) -> Schedule:
    """Choose a schedule for every episode so that together they keep the floor.

    Starts from the cheapest feasible set and swaps single episodes for cheaper ones while
    the accuracy lasts, the most saving for each lost answer first.
    """
    feasible = [s for s in found if s.mean_accuracy >= floor]
    if not feasible:
        best = max(s.mean_accuracy for s in found)
        raise ConfigError(
            f"accuracy floor {floor:.4f}",
            expected=f"at most {best:.4f}, the most that a schedule reached",
            mend="enlarge the scenario's margin",
        )
    base = min(feasible, key=lambda s: s.mean_cost)
    cost = np.stack([s.cost.sum(1) for s in found])
    right = np.stack([s.accuracy.sum(1) for s in found])
    at = np.full(base.cost.shape[0], next(k for k, s in enumerate(found) if s is base))
    each = np.arange(len(at))
    spare = right[at, each].sum() - floor * base.accuracy.size
    while True:
        saving = cost[at, each] - cost
        loss = right[at, each] - right
        possible = (saving > 1e-12) & (loss <= spare)
        if not possible.any():
            break
        worth = np.where(possible, saving / np.maximum(loss, 1e-3), -np.inf)
        k, e = np.unravel_index(int(worth.argmax()), worth.shape)
        spare -= loss[k, e]
        at[e] = k
    return Schedule(
        *(
            np.stack([getattr(found[k], name)[e] for e, k in enumerate(at)])
            for name in ("actions", "cost", "delay_ms", "energy_mj", "accuracy", "miss")
        )
    )


def relaxed_schedule(world: World, keys: Keys, multiplier: float, n: int) -> Schedule:
    """The relaxation's own actions, run through the simulator (queues and all)."""
    relaxed = Relaxed(world, options(world, keys, n))
    actions = relaxed.actions(multiplier, relaxed.to_go(multiplier))
    return replay(world, keys, np.where(actions == SKIP, LOCAL[0], actions))
