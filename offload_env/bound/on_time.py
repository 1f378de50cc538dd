"""What a frame costs that starts when it is captured and finds the radio free: exactly.

Then nothing of the past matters to it, and the simulator's outcome is known beforehand for
every way to go through the frame. `offload_env.bound.proof` counts on it: a schedule that costs
little hardly ever starts a frame late.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnn.topology import ACTIONS
from offload_env.bound.compute_before import LOOKS, compute_ms, open_actions
from offload_env.bound.frame_outcomes import CHOICE_OF, N_CHOICES, TIMED_OUT, Floats, Prices
from offload_env.episode import Plans
from offload_env.server_load import CELL_MS
from offload_env.world import LOCAL, POOL, World

OFFLOADS = np.array([not a.is_local for a in ACTIONS])
_EXIT = np.array([a.exit for a in ACTIONS])


@dataclass(frozen=True, slots=True)
class Ending:
    """Ways through one frame for E episodes of n frames, by the state that they lead to.

    Attributes:
        late: bool (E, n, K), the next frame starts late.
        fell: bool (E, n, K), the exchange timed out.
        ready_ms: float64 (E, n, K), hand-over to the radio, since the start of the episode.
        answer_ms: float64 (E, n, K), end of the exchange (answer or time-out).
        delay_ms: float64 (E, n, K).
        energy_mj: float64 (E, n, K), without the modem's tail.
    """

    late: NDArray[np.bool_]
    fell: NDArray[np.bool_]
    ready_ms: Floats
    answer_ms: Floats
    delay_ms: Floats
    energy_mj: Floats


@dataclass(frozen=True, slots=True)
class Punctual:
    """Least costs of every choice of a punctual frame, float64 (2, E, n, 26) each.

    The first index says whether the next frame is punctual (0) or not (1); inf where a choice
    does not lead there. With A the end of the exchange and T the price of the tail:

    Attributes:
        far: cost without tail + T (capture of the next frame - A); without an exchange the
            cost alone.
        near: `far` + T * hand-over.
    """

    far: Floats
    near: Floats


def punctual(
    world: World, plans: Plans, rows: NDArray[np.int64], captured_ms: Floats, prices: Prices
) -> Punctual:
    """All ways through punctual frames, the cheapest of each choice kept.

    Args:
        world: scenario and split.
        plans: of E episodes.
        rows: int64 (E, n), table rows.
        captured_ms: float64 (n + 1,).
        prices: of delay, energy and tail.
    """
    shape = (2, *rows.shape, N_CHOICES)
    far, near = np.full(shape, np.inf), np.full(shape, np.inf)
    deadline_ms = world.scenario.timing.deadline_ms
    for evaluated in LOOKS:
        end = endings(world, plans, rows, captured_ms, evaluated)
        cost = prices.cost(end.delay_ms, end.energy_mj, deadline_ms)
        for k, action in enumerate(open_actions(evaluated)):
            sends = bool(OFFLOADS[action])
            own = cost[..., k]
            if sends:
                own = own + prices.tail * (captured_ms[1:] - end.answer_ms[..., k])
            handed = own + prices.tail * end.ready_ms[..., k] if sends else own
            for late in (False, True):
                there = end.late[..., k] == late
                _keep(far[int(late)], CHOICE_OF[action], own, there & ~end.fell[..., k])
                _keep(near[int(late)], CHOICE_OF[action], handed, there & ~end.fell[..., k])
                if sends:
                    choice = TIMED_OUT + _EXIT[action] - 1
                    _keep(far[int(late)], choice, own, there & end.fell[..., k])
                    _keep(near[int(late)], choice, handed, there & end.fell[..., k])
    _give_up(world, far, near, prices)
    return Punctual(far, near)


def _give_up(world: World, far: Floats, near: Floats, prices: Prices) -> None:
    """Allow for a device that gives up, answers locally, and is late for the next frame.

    It costs no less than plain local processing, and the device has been at work until the next
    capture. (One that is not late is the plain local choice to the bound:
    `offload_env.bound.proof`.)
    """
    timing, cost = world.scenario.timing, world.cost
    least_mw = min(cost.busy_mw, cost.idle_mw + cost.radio.active_mw)
    # Late means beyond the next capture: a deadline that comes no later is missed.
    until = np.array(np.nextafter(timing.period_ms, np.inf))
    least_mj = np.array(least_mw * timing.period_ms / 1e3)
    busy = prices.cost(until, least_mj, timing.deadline_ms)
    for choice in CHOICE_OF[list(LOCAL)]:
        local = np.minimum(far[0, ..., choice], far[1, ..., choice])
        for costs in (far, near):
            np.minimum(costs[1, ..., choice], np.maximum(local, busy), out=costs[1, ..., choice])


def _keep(least: Floats, choice: int, cost: Floats, where: NDArray[np.bool_]) -> None:
    np.minimum(least[..., choice], cost, out=least[..., choice], where=where)


def endings(
    world: World,
    plans: Plans,
    rows: NDArray[np.int64],
    captured_ms: Floats,
    evaluated: tuple[int, ...],
) -> Ending:
    """Every open action after the looks, with the simulator's arithmetic.

    Returns:
        K = number of `open_actions(evaluated)`.
    """
    timing, cost, pool = world.scenario.timing, world.cost, world.pool
    n = rows.shape[1]
    at = (plans.jitter_at[:, None] + np.arange(n)) & (POOL - 1)
    jitter = world.device_jitter[at]
    actions = open_actions(evaluated)
    off = OFFLOADS[actions]
    compute = compute_ms(world, jitter, evaluated)
    captured, following = captured_ms[:-1, None], captured_ms[1:, None]
    sent = captured + compute
    size = world.sent_bytes[rows][..., actions]
    each = n * len(actions)
    lane = pool.lanes(np.repeat(plans.trace, each))
    offset = plans.offset_ms[:, None, None]
    left, up = (
        part.reshape(sent.shape)
        for part in pool.send(lane, (sent + offset).ravel(), 8 * size.ravel())
    )
    left = left - offset
    arrive = left + up
    cell = (arrive / CELL_MS).astype(np.int64)
    work = world.server_work_ms[np.minimum(plans.server_cell[:, None, None] + cell, POOL - 1)]
    wait = np.maximum(work - (arrive - cell * CELL_MS), 0.0)
    far = world.server_ms[actions] * world.server_jitter[at][..., None]
    back = (((arrive + wait) + far) + offset).ravel()
    down = pool.one_way(lane, back).reshape(sent.shape)
    exchange = (left - sent) + up + down + cost.net_ms + wait + far
    fell = (exchange > timing.timeout_ms) & off
    exchange = np.minimum(exchange, timing.timeout_ms) * off
    fallback = world.fallback_ms[actions] * jitter[..., None] * fell
    end = sent + exchange
    free = end + fallback
    hold_mw = cost.idle_mw + cost.radio.active_mw
    energy = (cost.busy_mw * (compute + fallback) + hold_mw * exchange) / 1e3
    energy = energy + cost.radio.tx_mw_per_mbps * 8e-6 * size * off
    return Ending(free > following, fell, sent, end, free - captured, energy)
