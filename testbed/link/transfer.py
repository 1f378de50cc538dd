"""How long a payload takes over a trace: the exact inverse of the capacity's integral.

A trace's capacity r(t) is constant within a sample and repeats when the trace ends. With
B(t), the bits that could have left by time t, a payload of b bits whose first bit may leave
at time s has left at the earliest t with B(t) >= B(s) + b. Outages (r = 0) need no special
case: B is flat there and the earliest t lies beyond them.

`CapacityIntegral` answers for one trace (scalars fast, arrays vectorised), `TraceStack` for
many traces at once (one array element names its trace).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnn.common.errors import ConfigError
from testbed.traces.trace import Trace

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

SLACK_BITS = 1e-3
"""A payload that misses the end of a sample by less than this has left within the sample.
Without it, rounding could push a payload that exactly fits before an outage beyond it."""


class CapacityIntegral:
    """Integral of one trace's uplink capacity and its inverse.

    Args:
        trace: repeated for ever; times are seconds from its first sample and not negative.
    """

    def __init__(self, trace: Trace) -> None:
        self._stack = TraceStack([trace])
        self._period_s = float(trace.period_s)
        self._rate: list[float] = (trace.uplink_mbps * 1e6).tolist()
        self._cumulative: list[float] = self._stack.cumulative_bits[0].tolist()
        self._total: float = self._cumulative[-1]
        self._duration_s = len(self._rate) * self._period_s

    @overload
    def bits_until(self, t_s: float) -> float: ...
    @overload
    def bits_until(self, t_s: Floats) -> Floats: ...
    def bits_until(self, t_s: float | Floats) -> float | Floats:
        """Bits that can leave from time 0 to `t_s` (seconds, scalar or array)."""
        if isinstance(t_s, np.ndarray):
            return self._stack.bits_until(np.zeros(t_s.shape, np.int64), t_s)
        passes, i, inside_s = self._locate(t_s)
        return passes * self._total + self._cumulative[i] + self._rate[i] * inside_s

    @overload
    def finish_s(self, start_s: float, bits: float) -> float: ...
    @overload
    def finish_s(self, start_s: Floats, bits: ArrayLike) -> Floats: ...
    def finish_s(self, start_s: float | Floats, bits: ArrayLike) -> float | Floats:
        """Time at which the last of `bits` that may leave from `start_s` on has left.

        Args:
            start_s: seconds from the start of the trace, scalar or array.
            bits: payload, scalar or array that broadcasts with `start_s`; 0 takes no time.

        Returns:
            Seconds from the start of the trace; a float if `start_s` is one.
        """
        if isinstance(start_s, np.ndarray):
            start, size = np.broadcast_arrays(start_s, np.asarray(bits, np.float64))
            return self._stack.finish_s(np.zeros(start.shape, np.int64), start, size)
        return self._finish_one(float(start_s), float(bits))  # type: ignore[arg-type]

    def _locate(self, t_s: float) -> tuple[int, int, float]:
        """Pass, sample number and time within the sample of `t_s`."""
        k = int(t_s / self._period_s)
        inside_s = t_s - k * self._period_s
        passes, i = divmod(k, len(self._rate))
        return passes, i, inside_s if inside_s > 0 else 0.0

    def _finish_one(self, start_s: float, bits: float) -> float:
        if bits <= 0:
            return start_s
        passes, i, inside_s = self._locate(start_s)
        rate = self._rate[i]
        if bits <= rate * (self._period_s - inside_s) + SLACK_BITS and rate > 0:
            sample_end_s = (passes * len(self._rate) + i + 1) * self._period_s
            return min(start_s + bits / rate, max(sample_end_s, start_s))
        rest = self._cumulative[i] + rate * inside_s + bits
        more = math.ceil((rest - SLACK_BITS) / self._total) - 1
        rest -= more * self._total
        after = bisect_left(self._cumulative, rest - SLACK_BITS, 1)
        needed_s = (rest - self._cumulative[after - 1]) / self._rate[after - 1]
        whole_s = (passes + more) * self._duration_s + (after - 1) * self._period_s
        return whole_s + min(needed_s, self._period_s)


class TraceStack:
    """Many traces side by side; every array argument has one element per query.

    Traces may differ in length and period. Queries name their trace by number.

    Args:
        traces: at least one.

    Attributes:
        cumulative_bits: per trace, float64 (T + 1,): bits that can leave by each sample's start.
    """

    def __init__(self, traces: Sequence[Trace]) -> None:
        if not traces:
            raise ConfigError("no traces", expected="at least one", hint="give a trace source")
        lengths = np.array([len(trace.uplink_mbps) for trace in traces], np.int64)
        self._length: Indices = lengths
        self._period_s: Floats = np.array([trace.period_s for trace in traces])
        self._first: Indices = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self._uplink_mbps: Floats = np.concatenate([trace.uplink_mbps for trace in traces])
        self._rtt_ms: Floats = np.concatenate([trace.rtt_ms for trace in traces])
        self._rate: Floats = self._uplink_mbps * 1e6
        self.cumulative_bits: list[Floats] = [_cumulative(trace) for trace in traces]
        self._total: Floats = np.array([bits[-1] for bits in self.cumulative_bits])
        # All cumulative curves end to end on one rising axis: one searchsorted serves them all.
        self._offset: Floats = np.concatenate([[0.0], np.cumsum(self._total)[:-1]])
        self._start_bits: Floats = np.concatenate([c[:-1] for c in self.cumulative_bits])
        self._axis: Floats = np.concatenate(
            [c[1:] + o for c, o in zip(self.cumulative_bits, self._offset, strict=True)]
        )

    def sample(self, which: Indices, t_s: Floats) -> Indices:
        """Number (into `uplink_mbps` and `rtt_ms` laid end to end) of the sample at `t_s`."""
        k = (t_s / self._period_s[which]).astype(np.int64)
        return self._first[which] + k % self._length[which]

    def uplink_mbps(self, which: Indices, t_s: Floats) -> Floats:
        """Capacity at `t_s`, Mbit/s."""
        return self._uplink_mbps[self.sample(which, t_s)]

    def rtt_ms(self, which: Indices, t_s: Floats) -> Floats:
        """Base round trip at `t_s`, milliseconds."""
        return self._rtt_ms[self.sample(which, t_s)]

    def bits_until(self, which: Indices, t_s: Floats) -> Floats:
        """Bits that can leave trace `which` from time 0 to `t_s`."""
        passes, at, inside_s = self._locate(which, t_s)
        return passes * self._total[which] + self._start_bits[at] + self._rate[at] * inside_s

    def finish_s(self, which: Indices, start_s: Floats, bits: Floats) -> Floats:
        """As `CapacityIntegral.finish_s`, element by element.

        Args:
            which: int64 (...,), trace numbers.
            start_s: float64, same shape, seconds from the start of the trace.
            bits: float64, same shape.
        """
        passes, at, inside_s = self._locate(which, start_s)
        period_s, rate = self._period_s[which], self._rate[at]
        left_bits = rate * (period_s - inside_s)
        with np.errstate(divide="ignore", invalid="ignore"):
            finish = start_s + np.minimum(bits / rate, period_s - inside_s)
        finish = np.where(bits > 0, finish, start_s)
        # Most payloads leave within the sample they start in; only the others search.
        long = (bits > 0) & ((bits > left_bits + SLACK_BITS) | (rate <= 0))
        if long.any():
            finish[long] = self._search(
                which[long], passes[long], (self._start_bits[at] + rate * inside_s + bits)[long]
            )
        return finish

    def _locate(self, which: Indices, t_s: Floats) -> tuple[Indices, Indices, Floats]:
        k = (t_s / self._period_s[which]).astype(np.int64)
        inside_s = np.maximum(t_s - k * self._period_s[which], 0.0)
        passes, i = np.divmod(k, self._length[which])
        return passes, self._first[which] + i, inside_s

    def _search(self, which: Indices, passes: Indices, rest: Floats) -> Floats:
        total = self._total[which]
        more = np.ceil((rest - SLACK_BITS) / total) - 1
        rest = rest - more * total
        at = np.searchsorted(self._axis, self._offset[which] + rest - SLACK_BITS)
        at = np.minimum(at, self._first[which] + self._length[which] - 1)
        needed_s = (rest - self._start_bits[at]) / self._rate[at]
        samples = (passes + more) * self._length[which] + (at - self._first[which])
        period_s = self._period_s[which]
        finish: Floats = samples * period_s + np.minimum(needed_s, period_s)
        return finish


def _cumulative(trace: Trace) -> Floats:
    bits = np.cumsum(trace.uplink_mbps * 1e6 * trace.period_s)
    return np.concatenate([[0.0], bits])
