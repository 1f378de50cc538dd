"""A network trace: uplink capacity and base round trip over time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnn.errors import DataError


@dataclass(frozen=True, slots=True)
class Trace:
    """Piecewise-constant uplink capacity and base RTT, repeated when time runs past its end.

    Sample i holds from ``i * period_s`` to ``(i + 1) * period_s``.

    Attributes:
        uplink_mbps: float64 (T,), capacity, 1e6 bit/s; 0 is an outage.
        rtt_ms: float64 (T,), round trip of a tiny packet on an idle link, milliseconds.
        period_s: duration of one sample, seconds.
        name: such as ``sa24-20241101-145730`` or ``generated:urban-5g:7``.
        tech: ``5G`` or ``LTE``.
        source: ``measured`` or ``generated``, and which sets were joined.
    """

    uplink_mbps: NDArray[np.float64]
    rtt_ms: NDArray[np.float64]
    period_s: float
    name: str
    tech: str
    source: str

    def __post_init__(self) -> None:
        up, rtt = self.uplink_mbps, self.rtt_ms
        ok = up.ndim == 1 and up.shape == rtt.shape and len(up) > 0 and self.period_s > 0
        if not ok or not (np.isfinite(up).all() and np.isfinite(rtt).all()):
            raise DataError(
                f"trace {self.name}: {up.shape} capacities, {rtt.shape} round trips, "
                f"period {self.period_s} s",
                expected="two finite series of one equal length and a positive period",
                mend="check the trace file for gaps",
            )
        if up.min() < 0 or rtt.min() < 0 or up.max() == 0:
            raise DataError(
                f"trace {self.name}: capacity {up.min()}..{up.max()} Mbit/s, "
                f"RTT from {rtt.min()} ms",
                expected="no negative values and some capacity",
                mend="check the units of the trace file",
            )

    @property
    def duration_s(self) -> float:
        """Length of one pass, seconds."""
        return len(self.uplink_mbps) * self.period_s
