"""What a frame costs at least that starts when it is captured, but may find the radio busy.

A staged device may give up waiting, answer locally, and be free for the next capture while the
payload that it gave up has not left. The next payload is handed over when its way through the
frame says, to the millisecond, and leaves when the radio is free: no earlier than it would have.
By the argument of `offload_env.bound.relaxed` its answer is no earlier than the lower envelope of
the answers from there on. So both its delay and its exchange are at least what this makes of them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cnn.topology import ACTIONS
from offload_env.bound.compute_before import LOOKS, compute_ms, open_actions
from offload_env.bound.frame_outcomes import CHOICE_OF, N_CHOICES, TIMED_OUT, Floats, Prices
from offload_env.bound.relaxed import Links
from offload_env.episode import Plans
from offload_env.trace_pool import SLACK_BITS
from offload_env.world import POOL, World
from testbed.policy.estimators import PATIENCE, PRIOR_RTT_MS


def may_jam(world: World, plans: Plans, captured_ms: Floats) -> NDArray[np.bool_]:
    """Whether payloads given up before can still occupy the radio at a capture, bool (E, n).

    Say the radio is busy at the capture c_i, without a pause since frame j < i was sent at s. From
    s until c_i the link then carries less than i - j of the largest payloads. After s the device
    waited for its patience at least before frame j + 1 began, no later than ``max_queue_ms`` after
    its capture (at c_i, if j + 1 = i). Patience is at least two shortest round trips of the trace
    (`testbed.policy.estimators.early_timeout_ms`: the mean starts at a prior and learns from
    transfers).
    """
    pool, timing, n = world.pool, world.scenario.timing, len(captured_ms) - 1
    most_bits = 8.0 * float(world.sent_bytes.max())
    shortest = np.minimum(2.0 * pool.least_one_way_ms[plans.trace], PRIOR_RTT_MS)
    patience = np.minimum(PATIENCE * shortest, timing.timeout_ms)[:, None]
    lane = pool.lanes(np.repeat(plans.trace, n))

    def carried(until_ms: Floats) -> Floats:
        """Bits until times of the drive, (E, n); nothing before it begins."""
        at = (plans.offset_ms[:, None] + np.maximum(until_ms, 0.0)).ravel()
        return pool.carried_bits(lane, at).reshape(-1, n)

    captured = captured_ms[:-1]
    before = carried(np.broadcast_to(captured, (len(patience), n)))
    # Of frames so shortly before, the capture at c_i limits when they were sent, not the queue.
    near = max(1, math.ceil(timing.max_queue_ms / timing.period_ms))
    jam = before - carried(captured - patience) < near * most_bits + SLACK_BITS
    # Of all others at once: carried(c_i) - i payloads < carried(latest s) - j payloads.
    frames = most_bits * np.arange(n)
    sent = carried(captured_ms[1:] + timing.max_queue_ms - patience) - frames
    most = np.maximum.accumulate(sent, axis=1)[:, : max(0, n - near - 1)]
    jam[:, near + 1 :] |= (before - frames)[:, near + 1 :] < most + SLACK_BITS
    jam[:, 0] = False
    return jam


def jammed(
    world: World,
    plans: Plans,
    rows: NDArray[np.int64],
    captured_ms: Floats,
    prices: Prices,
    where: NDArray[np.bool_],
) -> tuple[Floats, Floats]:
    """Least costs of the choices that send, of the K frames in `where`, bool (E, n).

    Args:
        world, plans, rows, captured_ms, prices: as in `offload_env.bound.on_time.punctual`.
        where: frames.

    Returns:
        (far, near), float64 (2, K, 26) each, as in `offload_env.bound.on_time.Punctual`; inf for
        choices that send nothing.
    """
    timing, cost = world.scenario.timing, world.cost
    episode, frame = np.nonzero(where)
    these = Plans(*(getattr(plans, name)[episode] for name in Plans.__slots__))
    at = (these.jitter_at + frame) & (POOL - 1)
    jitter, slow = world.device_jitter[at], world.server_jitter[at][:, None]
    captured, following = captured_ms[frame][:, None], captured_ms[frame + 1][:, None]
    hold_mw = cost.idle_mw + cost.radio.active_mw
    least_mw = min(cost.busy_mw, hold_mw)
    far, near = (np.full((2, len(frame), N_CHOICES), np.inf) for _ in range(2))
    if not len(frame):
        return far, near
    for evaluated in LOOKS:
        actions = open_actions(evaluated)
        sends = np.array([not ACTIONS[a].is_local for a in actions])
        compute, actions = compute_ms(world, jitter, evaluated)[:, sends], actions[sends]
        handed = captured + compute
        size = world.sent_bytes[rows[where]][:, actions]
        links = Links(world, these, handed.shape, 0.0)
        answer = links.earliest_answer(handed, 8.0 * size, world.server_ms[actions] * slow)
        late = answer - handed > timing.timeout_ms
        fallback = world.fallback_ms[actions] * jitter[:, None]
        ends = (
            (CHOICE_OF[actions], answer, 0.0, ~late),
            (
                np.array([TIMED_OUT + ACTIONS[a].exit - 1 for a in actions]),
                handed + timing.timeout_ms,
                fallback,
                np.ones_like(late),
            ),
        )
        for choices, end, after, possible in ends:
            busy_mj = cost.busy_mw * (compute + after) / 1e3
            sent_mj = hold_mw * (end - handed) / 1e3 + cost.radio.tx_mw_per_mbps * 8e-6 * size
            free = end + after
            # Late for the next frame: at work until its capture at least.
            until = np.maximum(free, np.nextafter(following, np.inf))
            for to, there in ((0, free), (1, until)):
                energy = busy_mj + sent_mj + least_mw * (there - free) / 1e3
                own = prices.cost(there - captured, energy, timing.deadline_ms)
                own = own + prices.tail * (following - end)
                for k, choice in enumerate(choices):
                    for costs, more in ((far, 0.0), (near, prices.tail * handed[:, k])):
                        better = np.where(possible[:, k], own[:, k] + more, np.inf)
                        np.minimum(costs[to, :, choice], better, out=costs[to, :, choice])
    return far, near
