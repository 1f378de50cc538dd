"""The best feasible schedule found: a clairvoyant beam search in the real simulator."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError
from offload_env.batch_simulator import BatchSimulator
from offload_env.bound.frame_outcomes import Floats, Ints
from offload_env.bound.programme import Relaxed, options
from offload_env.bound.proof import LowerBound, bound_and_relaxed
from offload_env.episode import Keys
from offload_env.simulator import SKIPPED
from offload_env.world import World

WIDTH: Final = 6
"""Beam width: states kept for each episode."""
_SEARCHES: Final = 7
"""Multipliers tried on the way to the floor."""
_ROUNDING: Final = 1e-9
"""A mean of qualities differs by less from one added up in another order."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Actions for whole episodes, and their cost in the simulator.

    Attributes:
        actions: int64 (E, n), canonical.
        cost, delay_ms, energy_mj, accuracy: float64 (E, n) each, accuracy 0 or 1, or a quality
            from 0 to 1.
        miss, critical: bool (E, n).
    """

    actions: Ints
    cost: Floats
    delay_ms: Floats
    energy_mj: Floats
    accuracy: Floats
    miss: NDArray[np.bool_]
    critical: NDArray[np.bool_]

    @property
    def critical_right(self) -> Floats:
        """Right answers on critical frames, float64 (E,)."""
        right: Floats = (self.accuracy * self.critical).sum(1)
        return right

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
    critical_floor: float | None = None,
    n_frames: int | None = None,
    width: int = WIDTH,
) -> tuple[LowerBound, Schedule]:
    """The lower bound, and a schedule that keeps the floors at the least cost found.

    Args:
        world: scenario and split.
        keys: uint64 (E,), episodes.
        floor: accuracy required on average over all episodes; None takes the world's.
        critical_floor: the same for the critical classes alone.
        n_frames: frames of each episode; None takes the scenario's.
        width: beam width; more is slower and better.

    Raises:
        ConfigError: if no schedule found keeps the floors.
    """
    n = world.scenario.timing.n_frames if n_frames is None else n_frames
    bound, relaxed = bound_and_relaxed(
        world, keys, floor=floor, critical_floor=critical_floor, n_frames=n
    )
    if world.cost.radio.promotion_ms:
        relaxed = Relaxed(options(world, keys, n, bound.premium, connects=True))
    floors = Floors(bound.floor, bound.critical_floor, relaxed.opts.critical)
    all_frames, critical = _Search(bound.multiplier), _Search(bound.critical_multiplier)
    found: list[Schedule] = []
    for _ in range(_SEARCHES if not floors.critical else 2 * _SEARCHES):
        schedule = beam_search(world, keys, relaxed, all_frames.at, n, width, critical.at)
        found.append(schedule)
        spare, spare_critical = floors.spare(schedule.accuracy.sum(1), schedule.critical_right)
        if floors.critical and spare_critical < 0:
            critical.move(False)
        else:
            all_frames.move(spare >= 0)
            if floors.critical and spare >= 0:
                critical.move(True)
    return bound, _mix(found, floors)


@dataclass(frozen=True, slots=True)
class Floors:
    """Accuracy required on average.

    Attributes:
        all: on all frames.
        critical: on the frames of critical classes; 0 if nothing is required there.
        is_critical: bool (E, n).
    """

    all: float
    critical: float
    is_critical: NDArray[np.bool_]

    def spare(self, right: Floats, critical_right: Floats) -> tuple[float, float]:
        """Right answers beyond those required: on all frames, on critical ones.

        Args:
            right: float64 (E,), right answers of every episode.
            critical_right: float64 (E,), those on critical frames.
        """
        required = (self.all - _ROUNDING) * self.is_critical.size
        required_critical = (self.critical - _ROUNDING) * float(self.is_critical.sum())
        return float(right.sum()) - required, float(critical_right.sum()) - required_critical


@dataclass(slots=True)
class _Search:
    """Bisection for the least multiplier that keeps a floor, from the bound's upwards."""

    at: float
    low: float = 0.0
    high: float = np.inf

    def move(self, keeps: bool) -> None:
        """Narrow the interval, given whether the floor is kept at `at`."""
        if keeps:
            self.high = self.at
        else:
            self.low = self.at
        open_end = np.isinf(self.high)
        self.at = max(2.0 * self.at, 0.5) if open_end else 0.5 * (self.low + self.high)


