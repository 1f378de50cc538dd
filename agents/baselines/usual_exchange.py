"""What an exchange usually takes, and for how long one that was seen tells of the next.

A device that has not sent for a while knows little of link and server, and before its first
exchange nothing. `UsualExchange` is what it can expect then, from training drives alone. Link and
server's load are two renewals: what was seen of one ``age`` ago still holds with probability
``exp(-age / memory)``; otherwise it is as at any other moment of the training drives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from agents.baselines.prediction import Floats
from offload_env.server_load import CELL_MS
from offload_env.world import World

_LAG_S: Final = 1.0
"""At which a memory is fitted: a device that stopped sending must decide at about that age when to
try again."""
_SHORTEST_S, _LONGEST_S = 0.1, 60.0
_MOMENTS: Final = 4096
_QUANTILES: Final = 16
_LEAST_MBPS: Final = 1e-3
"""In place of an outage's 0: no payload crosses within a time-out at this rate either."""


class UsualExchange:
    """See the module's text; K = `_QUANTILES` equally likely values each, A actions.

    Args:
        world: training world: its traces, its server's load, its time-out.

    Attributes:
        link_ms: float64 (K, A), sending and round trip of every pair, as if all sent, ascending.
        wait_ms: float64 (K,), at the server, ascending.
        exchange_ms: float64 (K, A), both and the server's computing, ascending: capacity and round
            trip of one moment with the load of another, as they do not depend on each other.
        link_memory_s, wait_memory_s: time constants, from 0.1 to 60 s: of the exponentials which
            the autocorrelations of either, cut at the time-out, meet after a second.
    """

    def __init__(self, world: World) -> None:
        traces, timeout_ms = world.traces, world.scenario.timing.timeout_ms
        rate = np.maximum(np.concatenate([t.uplink_mbps for t in traces]), _LEAST_MBPS)
        away_ms = np.concatenate([t.rtt_ms for t in traces]) + world.cost.net_ms
        ms_at_1_mbps = 8.0 * world.sent_bytes.mean(0) / 1e3
        sending_ms = np.outer(1.0 / _spread(rate, _MOMENTS), ms_at_1_mbps)
        link_ms = sending_ms + _spread(away_ms, _MOMENTS)[:, None]
        work_ms = _spread(world.server_work_ms, _MOMENTS)
        np.random.default_rng(0).shuffle(work_ms)
        whole_ms = link_ms + work_ms[:, None] + world.server_ms
        self.link_ms: Floats = _spread(np.sort(link_ms, axis=0), _QUANTILES)
        self.wait_ms: Floats = _spread(np.sort(work_ms), _QUANTILES)
        self.exchange_ms: Floats = _spread(np.sort(whole_ms, axis=0), _QUANTILES)
        one = float(np.median(ms_at_1_mbps[~world.topology.is_local]))
        along = [one / np.maximum(t.uplink_mbps, _LEAST_MBPS) + t.rtt_ms for t in traces]
        self.link_memory_s = _memory_s(
            [np.minimum(ms, timeout_ms) for ms in along], [t.period_s for t in traces]
        )
        waits = np.minimum(world.server_work_ms, timeout_ms)
        self.wait_memory_s = _memory_s([waits], [CELL_MS / 1e3])


def _spread(values: Floats, n: int) -> Floats:
    """`n` values from the middles of equal stretches."""
    picked: Floats = values[((np.arange(n) + 0.5) * len(values) / n).astype(np.int64)]
    return picked


def _memory_s(every: Sequence[Floats], periods_s: Sequence[float]) -> float:
    """Time constant of what changes along one or more series, each repeated after its end."""
    mean = np.concatenate(every).mean()
    together = alone = lags_s = 0.0
    for series, period_s in zip(every, periods_s, strict=True):
        deviation, lag = series - mean, max(1, round(_LAG_S / period_s))
        lags_s += lag * period_s / len(every)
        together += float(deviation @ np.roll(deviation, -lag))
        alone += float(deviation @ deviation)
    if together <= 0.0:
        return _SHORTEST_S
    return float(np.clip(lags_s / max(np.log(alone / together), 1e-9), _SHORTEST_S, _LONGEST_S))
