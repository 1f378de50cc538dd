"""Every way through a frame on time, staged ones included, against the simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from sequences import relaxed_cost, staged_drive

from cnn.topology import SHIPPED
from offload_env.bound.frame_outcomes import Prices, frame_outcomes_of
from offload_env.bound.on_time import endings
from offload_env.bound.programme import Relaxed, options
from offload_env.bound.relaxed import may_be_busy
from offload_env.episode import episode_keys
from offload_env.simulator import FALLBACK, OK, Outcome, Simulator
from offload_env.world import World
from testbed.traces.trace import Trace

OUTCOMES = frame_outcomes_of(SHIPPED)
Exits = tuple[int, ...]


def _ways() -> Iterator[tuple[Exits, int]]:
    """Evaluated exits, and the action at the end."""
    for evaluated in OUTCOMES.ways:
        assert evaluated is not None
        for action in OUTCOMES.open_actions(evaluated):
            yield evaluated, int(action)


def _go(
    simulator: Simulator,
    evaluated: Exits,
    action: int,
    early: bool = False,
    then: Exits | None = None,
) -> Outcome:
    """One frame of the staged problem.

    Args:
        simulator: with the frame in front.
        evaluated: exits evaluated before `action`.
        action: canonical.
        early: time out early.
        then: exits evaluated after the early time-out; None is the action's.
    """
    if simulator.will_skip:
        return simulator.settle(action)
    for exit in evaluated:
        simulator.evaluate_exit(exit)
    if SHIPPED.actions[action].is_local:
        simulator.evaluate_exit(SHIPPED.actions[action].exit)
        return simulator.answer()
    outcome = simulator.send(action, early)
    if outcome is None:
        for exit in (SHIPPED.actions[action].exit,) if then is None else then:
            simulator.evaluate_exit(exit)
        return simulator.answer()
    return outcome


def _ways_after_time_outs() -> Iterator[tuple[Exits, int, bool, Exits]]:
    """Arguments of `_go` for every way that sends, whatever it does if no answer comes."""
    for evaluated, action in _ways():
        split = SHIPPED.actions[action].split
        if SHIPPED.actions[action].is_local:
            continue
        ahead = [e for e in range(1, 6) if e >= split and e not in evaluated]
        for n in range(0 if evaluated else 1, 3):
            for then, early in product(combinations(ahead, n), (False, True)):
                yield evaluated, action, early, then


@pytest.fixture(scope="module")
def worlds(make_world: Callable[..., World]) -> list[World]:
    """Without a tail and with one; time-outs, a loaded server, outages."""
    base = make_world()
    price = replace(base.scenario.price, energy_budget_mj=0.0)
    none = replace(base.cost, radio=replace(base.cost.radio, tail_ms=0.0, tail_mw=0.0))
    long = replace(base.cost, radio=replace(base.cost.radio, tail_ms=100.0))
    return [make_world(price=price, cost=none), make_world(price=price, cost=long)]


def test_a_frame_on_time_costs_what_the_simulator_says(worlds: list[World]) -> None:
    world = worlds[0]
    keys = episode_keys(5, 12)
    plans = world.plans(keys)
    rows = np.stack([world.rows(int(key), 2) for key in keys])
    captured = np.arange(3) * world.scenario.timing.period_ms
    simulator, timed_out, delayed = Simulator(world), 0, 0
    for evaluated in OUTCOMES.ways:
        assert evaluated is not None
        end = endings(world, plans, rows, captured, evaluated)
        for e, key in enumerate(keys):
            for k, action in enumerate(OUTCOMES.open_actions(evaluated)):
                simulator.reset(world.plan(int(key)))
                outcome = _go(simulator, evaluated, int(action))
                if outcome.status == FALLBACK:  # the simulator adds its parts up one by one
                    assert end.delay_ms[e, 0, k] == pytest.approx(outcome.delay_ms, rel=1e-12)
                else:
                    assert end.delay_ms[e, 0, k] == outcome.delay_ms
                assert end.energy_mj[e, 0, k] == pytest.approx(outcome.energy_mj, rel=1e-12)
                assert end.timed_out[e, 0, k] == (outcome.status == FALLBACK)
                if simulator.queue_ms > 0:
                    assert end.delayed[e, 0, k]
                timed_out += outcome.status == FALLBACK
                delayed += simulator.queue_ms > 0
    assert timed_out
    assert delayed


@pytest.mark.slow(6)
@pytest.mark.parametrize("which", [0, 1])
def test_no_staged_sequence_beats_the_relaxation(which: int, worlds: list[World]) -> None:
    """All ways through two frames, evaluated exits included, and every tail that follows."""
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


@pytest.mark.slow(5)
@pytest.mark.parametrize("which", [0, 1])
def test_an_early_time_out_does_not_beat_the_relaxation(which: int, worlds: list[World]) -> None:
    """Some ways through three frames, with whatever a device may do after a time-out."""
    world, ways = worlds[which], list(_ways_after_time_outs())
    rng, timed_out = np.random.default_rng(0), 0
    for key in episode_keys(9 + which, 6):
        relaxed = Relaxed(options(world, np.array([key], np.uint64), 3))
        simulator = Simulator(world)
        costs, errors = [], []
        for _ in range(2500):
            simulator.reset(world.plan(int(key)))
            outcomes = [_go(simulator, *ways[rng.integers(len(ways))]) for _ in range(3)]
            timed_out += sum(o.status == FALLBACK for o in outcomes)
            costs.append(np.mean([o.cost for o in outcomes]))
            errors.append(1.0 - np.mean([o.correct for o in outcomes]))
        for multiplier in (0.0, 0.4, 3.0):
            least = (np.array(costs) + multiplier * np.array(errors)).min()
            assert relaxed.solve(multiplier).value <= least + 1e-9
    assert timed_out > 1000


def test_a_busy_radio_is_foreseen(make_world: Callable[..., World]) -> None:
    """A frame that starts on time behind abandoned payloads is one of `may_be_busy`'s."""
    rates = np.array([50.0, 0.0, 50.0, 2.0, 50.0, 50.0, 0.3, 50.0])
    trace = Trace(rates, np.full(8, 15.0), 0.2, "some outages", "5G", "generated")
    base = make_world()
    timing = replace(base.scenario.timing, period_ms=150.0)
    world = make_world(traces=[trace], timing=timing)
    n, keys = timing.n_frames, episode_keys(3, 40)
    captured = np.arange(n + 1) * timing.period_ms
    foreseen = may_be_busy(world, world.plans(keys), captured)
    assert foreseen.mean() < 0.6
    ways, rng, busy = list(_ways_after_time_outs()), np.random.default_rng(1), 0
    for episode, key in enumerate(keys):
        simulator = Simulator(world)
        simulator.reset(world.plan(int(key)))
        for frame in range(n):
            if simulator.queue_ms == 0 and simulator.radio_free_ms > simulator.now_ms:
                assert foreseen[episode, frame]
                busy += 1
            _go(simulator, *ways[rng.integers(len(ways))])
    assert busy > 50


