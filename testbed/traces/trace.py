"""A network trace: uplink capacity and base round trip over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError

MAX_SAMPLES: Final = 10_000_000
"""Longer traces are refused where files are read: a week at 0.1 s is 6 million."""


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
        ok = up.ndim == 1 and up.shape == rtt.shape and len(up) > 0 and 0 < self.period_s < np.inf
        if not ok or not (np.isfinite(up).all() and np.isfinite(rtt).all()):
            raise DataError(
                f"trace {self.name}: {up.size} capacities, {rtt.size} round trips, "
                f"period {self.period_s} s",
                expected="two finite series of one equal length and a positive period",
                hint="check the trace file for gaps",
            )
        if up.min() < 0 or rtt.min() < 0 or up.max() == 0:
            raise DataError(
                f"trace {self.name}: capacity {up.min():g} to {up.max():g} Mbit/s, "
                f"round trips from {rtt.min():g} ms",
                expected="no negative values and some capacity",
                hint="check the units of the trace file",
            )

    @property
    def duration_s(self) -> float:
        """Length of one pass, seconds."""
        return len(self.uplink_mbps) * self.period_s


def n_samples(length_s: float, period_s: float, name: str) -> int:
    """How many samples of about `period_s` fill `length_s`, at least 1.

    Raises:
        DataError: if they are more than `MAX_SAMPLES`.
    """
    count = length_s / period_s
    if not 0 < count <= MAX_SAMPLES:
        raise DataError(
            f"trace {name}: {length_s:.4g} s in samples of {period_s:g} s",
            expected=f"at most {MAX_SAMPLES} samples",
            hint="check the unit of its times, cut it, or ask for longer samples",
        )
    return max(1, round(count))
