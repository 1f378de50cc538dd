"""What an exchange usually takes, and for how long one that was seen tells of the next.

A device that has not sent for a while knows little of link and server, and before its first
exchange nothing. `UsualExchange` is what it can expect then, from training drives alone. The model
is a renewal: an exchange seen ``age`` ago still holds with probability ``exp(-age / memory_s)``;
otherwise link and server are as at any other moment of the training drives.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from agents.baselines.prediction import Floats
from offload_env.server_load import CELL_MS
from offload_env.world import World

_LAG_S: Final = 1.0
"""At which the memory is fitted: a device that stopped sending must decide at about that age when
to try again."""
_SHORTEST_S, _LONGEST_S = 0.1, 10.0
_MOMENTS: Final = 4096
_QUANTILES: Final = 32
_LEAST_MBPS: Final = 1e-3
"""In place of an outage's 0: no payload crosses within a time-out at this rate either."""


class UsualExchange:
    """See the module's text; A actions.

    Args:
        world: training world: its traces, its server's load, its time-out.

    Attributes:
        exchange_ms: float64 (`_QUANTILES`, A), equally likely durations of every pair, as if all
            sent, ascending: capacity and round trip of one moment, with the server's load of
            another, as the two do not depend on each other.
        memory_s: time constant, from 0.1 to 10 s: that of the exponential which the autocorrelation
            of the exchange, cut at the time-out, meets after a second.
    """

    def __init__(self, world: World) -> None:
        rate = np.maximum(np.concatenate([t.uplink_mbps for t in world.traces]), _LEAST_MBPS)
        away_ms = np.concatenate([t.rtt_ms for t in world.traces]) + world.cost.net_ms
        work_ms = _spread(world.server_work_ms, _MOMENTS)
        np.random.default_rng(0).shuffle(work_ms)
        ms_at_1_mbps = 8.0 * world.sent_bytes.mean(0) / 1e3
        sending = np.outer(1.0 / _spread(rate, _MOMENTS), ms_at_1_mbps)
        fixed = _spread(away_ms, _MOMENTS) + work_ms
        every = np.sort(sending + fixed[:, None] + world.server_ms, axis=0)
        self.exchange_ms: Floats = _spread(every, _QUANTILES)
        self.memory_s = _memory_s(world, float(np.median(ms_at_1_mbps[~world.topology.is_local])))


def _spread(values: Floats, n: int) -> Floats:
    """`n` values from the middles of equal stretches."""
    picked: Floats = values[((np.arange(n) + 0.5) * len(values) / n).astype(np.int64)]
    return picked


def _memory_s(world: World, ms_at_1_mbps: float) -> float:
    """Time constant of the exchange of one payload, along every training trace."""
    every = _along_traces(world, ms_at_1_mbps)
    mean = np.concatenate(every).mean()
    together = alone = lags_s = 0.0
    for exchange, trace in zip(every, world.traces, strict=True):
        deviation = exchange - mean
        lag = max(1, round(_LAG_S / trace.period_s))
        lags_s += lag * trace.period_s / len(every)
        together += float(deviation @ np.roll(deviation, -lag))  # a trace repeats after its end
        alone += float(deviation @ deviation)
    if together <= 0.0:
        return _SHORTEST_S
    return float(np.clip(lags_s / max(np.log(alone / together), 1e-9), _SHORTEST_S, _LONGEST_S))


def _along_traces(world: World, ms_at_1_mbps: float) -> list[Floats]:
    """One payload's exchange at every sample of every trace, float64 (T,) each, cut at time-out."""
    every, begin = list[Floats](), 0
    for trace in world.traces:
        cells = begin + (np.arange(len(trace.rtt_ms)) * trace.period_s * 1e3 / CELL_MS).astype(int)
        begin = int(cells[-1]) + 1
        wait_ms = world.server_work_ms[cells % len(world.server_work_ms)]
        sending_ms = ms_at_1_mbps / np.maximum(trace.uplink_mbps, _LEAST_MBPS)
        whole_ms = sending_ms + trace.rtt_ms + wait_ms
        every.append(np.minimum(whole_ms, world.scenario.timing.timeout_ms))
    return every