def _tailed(
    make_world: Callable[..., World],
    trace: Trace,
    period_ms: float,
    timeout_ms: float,
    slowdown: float,
    **price: float,
) -> World:
    """A modem tail beyond the next capture, time-outs, no energy budget."""
    base = make_world()
    timing = replace(
        base.scenario.timing, period_ms=period_ms, timeout_ms=timeout_ms, max_queue_ms=100.0
    )
    return make_world(
        traces=[trace],
        timing=timing,
        price=replace(base.scenario.price, energy_budget_mj=0.0, **price),
        cost=replace(base.cost, slowdown=slowdown),
    )


@pytest.mark.slow(1)
def test_a_time_out_that_delays_the_next_frame_costs_what_is_counted_at_least(
    make_world: Callable[..., World],
) -> None:
    """Its exchange, too, interrupts the tail of the one before."""
    steady = Trace(np.full(20, 0.5), np.full(20, 15.0), 0.2, "steady", "5G", "generated")
    world = _tailed(make_world, steady, 60.0, 50.0, 3.0, delay_weight=0.1)
    simulator, rng, hit = Simulator(world), np.random.default_rng(0), 0
    for key in episode_keys(3, 20):
        opts = options(world, np.array([key], np.uint64), 3)
        assert opts.tail_price > 0
        for _ in range(60):
            drive = staged_drive(simulator, int(key), 3, rng, sends=True)
            assert relaxed_cost(opts, drive) <= sum(f.outcome.cost for f in drive) + 1e-9
            last = drive[-1]
            hit += last.outcome.status == FALLBACK and last.next_late and not last.late
    assert hit > 100


@pytest.mark.slow(2)
def test_a_frame_behind_abandoned_payloads_costs_what_is_counted_at_least(
    make_world: Callable[..., World],
) -> None:
    """Whether or not its answer comes after the next capture."""
    rates = np.array([50, 0, 50, 2, 50, 50, 0.3, 50, 5, 3, 50, 3, 8, 6, 2, 4.0])
    trace = Trace(rates, np.full(16, 15.0), 0.2, "some outages", "5G", "generated")
    world = _tailed(make_world, trace, 100.0, 150.0, 1.0)
    prices, radio, n, hit = Prices.of(world), world.cost.radio, 40, 0
    simulator, rng = Simulator(world), np.random.default_rng(0)
    for key in episode_keys(3, 50)[40:]:
        opts = options(world, np.array([key], np.uint64), n)
        captured = opts.captured_ms
        for _ in range(30):
            for i, frame in enumerate(staged_drive(simulator, int(key), n, rng, sends=True)):
                outcome = frame.outcome
                if frame.late or outcome.status != OK:  # all were sent
                    continue
                action = outcome.action
                end = captured[i] + outcome.delay_ms
                send_mj = radio.mj_per_byte * world.sent_bytes[outcome.row, action]
                tail_mj = outcome.radio_mj - radio.active_mw * outcome.exchange_ms / 1e3 - send_mj
                own = outcome.cost - prices.energy * tail_mj + prices.tail * (captured[i + 1] - end)
                to, ends_as = int(frame.next_late), OUTCOMES.outcome_of[action]
                assert opts.on_time.after_tail[to, 0, i, ends_as] <= own + 1e-9
                hit += to
    assert hit > 20
