"""The exact cost of a frame that starts when it is captured and finds the radio free.

Nothing that happened before affects such a frame, so the simulator's outcome is known in advance
for every way through the frame. `offload_env.bound.proof` relies on it: a cheap schedule hardly
ever starts a frame late.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offload_env.bound.frame_outcomes import (
    Costs,
    Floats,
    Ints,
    Prices,
    Way,
    compute_ms,
    frame_outcomes_of,
)
from offload_env.episode import Plans
from offload_env.exchange import BatchExchanges
from offload_env.world import POOL, World


@dataclass(frozen=True, slots=True)
class Ending:
    """Ways through one frame for E episodes of n frames, by the state that they lead to.

    Attributes:
        delayed: bool (E, n, K), the next frame starts late.
        timed_out: bool (E, n, K), the exchange timed out.
        ready_ms: float64 (E, n, K), hand-over to the radio, since the start of the episode.
        answer_ms: float64 (E, n, K), end of the exchange (answer or time-out).
        delay_ms: float64 (E, n, K).
        energy_mj: float64 (E, n, K), without the modem's tail.
    """

    delayed: NDArray[np.bool_]
    timed_out: NDArray[np.bool_]
    ready_ms: Floats
    answer_ms: Floats
    delay_ms: Floats
    energy_mj: Floats


def on_time_costs(
    world: World,
    plans: Plans,
    rows: Ints,
    captured_ms: Floats,
    prices: Prices,
    promotion_ms: float = 0.0,
) -> Costs:
    """All ways through frames on time, the cheapest of each outcome kept, (2, E, n, outcomes).

    Args:
        world: scenario and split.
        plans: of E episodes.
        rows: int64 (E, n), table rows.
        captured_ms: float64 (n + 1,).
        prices: of delay, energy and tail.
        promotion_ms: that every payload waits for; 0 with a connected modem.
    """
    outcomes = frame_outcomes_of(world.topology)
    is_local = outcomes.topology.is_local
    costs = Costs.none(2, *rows.shape, outcomes.n)
    for way in outcomes.ways:
        end = endings(world, plans, rows, captured_ms, way, promotion_ms)
        cost = prices.cost(end.delay_ms, end.energy_mj, world.scenario.timing.deadline_ms)
        for k, action in enumerate(outcomes.open_actions(way)):
            own, handed = cost[..., k], np.zeros(())
            if not is_local[action]:
                own = own + prices.tail * (captured_ms[1:] - end.answer_ms[..., k])
                handed = prices.tail * end.ready_ms[..., k]
            timed_out = end.timed_out[..., k]
            for to in (0, 1):
                there = end.delayed[..., k] == to
                costs.keep(to, outcomes.outcome_of[action], own, handed, there & ~timed_out)
                costs.keep(to, outcomes.time_out_of[action], own, handed, there & timed_out)
    _allow_early_time_outs(world, costs, prices)
    return costs


def _allow_early_time_outs(world: World, costs: Costs, prices: Prices) -> None:
    """Allow for a device that times out early, answers locally, and is delayed for the next frame.

    It costs no less than plain local processing, and the device has been busy until the next
    capture. (If it is not delayed, the bound counts it as the plain local outcome:
    `offload_env.bound.proof`.)
    """
    timing, cost = world.scenario.timing, world.cost
    # Beside the tail of an earlier exchange, which may be counted until the next capture.
    tail_mw = cost.radio.tail_mw if prices.tail else 0.0
    least_mw = min(cost.busy_mw, cost.exchange_mw - tail_mw)
    # Delayed means beyond the next capture, so a deadline before that capture is missed.
    until = np.array(np.nextafter(timing.period_ms, np.inf))
    least_mj = np.array(least_mw * timing.period_ms / 1e3)
    busy = prices.cost(until, least_mj, timing.deadline_ms)
    for outcome in range(world.topology.n_exits):  # the local answers
        local = np.minimum(*costs.after_tail[..., outcome])
        costs.keep(1, outcome, np.maximum(local, busy), 0.0, np.array(True))


def endings(
    world: World,
    plans: Plans,
    rows: Ints,
    captured_ms: Floats,
    way: Way,
    promotion_ms: float = 0.0,
) -> Ending:
    """Every action that is open after the evaluated exits, with the simulator's arithmetic.

    Returns:
        K = number of `FrameOutcomes.open_actions`.
    """
    timing, cost = world.scenario.timing, world.cost
    n = rows.shape[1]
    at = (plans.jitter_at[:, None] + np.arange(n)) & (POOL - 1)
    jitter = world.device_jitter[at]
    topology = world.topology
    actions = frame_outcomes_of(topology).open_actions(way)
    off = ~topology.is_local[actions]
    compute = compute_ms(world, jitter, way)
    captured, following = captured_ms[:-1, None], captured_ms[1:, None]
    sent = captured + compute
    size = world.sent_bytes[rows][..., actions]
    serve = world.server_ms[actions] * world.server_jitter[at][..., None]
    episode = np.repeat(np.arange(len(rows)), n * len(actions))
    exchanges = BatchExchanges(world).of(
        world.pool.lanes(plans.trace[episode]),
        plans.offset_ms[episode],
        plans.server_cell[episode],
        sent.ravel(),
        sent.ravel() + promotion_ms,  # the radio is free
        size.ravel(),
        serve.ravel(),
    )
    exchange = exchanges.total_ms.reshape(sent.shape)
    timed_out = (exchange > timing.timeout_ms) & off
    exchange = np.minimum(exchange, timing.timeout_ms) * off
    fallback = world.fallback_ms[actions] * jitter[..., None] * timed_out
    end = sent + exchange
    free = end + fallback
    energy = (cost.busy_mw * (compute + fallback) + cost.exchange_mw * exchange) / 1e3
    energy = energy + cost.radio.mj_per_byte * size * off
    return Ending(free > following, timed_out, sent, end, free - captured, energy)
