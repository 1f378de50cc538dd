"""Every way through a punctual frame, staged ones included, against the simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from cnn.action import ACTIONS
from offload_env.bound import episode_keys
from offload_env.looks import LOOKS, open_actions
from offload_env.punctual import endings
from offload_env.sequences import Relaxed, options
from offload_env.simulator import FALLBACK, Outcome, Simulator
from offload_env.world import World

Way = tuple[tuple[int, ...], int]
"""Exits looked at, and the action at the end."""


def _ways() -> Iterator[Way]:
    for looked in LOOKS:
        for action in open_actions(looked):
            yield looked, int(action)


def _go(simulator: Simulator, looked: tuple[int, ...], action: int) -> Outcome:
    """One frame of the staged problem."""
    if simulator.will_skip:
        return simulator.step(action)
    for exit in looked:
        simulator.evaluate_exit(exit)
    if ACTIONS[action].is_local:
        simulator.evaluate_exit(ACTIONS[action].exit)
        return simulator.answer()
    return simulator.send(action)


@pytest.fixture(scope="module")
def worlds(make_world: Callable[..., World]) -> list[World]:
    """Without a tail and with one; time-outs, a loaded server, outages."""
    base = make_world()
    price = replace(base.scenario.price, energy_budget_mj=0.0)
    none = replace(base.cost, radio=replace(base.cost.radio, tail_ms=0.0, tail_mw=0.0))
    long = replace(base.cost, radio=replace(base.cost.radio, tail_ms=100.0))
    return [make_world(price=price, cost=none), make_world(price=price, cost=long)]


def test_a_punctual_frame_costs_what_the_simulator_says(worlds: list[World]) -> None:
    world = worlds[0]
    keys = episode_keys(5, 12)
    plans = world.plans(keys)
    rows = np.stack([world.rows(int(key), 2) for key in keys])
    captured = np.arange(3) * world.scenario.timing.period_ms
    fell = late = 0
    for looked in LOOKS:
        end = endings(world, plans, rows, captured, looked)
        for e, key in enumerate(keys):
            for k, action in enumerate(open_actions(looked)):
                simulator = Simulator(world)
                simulator.reset(world.plan(int(key)))
                outcome = _go(simulator, looked, int(action))
                assert end.delay_ms[e, 0, k] == outcome.delay_ms
                assert end.energy_mj[e, 0, k] == pytest.approx(outcome.energy_mj, rel=1e-12)
                assert end.fell[e, 0, k] == (outcome.status == FALLBACK)
                if simulator.queue_ms > 0:
                    assert end.late[e, 0, k]
                fell += outcome.status == FALLBACK
                late += simulator.queue_ms > 0
    assert fell
    assert late


@pytest.mark.parametrize("which", [0, 1])
def test_no_staged_sequence_beats_the_relaxation(which: int, worlds: list[World]) -> None:
    """All ways through two frames, looks included, and every tail that follows."""
    world, ways = worlds[which], list(_ways())
    for key in episode_keys(6 + which, 4):
        relaxed = Relaxed(options(world, np.array([key], np.uint64), 2))
        simulator = Simulator(world)
        costs, errors = [], []
        for first, second in product(ways, ways):
            simulator.reset(world.plan(int(key)))
            outcomes = [_go(simulator, *first), _go(simulator, *second)]
            costs.append(np.mean([o.cost for o in outcomes]))
            errors.append(1.0 - np.mean([o.correct for o in outcomes]))
        for multiplier in (0.0, 0.4, 3.0):
            least = (np.array(costs) + multiplier * np.array(errors)).min()
            assert relaxed.solve(multiplier).value <= least + 1e-9
