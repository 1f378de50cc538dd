"""The timing that suits a device, by one rule. The shipped scenarios have much the same."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from offload_env.scenario import Timing
from testbed.meters.cost_model import CostModel

RESERVE: Final = 1.1
"""Device times are taken a tenth longer: they vary."""
LEAST_PERIOD_MS: Final = 100.0
PERIOD_STEP_MS: Final = 50.0
WAITS: Final = (8, 12)
"""Shortest and longest time-out, in twentieths of the deadline."""


def timing_for(cost: CostModel, period_ms: float | None = None) -> tuple[Timing, tuple[str, ...]]:
    """The timing that suits a device, and the reasons.

    - Period: at least 100 ms (ten frames a second), and so long that full local processing keeps up
      and that the shortest time-out below leaves enough time; a multiple of 50 ms.
    - Deadline: the period, and a frame that has waited for so long is skipped. An answer is due
      before the next frame.
    - Time-out: after it the shallowest exit that can follow still meets the deadline. It is 8 to 12
      twentieths of the deadline: a device that would be done much sooner need not wait longer for a
      lost answer.

    Device times count `RESERVE`-fold. For the devices of ``urban-5g``, ``busy-edge`` and
    ``highway-lte`` this gives those scenarios' figures; the others have a faster or slower camera,
    or a shorter time-out.

    Args:
        cost: the device, with its slowdown.
        period_ms: instead of the rule's.

    Raises:
        ConfigError: if a time is out of the range of `Timing`.
    """
    at = cost.topology
    local_ms = cost.slowdown * cost.device_ms[at.main]
    # Head, encoder, and finishing the exit on the device after the time-out.
    ends = {
        a: cost.slowdown * (cost.device_ms[a.index] + cost.fallback_ms[a.index])
        for a in at.actions
        if not a.is_local
    }
    shallow = min(ends, key=lambda a: ends[a], default=None)
    finish_ms = 0.0 if shallow is None else ends[shallow]
    least, most = WAITS
    period, why = period_ms, "as given"
    if period is None:
        needed = RESERVE * max(local_ms, finish_ms / (1 - least / 20))
        period = max(LEAST_PERIOD_MS, PERIOD_STEP_MS * math.ceil(needed / PERIOD_STEP_MS))
        why = f"full local processing takes {local_ms:.4g} ms and keeps up"
    timing = Timing(period_ms=period)  # checks its range
    free = math.floor(20 * (1 - RESERVE * finish_ms / period) + 1e-9)
    timeout = round(period * min(max(free, least), most) / 20, 6)
    if shallow is None:
        then = "this network sends nothing"
    else:
        meets = "meets" if timeout + finish_ms <= period else "MISSES"
        then = f"after it {shallow.name}, {finish_ms:.4g} ms on the device, {meets} the deadline"
    reasons = (
        f"period_ms {period:g}: {why}",
        f"deadline_ms, max_queue_ms {period:g}: an answer is due before the next frame",
        f"timeout_ms {timeout:g}: {then}",
    )
    return replace(timing, timeout_ms=timeout, deadline_ms=period, max_queue_ms=period), reasons
