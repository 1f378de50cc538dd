"""The ways through a frame and how it can end, as the bound counts them, and their prices.

A staged device may evaluate exits on its way. Each set of evaluated exits is a *way* and leads to
the same actions, later: `compute_ms` gives the times, as the simulator adds them up.

A *frame outcome* is an action that was answered, an exchange that timed out (one for each exit,
whose local answer is used), or a frame that is skipped. Outcomes that send nothing come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnn.topology import Topology
from offload_env.world import World

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Way = tuple[int, ...] | None
"""Exits evaluated on the way to an action, rising; the empty set is one decision a frame. None:
any set, in the least time that one takes."""

MOST_WAYS: Final = 64
"""Of a network with more sets than these, 2^(exits - 1), only `None` is looked at."""


class FrameOutcomes:
    """The ways through a frame of one network, and its outcomes.

    Outcomes are the local answers of the exits, the skipped frame, the answers of the actions that
    send, and the time-outs by exit, in this order.

    Attributes:
        topology: of the network.
        ways: all ways through a frame, or `None` alone if there are more than `MOST_WAYS`.
        sending: int64 (S,), canonical actions that send something; none if it cannot be cut.
        local: int64 (n_exits,), canonical local action of each exit.
        skip: outcome of a skipped frame.
        n_quiet: outcomes that send nothing; they come first, `skip` last among them.
        n: all outcomes.
        answered_by: int64 (n,), canonical action whose answer is used; the first exit's local one
            for `skip`, which has no answer.
        outcome_of: int64 (n_actions,), outcome of an action that is answered.
        time_out_of: int64 (n_actions,), outcome of an action whose exchange times out.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        early = topology.exits[:-1]
        sets = (exits for k in range(len(early) + 1) for exits in combinations(early, k))
        self.ways: tuple[Way, ...] = tuple(sets) if 2 ** len(early) <= MOST_WAYS else (None,)
        self.sending: Ints = np.flatnonzero(~topology.is_local)
        self.local: Ints = np.array(topology.local)
        self.skip = topology.n_exits
        self.n_quiet = self.skip + 1
        timed_out = self.n_quiet + len(self.sending)
        self.n = timed_out + topology.n_exits
        self.answered_by: Ints = np.concatenate(
            [self.local, self.local[:1], self.sending, self.local]
        )
        self.outcome_of: Ints = np.empty(topology.n_actions, np.int64)
        self.outcome_of[self.local] = np.arange(self.skip)
        self.outcome_of[self.sending] = np.arange(self.n_quiet, timed_out)
        self.time_out_of: Ints = timed_out + topology.exit_place[topology.exit_of]

    def open_actions(self, way: Way) -> Ints:
        """Canonical actions that are still open after the evaluated exits, int64 (K,)."""
        at = way[-1] if way else 0
        return np.array([a.index for a in self.topology.actions if a.split >= at and a.exit > at])


@lru_cache(maxsize=64)
def frame_outcomes_of(topology: Topology) -> FrameOutcomes:
    """The frame outcomes of one network; the same object for equal topologies."""
    return FrameOutcomes(topology)


class Costs(NamedTuple):
    """Lowest cost of every frame outcome, float64 (K, ..., n), by the state of the next frame.

    Where K is 2, index 0 is for a next frame on time and 1 for a delayed one; inf where an outcome
    does not lead there. With A the end of the exchange and T the price of the tail:

    Attributes:
        after_tail: cost without tail + T (capture of the next frame - A), for an exchange after
            the tail of the last one has run out; without an exchange the cost alone.
        within_tail: `after_tail` + T * hand-over, for one that begins within that tail.
    """

    after_tail: Floats
    within_tail: Floats

    @classmethod
    def none(cls, *shape: int) -> Costs:
        """No outcome leads anywhere yet."""
        return cls(np.full(shape, np.inf), np.full(shape, np.inf))

    def keep(
        self, to: int, outcome: int, cost: Floats, handed: Floats | float, where: NDArray[np.bool_]
    ) -> None:
        """Keep `cost` (and with `handed` more, the price of the hand-over) where it is less."""
        for least, new in ((self.after_tail, cost), (self.within_tail, cost + handed)):
            kept = least[to, ..., outcome]
            np.minimum(kept, new, out=kept, where=where)


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of a millisecond and of a millijoule.

    Attributes:
        delay: of a millisecond of delay.
        energy: of a millijoule, the premium included.
        tail: of a millisecond of the modem's tail; 0 if there is none, or if the bound leaves
            the tail out because a later answer would be cheaper (`offload_env.bound.proof`).
        miss: of a missed deadline.
    """

    delay: float
    energy: float
    tail: float
    miss: float

    @classmethod
    def of(cls, world: World, premium: float = 0.0) -> Prices:
        """A world's prices; `premium` is added to that of energy."""
        price, radio = world.scenario.price, world.cost.radio
        delay = price.delay_weight / world.delay_ref_ms
        energy = price.energy_weight / world.energy_ref_mj + premium
        tail = energy * radio.tail_mw / 1e3 if radio.tail_ms > 0 else 0.0
        return cls(delay, energy, tail if tail <= delay else 0.0, price.miss)

    def cost(self, delay_ms: Floats, energy_mj: Floats, deadline_ms: float) -> Floats:
        """Cost of answered frames without the modem's tail."""
        return (
            self.delay * delay_ms + self.energy * energy_mj + self.miss * (delay_ms > deadline_ms)
        )


def compute_ms(world: World, jitter: Floats, way: Way) -> Floats:
    """Device time up to the answer or the hand-over to the radio, for `open_actions`.

    Args:
        world: for the cost model.
        jitter: float64 (...), of each frame.
        way: evaluated exits.

    Returns:
        float64 (..., K).
    """
    if way is None:
        return least_and_most(world)[0] * jitter[..., None]
    topology, device, standing = world.topology, world.device_ms, world.standing_ms
    spent, at = np.zeros_like(jitter), 0
    for exit in way:
        spent = spent + max(device[topology.local_of[exit]] - standing[at], 0.0) * jitter
        at = exit
    actions = frame_outcomes_of(topology).open_actions(way)
    extra = np.maximum(device[actions] - standing[at], 0.0)
    times: Floats = spent[..., None] + extra * jitter[..., None]
    return times


def least_and_most(world: World) -> tuple[Floats, Floats]:
    """Shortest and longest device time of each action over all sets of evaluated exits, jitter 1.

    Returns:
        Two float64 (n_actions,).
    """
    topology, device, standing = world.topology, world.device_ms, world.standing_ms
    least, most = np.full(topology.n_actions, np.inf), np.zeros(topology.n_actions)
    spent = {0: (0.0, 0.0)}  # least and most until the exit evaluated last; 0: none
    for exit in topology.exits:
        for a in topology.actions:
            if a.exit == exit:
                reached = [
                    (lo + more, hi + more)
                    for at, (lo, hi) in spent.items()
                    if at <= a.split
                    for more in [max(device[a.index] - standing[at], 0.0)]
                ]
                least[a.index] = min(lo for lo, _ in reached)
                most[a.index] = max(hi for _, hi in reached)
        local = topology.local_of[exit]
        spent[exit] = float(least[local]), float(most[local])
    return least, most
