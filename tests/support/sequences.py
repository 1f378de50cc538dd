"""Short drives for the bound: all sequences of actions, and random ways through staged frames."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from offload_env.bound.programme import Options
from offload_env.bound.search import Schedule, replay
from offload_env.outcome import FALLBACK, SKIPPED, Outcome
from offload_env.simulator import Simulator
from offload_env.world import World
from testbed.policy.decision_points import START, decision_points


def every_sequence(world: World, key: int, n: int) -> Schedule:
    """All sequences of n actions, one decision a frame, as episodes of one key."""
    n_actions = world.topology.n_actions
    codes = np.arange(n_actions**n)
    actions = np.stack([codes // n_actions**k % n_actions for k in range(n)], 1)
    return replay(world, np.full(len(codes), key, np.uint64), actions)


class Frame(NamedTuple):
    """A frame that was run: whether it and the next one started late, and how it ended."""

    late: bool
    next_late: bool
    outcome: Outcome


def staged_drive(
    simulator: Simulator, key: int, n: int, rng: np.random.Generator, sends: bool = False
) -> list[Frame]:
    """n frames with a random legal action at every decision point.

    Args:
        simulator: of the world.
        key: of the episode.
        n: frames.
        rng: of the decisions.
        sends: send every frame at once, half of them with the early time-out.
    """
    points = decision_points(simulator.world.topology)
    simulator.reset(simulator.world.plan(key))
    drive = []
    for _ in range(n):
        late, outcome = simulator.queue_ms > 0, None
        while outcome is None:
            legal = np.flatnonzero(points.legal[simulator.point])
            if sends and simulator.point == START:
                legal = np.array(points.sending_early if rng.random() < 0.5 else points.sending)
            outcome = simulator.advance(int(rng.choice(legal)))
        drive.append(Frame(late, simulator.queue_ms > 0, outcome))
    return drive


def relaxed_cost(opts: Options, drive: list[Frame]) -> float:
    """What the relaxed problem counts for a drive, all frames together.

    Args:
        opts: of this one episode.
        drive: its frames.
    """
    of, price, captured = opts.outcomes, opts.tail_price, opts.captured_ms
    total, last = 0.0, 0  # `last`: number of the frame after the last exchange
    for i, (late, next_late, outcome) in enumerate(drive):
        if outcome.status == SKIPPED:
            end = of.skip
        elif outcome.status == FALLBACK:  # an early time-out counts as the local answer
            end = int(of.topology.exit_place[of.topology.exit_of[outcome.used]])
        else:
            end = int(of.outcome_of[outcome.action])
        costs = opts.delayed if late else opts.on_time
        after, within = (cost[0 if late else int(next_late), 0, i, end] for cost in costs)
        if end < of.n_quiet or not last or not price:
            total += after
        else:
            run_out = after + price * opts.tail_ends_ms[0, last - 1]
            total += min(within, run_out) - price * captured[last]
        last = last if end < of.n_quiet else i + 1
    if last and price:
        until = min(captured[len(drive)], opts.tail_ends_ms[0, last - 1])
        total += price * (until - captured[last])
    return float(total)
