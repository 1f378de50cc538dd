"""The traces of a scenario, laid end to end for many episodes at once.

`testbed.link.transfer` answers one query at a time (a `Sender` is one); `TracePool.send` is the
same inverse of the capacity's integral for many episodes at once. An episode keeps its trace's
constants (a `Lane`), times are milliseconds, and the scalar and the array path perform the
same floating-point operations in the same order, so that they agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError
from testbed.link.transfer import SLACK_BITS, CapacityIntegral
from testbed.traces.trace import Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Lane:
    """Constants of one trace for each of B episodes, arrays (B,).

    Attributes:
        first: index of the trace's first sample, as float64 (no index reaches 2^53).
        length: number of samples, likewise.
        period_ms: duration of a sample.
        start_bits: running total of bits at its first sample.
        total_bits: bits of one pass.
        duration_ms: length of one pass.
    """

    first: Floats
    length: Floats
    period_ms: Floats
    start_bits: Floats
    total_bits: Floats
    duration_ms: Floats


class TracePool:
    """Uplink capacity and base round trip of several traces, each repeated for ever.

    Args:
        traces: at least one.
    """

    def __init__(self, traces: Sequence[Trace]) -> None:
        if not traces:
            raise ConfigError("no traces", expected="at least one", hint="give a trace source")
        self.names = tuple(trace.name for trace in traces)
        self.techs = tuple(trace.tech for trace in traces)
        self.length = np.array([len(t.uplink_mbps) for t in traces], np.int64)
        self.first = np.concatenate([[0], np.cumsum(self.length)[:-1]]).astype(np.int64)
        self.period_ms = np.array([t.period_s * 1e3 for t in traces])
        self.duration_ms = self.length * self.period_ms
        # 1 Mbit/s is 1000 bits a millisecond.
        self.bits_per_ms = np.concatenate([t.uplink_mbps * 1e3 for t in traces])
        self.one_way_ms = 0.5 * np.concatenate([t.rtt_ms for t in traces])
        self.least_one_way_ms = np.minimum.reduceat(self.one_way_ms, self.first)
        per_sample = self.bits_per_ms * np.repeat(self.period_ms, self.length)
        self.bits_before = np.concatenate([[0.0], np.cumsum(per_sample)])
        self.start_bits = self.bits_before[self.first]
        self.total_bits = self.bits_before[self.first + self.length] - self.start_bits
        for array in vars(self).values():
            if isinstance(array, np.ndarray):
                array.setflags(write=False)
        # Plain lists: indexing them is several times faster than indexing an array.
        self._rates: list[float] = self.bits_per_ms.tolist()
        self._one_ways: list[float] = self.one_way_ms.tolist()
        self._before: list[float] = self.bits_before.tolist()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_5g(self) -> bool:
        """Whether 5G is the technology of at least half of the traces' time."""
        on_5g = np.array([tech == "5G" for tech in self.techs])
        return bool(2 * self.duration_ms[on_5g].sum() >= self.duration_ms.sum())

    def lanes(self, which: Ints) -> Lane:
        """Constants of the traces `which` (int64 (B,)), as arrays (B,)."""
        return Lane(
            self.first[which].astype(np.float64),
            self.length[which].astype(np.float64),
            self.period_ms[which],
            self.start_bits[which],
            self.total_bits[which],
            self.duration_ms[which],
        )

    def send(self, lane: Lane, start_ms: Floats, bits: Floats) -> tuple[Floats, Floats]:
        """When payloads have left, and the one-way delay of their last bits.

        Args:
            lane: of B episodes.
            start_ms: float64 (B,), first bit may leave; milliseconds from the trace's start.
            bits: float64 (B,); 0 takes no time.

        Returns:
            (end_ms, one_way_ms), float64 (B,) each.
        """
        sample = np.floor(start_ms / lane.period_ms)
        at = self.index(lane, sample)
        rate = self.bits_per_ms.take(at)
        inside_ms = start_ms - sample * lane.period_ms
        fits = bits <= rate * (lane.period_ms - inside_ms)
        end: Floats = start_ms + bits / np.maximum(rate, 1e-300)
        if not fits.all():
            rows = np.flatnonzero(~fits)
            here = self.bits_before.take(at[rows]) + rate[rows] * inside_ms[rows]
            passes = np.floor(sample[rows] / lane.length[rows])
            end[rows], at[rows] = self._search(lane, rows, passes, here + bits[rows])
        return end, self.one_way_ms.take(at)

    def one_way(self, lane: Lane, at_ms: Floats) -> Floats:
        """One-way delay (half the base round trip) at times from the trace's start."""
        at = self.index(lane, np.floor(at_ms / lane.period_ms))
        found: Floats = self.one_way_ms.take(at)
        return found

    def carried_bits(self, lane: Lane, at_ms: Floats) -> Floats:
        """Bits that a busy link carries from the trace's start until `at_ms`, float64 (B,)."""
        sample = np.floor(at_ms / lane.period_ms)
        at = self.index(lane, sample)
        inside = self.bits_per_ms.take(at) * (at_ms - sample * lane.period_ms)
        passes = np.floor(sample / lane.length)
        bits: Floats = (
            passes * lane.total_bits + self.bits_before.take(at) - lane.start_bits + inside
        )
        return bits

    def index(self, lane: Lane, sample: Floats) -> NDArray[np.intp]:
        """Index into the joined samples of sample numbers that count on over passes.

        In floats: integer division is several times slower, and the quotient of integers
        below 2^53 rounds to the right floor.
        """
        k = sample - lane.length * np.floor(sample / lane.length)
        return (lane.first + k).astype(np.intp)

    def _search(
        self, lane: Lane, rows: NDArray[np.intp], passes: Floats, goal: Floats
    ) -> tuple[Floats, NDArray[np.intp]]:
        """Earliest times at which the running totals reach `goal`, and their samples."""
        total, start = lane.total_bits[rows], lane.start_bits[rows]
        first, period = lane.first[rows].astype(np.intp), lane.period_ms[rows]
        last = first + lane.length[rows].astype(np.intp) - 1
        more = np.maximum(np.ceil((goal - start - SLACK_BITS) / total) - 1.0, 0.0)
        goal = goal - more * total
        at = np.searchsorted(self.bits_before, goal - SLACK_BITS, "left") - 1
        at = np.clip(at, first, last)
        needed = (goal - self.bits_before.take(at)) / np.maximum(self.bits_per_ms.take(at), 1e-300)
        needed = np.minimum(np.maximum(needed, 0.0), period)
        return ((passes + more) * lane.duration_ms[rows] + (at - first) * period) + needed, at

    def sender(self, trace: int) -> Sender:
        """A fast `send` for one episode on trace number `trace`."""
        return Sender(self, trace)


class Sender(CapacityIntegral):
    """`TracePool.send` for one trace, with Python floats; milliseconds."""

    __slots__ = ("_one_ways",)

    def __init__(self, pool: TracePool, trace: int) -> None:
        period, first = float(pool.period_ms[trace]), int(pool.first[trace])
        super().__init__(pool._rates, pool._before, period, first, int(pool.length[trace]))
        self._one_ways = pool._one_ways

    def __call__(self, start_ms: float, bits: float) -> tuple[float, float]:
        """(end_ms, one_way_ms) of a payload of `bits` that may leave from `start_ms` on."""
        end, at = self.finish(start_ms, bits)
        return end, self._one_ways[at]

    def one_way(self, at_ms: float) -> float:
        """One-way delay (half the base round trip) at a time from the trace's start."""
        return self._one_ways[self._first + int(at_ms / self._period) % self._length]