def replay(world: World, keys: Keys, actions: Ints) -> Schedule:
    """Run given actions, int64 (E, n), through the simulator."""
    simulator = BatchSimulator(world, len(keys))
    simulator.reset(keys)
    outcomes = [simulator.settle(actions[:, i]) for i in range(actions.shape[1])]
    return Schedule(
        actions,
        np.stack([o.cost for o in outcomes], 1),
        np.stack([o.delay_ms for o in outcomes], 1),
        np.stack([o.energy_mj for o in outcomes], 1),
        np.stack([o.correct for o in outcomes], 1).astype(np.float64),
        np.stack([o.miss for o in outcomes], 1),
        np.stack([world.critical[o.row] for o in outcomes], 1),
    )


def beam_search(
    world: World,
    keys: Keys,
    relaxed: Relaxed,
    multiplier: float,
    n: int,
    width: int,
    critical: float = 0.0,
) -> Schedule:
    """Beam search for the least cost + multipliers * errors.

    Args:
        world: scenario and split.
        keys: uint64 (E,), episodes.
        relaxed: their relaxation, for the cost to go.
        multiplier: price of an error.
        n: frames of each episode.
        width: states kept for each episode.
        critical: price of an error on a critical class, on top.
    """
    episodes, topology = len(keys), world.topology
    to_go = relaxed.to_go(multiplier, critical)
    knows_last = to_go.shape[3] > 1
    simulator = BatchSimulator(world, episodes)
    simulator.reset(keys)
    state = simulator.lanes
    owner = np.arange(episodes)
    score, last = np.zeros(episodes), np.zeros(episodes, np.int64)
    path = np.empty((episodes, 0), np.int64)
    for i in range(n):
        # Every kept state tries every action.
        parent = np.repeat(np.arange(len(owner)), topology.n_actions)
        action = np.tile(np.arange(topology.n_actions), len(owner))
        simulator = BatchSimulator(world, len(parent))
        simulator.lanes = state.take(parent)
        outcome = simulator.settle(action)
        price = multiplier + critical * world.critical[outcome.row]
        total = score[parent] + outcome.cost + price * (1.0 - outcome.correct)
        sent = ~topology.is_local[action] & (outcome.status != SKIPPED)
        latest = np.where(sent, i + 1, last[parent])
        whose, lanes = owner[parent], simulator.lanes
        is_delayed = (lanes.queue > 0) | (lanes.radio_free > lanes.start)
        hope = total + to_go[is_delayed.astype(np.int64), whose, i + 1, latest if knows_last else 0]
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
    """Per episode, the `width` most promising states that are not dominated outright.

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


def _mix(found: list[Schedule], floors: Floors) -> Schedule:
    """Choose a schedule for every episode so that together they keep the floors.

    Starts from the cheapest feasible set. Then swaps single episodes for cheaper ones while the
    accuracy allows, in order of the saving for each lost answer.
    """
    cost = np.stack([s.cost.sum(1) for s in found])
    right = np.stack([s.accuracy.sum(1) for s in found])
    critical = np.stack([s.critical_right for s in found])
    spares = np.array([floors.spare(right[k], critical[k]) for k in range(len(found))])
    feasible = (spares >= 0).all(1)
    if not feasible.any():
        raise ConfigError(
            f"accuracy floor {floors.all:.4f}, of critical classes {floors.critical:.4f}",
            expected=f"on all frames at most {max(s.mean_accuracy for s in found):.4f}, "
            "the most that a schedule reached",
            hint="enlarge the scenario's margin",
        )
    base = int(np.where(feasible, cost.sum(1), np.inf).argmin())
    at, each = np.full(cost.shape[1], base), np.arange(cost.shape[1])
    spare, spare_critical = spares[base]
    while True:
        saving = cost[at, each] - cost
        loss, loss_critical = right[at, each] - right, critical[at, each] - critical
        possible = (saving > 1e-12) & (loss <= spare) & (loss_critical <= spare_critical)
        if not possible.any():
            break
        worth = np.where(possible, saving / np.maximum(np.maximum(loss, loss_critical), 1e-3), -1.0)
        k, e = np.unravel_index(int(worth.argmax()), worth.shape)
        spare -= loss[k, e]
        spare_critical -= loss_critical[k, e]
        at[e] = k
    return Schedule(
        *(
            np.stack([getattr(found[k], field.name)[e] for e, k in enumerate(at)])
            for field in fields(Schedule)
        )
    )


def relaxed_schedule(world: World, keys: Keys, multiplier: float, n: int) -> Schedule:
    """The relaxation's own outcomes, run through the simulator (with queues)."""
    opts = options(world, keys, n)
    return replay(world, keys, opts.outcomes.answered_by[Relaxed(opts).outcomes(multiplier)])
