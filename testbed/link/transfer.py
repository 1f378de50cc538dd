"""Delivery over a link: when bytes come out, and the state of the link at that time.

Pure arithmetic, no sockets, no clock. A trace's capacity r(t) is constant within a sample and
repeats when the trace ends. With B(t), the bits that could have left by time t, a payload of b
bits whose first bit may leave at time s has left at the earliest t with B(t) >= B(s) + b. Outages
(r = 0) need no special case: B is flat there and the earliest t lies beyond them.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import numpy as np

from cnn.common.errors import ConfigError, DataError
from cnn.common.files import write_text
from cnn.common.outside import file_bytes, json_object, refusing
from testbed.traces.trace import MAX_FILE_BYTES, Trace, trace_from_json, trace_to_json

SLACK_BITS: Final = 1e-3
"""A payload that misses the end of a sample by less than this counts as sent within the sample.
Without it, rounding could push a payload that exactly fits before an outage beyond it."""


class CapacityIntegral:
    """Integral of one trace's uplink capacity and its exact inverse, for one query at a time.

    The unit of time is the caller's. The trace may be one of several that lie end to end in the
    lists (`offload_env.trace_pool`); it is repeated for ever.

    Args:
        rates: capacity of each sample, bits in a unit of time.
        bits_before: running total of bits at the start of each sample, and after the last.
        period: duration of a sample.
        first: number of the trace's first sample.
        length: how many samples it has; None takes all from `first` on.
    """

    __slots__ = ("_before", "_duration", "_first", "_length", "_period", "_rates", "_total")

    def __init__(
        self,
        rates: list[float],
        bits_before: list[float],
        period: float,
        first: int = 0,
        length: int | None = None,
    ) -> None:
        self._rates, self._before, self._period, self._first = rates, bits_before, period, first
        self._length = len(rates) - first if length is None else length
        self._total = bits_before[first + self._length] - bits_before[first]
        self._duration = self._length * period

    @classmethod
    def of(cls, trace: Trace) -> CapacityIntegral:
        """Of one trace, in seconds."""
        rates = trace.uplink_mbps * 1e6
        before = np.concatenate([[0.0], np.cumsum(rates * trace.period_s)])
        return cls(rates.tolist(), before.tolist(), float(trace.period_s))

    def bits_until(self, time: float) -> float:
        """Bits that can leave from time 0 to `time`, which is not negative."""
        sample = int(time / self._period)
        passes, k = divmod(sample, self._length)
        at = self._first + k
        inside = self._rates[at] * (time - sample * self._period)
        return passes * self._total + (self._before[at] - self._before[self._first]) + inside

    def finish(self, start: float, bits: float) -> tuple[float, int]:
        """When the last of `bits` sent from `start` on has left, and in which sample.

        Args:
            start: from the start of the trace, not negative.
            bits: payload; 0 takes no time.

        Returns:
            (end, number of a sample in the lists).
        """
        period, first, length, before = self._period, self._first, self._length, self._before
        sample = int(start / period)
        passes, k = divmod(sample, length)
        at = first + k
        rate = self._rates[at]
        inside = start - sample * period
        if bits <= rate * (period - inside):
            return start + bits / max(rate, 1e-300), at
        goal = before[at] + rate * inside + bits
        more = max(math.ceil((goal - before[first] - SLACK_BITS) / self._total) - 1.0, 0.0)
        goal -= more * self._total
        last = first + length - 1
        at = min(max(bisect_left(before, goal - SLACK_BITS, first, last + 2) - 1, first), last)
        needed = min(max((goal - before[at]) / max(self._rates[at], 1e-300), 0.0), period)
        return ((passes + more) * self._duration + (at - first) * period) + needed, at


class LinkDelivery:
    """Due times of segments, in seconds of trace time.

    Uplink: one FIFO radio for all connections. A segment that enters at time a leaves when the
    integral of the capacity, from the departure of the previous segment (or from a), reaches its
    bits; it comes out half a round trip later. Downlink: half a round trip, and a constant capacity
    if one is given. The round trip is the trace's value when the segment leaves the radio (uplink)
    or enters the link (downlink); bytes never overtake.

    A modem that has been silent in both directions for longer than its tail connects before the
    next segment leaves.

    Args:
        trace: uplink capacity and round trip, repeated.
        downlink_mbps: capacity towards the device, Mbit/s; None is unlimited.
        tail_ms, promotion_ms: of the modem, see `testbed.meters.power.RadioPower`.
    """

    def __init__(
        self,
        trace: Trace,
        downlink_mbps: float | None = None,
        tail_ms: float = 0.0,
        promotion_ms: float = 0.0,
    ) -> None:
        if downlink_mbps is not None and downlink_mbps <= 0:
            raise ConfigError(
                f"downlink capacity {downlink_mbps} Mbit/s",
                expected="more than 0, or none for unlimited",
                hint="correct it",
            )
        self._integral = CapacityIntegral.of(trace)
        self._one_way_s: list[float] = (trace.rtt_ms / 2e3).tolist()
        self._period_s = trace.period_s
        self._down_bits_per_s = None if downlink_mbps is None else downlink_mbps * 1e6
        self._tail_s, self._promotion_s = tail_ms / 1e3, promotion_ms / 1e3
        self._up_free_s = self._down_free_s = 0.0
        self._up_last_s = self._down_last_s = -math.inf

    def one_way_s(self, time_s: float) -> float:
        """Half the base round trip at a trace time, seconds."""
        return self._one_way_s[int(time_s / self._period_s) % len(self._one_way_s)]

    def uplink_due_s(self, entered_s: float, size_bytes: int) -> float:
        """When a segment (or, with 0 bytes, an event such as the end of a connection) comes out."""
        left_s = max(entered_s, self._up_free_s)
        if size_bytes:
            if entered_s > max(self._up_last_s, self._down_last_s) + self._tail_s:
                left_s = max(left_s, entered_s + self._promotion_s)
            left_s = self._integral.finish(left_s, 8.0 * size_bytes)[0]
        self._up_free_s = left_s
        self._up_last_s = max(left_s + self.one_way_s(left_s), self._up_last_s)
        return self._up_last_s

    def downlink_due_s(self, entered_s: float, size_bytes: int) -> float:
        """As `uplink_due_s`, towards the device."""
        left_s = max(entered_s, self._down_free_s)
        if size_bytes and self._down_bits_per_s is not None:
            left_s += 8.0 * size_bytes / self._down_bits_per_s
        self._down_free_s = left_s
        self._down_last_s = max(left_s + self.one_way_s(entered_s), self._down_last_s)
        return self._down_last_s

    def hold_until(self, time_s: float) -> None:
        """Nothing more leaves in either direction before `time_s` (the link is cut)."""
        self._up_free_s = max(self._up_free_s, time_s)
        self._down_free_s = max(self._down_free_s, time_s)


@dataclass(frozen=True, slots=True)
class LinkRecord:
    """The history of a link: its trace, the start of the trace, and the cuts.

    With this record, any process on the same host can determine the true state at a moment of the
    monotonic clock (CLOCK_MONOTONIC is the same for all processes of a host), and a simulation can
    replay a live run over the same link.

    Attributes:
        trace: the replayed trace, repeated.
        start_time: `time.monotonic` at which the replay started; None if it has not yet.
        start_offset_s: trace time at that moment, seconds.
        downlink_mbps: capacity towards the device; None if unlimited.
        cuts: (from, to) in `time.monotonic`, times without delivery in either direction.
        backend: ``user-space`` or ``tc``.
    """

    trace: Trace
    start_time: float | None
    start_offset_s: float
    downlink_mbps: float | None
    cuts: tuple[tuple[float, float], ...]
    backend: str
    _integral: CapacityIntegral = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_integral", CapacityIntegral.of(self.trace))

    def trace_time_s(self, monotonic_s: float) -> float:
        """Seconds since the start of the trace; `start_offset_s` before the link started."""
        if self.start_time is None:
            return self.start_offset_s
        return max(monotonic_s - self.start_time, 0.0) + self.start_offset_s

    def state_at(self, monotonic_s: float) -> tuple[float, float]:
        """True uplink capacity (Mbit/s, 0 in a cut) and base round trip (ms) at a moment."""
        trace = self.trace
        i = int(self.trace_time_s(monotonic_s) / trace.period_s) % len(trace.uplink_mbps)
        cut = any(first <= monotonic_s < end for first, end in self.cuts)
        return 0.0 if cut else float(trace.uplink_mbps[i]), float(trace.rtt_ms[i])

    def mean_uplink_mbps(self, from_s: float, to_s: float) -> float:
        """Mean capacity between two moments of the monotonic clock, cuts counted as 0."""
        if to_s <= from_s:
            return self.state_at(from_s)[0]

        def bits(first: float, end: float) -> float:
            until = self._integral.bits_until
            return until(self.trace_time_s(end)) - until(self.trace_time_s(first))

        total = bits(from_s, to_s)
        for first, end in self.cuts:
            first, end = max(first, from_s), min(end, to_s)
            if first < end:
                total -= bits(first, end)
        return max(total, 0.0) / (to_s - from_s) / 1e6

    def truth(self, sent_s: float, done_s: float) -> tuple[float, float]:
        """Mean capacity (Mbit/s) from `sent_s` to `done_s`, and round trip (ms) at `sent_s`."""
        return self.mean_uplink_mbps(sent_s, done_s), self.state_at(sent_s)[1]

    def save(self, path: Path) -> None:
        """Write as JSON (``link.json``); written whole or not at all."""
        content = {
            "trace": trace_to_json(self.trace),
            "start_monotonic_s": self.start_time,
            "start_offset_s": self.start_offset_s,
            "downlink_mbps": self.downlink_mbps,
            "cuts_monotonic_s": self.cuts,
            "backend": self.backend,
        }
        write_text(path, json.dumps(content) + "\n")

    @classmethod
    def load(cls, path: Path) -> LinkRecord:
        """Read a file written by `save`; raises `DataError` if it is not one."""
        with refusing(
            DataError,
            f"link record {path}",
            expected="a link.json written by a run or a campaign",
            hint="give the folder of the run's records",
        ):
            raw = json_object(file_bytes(path, MAX_FILE_BYTES))
            start, downlink = raw["start_monotonic_s"], raw["downlink_mbps"]
            return cls(
                trace=trace_from_json(raw["trace"], str(path)),
                start_time=None if start is None else _finite(start),
                start_offset_s=_finite(raw["start_offset_s"]),
                downlink_mbps=None if downlink is None else _finite(downlink),
                cuts=tuple(
                    (_finite(first), _finite(end)) for first, end in raw["cuts_monotonic_s"]
                ),
                backend=str(raw["backend"]),
            )


class Link(ABC):
    """A link between a device and a server that runs; a context manager, closed at the end.

    Args:
        trace: the replayed trace, repeated.
        start_offset_s: trace time at the start, seconds.
        downlink_mbps: capacity towards the device; None if unlimited.
        backend: ``user-space`` or ``tc``.
    """

    def __init__(
        self, trace: Trace, start_offset_s: float, downlink_mbps: float | None, backend: str
    ) -> None:
        self.trace = trace
        self._offset_s, self._downlink_mbps, self._backend = start_offset_s, downlink_mbps, backend
        self._last_record: LinkRecord | None = None

    @abstractmethod
    def _so_far(self) -> tuple[float | None, tuple[tuple[float, float], ...]]:
        """When the trace started, and the cuts, in `time.monotonic`."""

    @abstractmethod
    def close(self) -> None:
        """Reset every connection and stop."""

    def record(self) -> LinkRecord:
        """The link's history, for its true state and for replay."""
        start_time, cuts = self._so_far()
        last = self._last_record
        if last is None or (last.start_time, last.cuts) != (start_time, cuts):
            last = self._last_record = LinkRecord(
                self.trace, start_time, self._offset_s, self._downlink_mbps, cuts, self._backend
            )
        return last

    def state_at(self, monotonic_s: float) -> tuple[float, float]:
        """True uplink capacity (Mbit/s) and base round trip (ms) at a moment."""
        return self.record().state_at(monotonic_s)

    def truth(self, sent_s: float, done_s: float) -> tuple[float, float]:
        """Mean capacity (Mbit/s) and round trip (ms) between two moments (`LinkRecord.truth`)."""
        return self.record().truth(sent_s, done_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finite(value: float) -> float:
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    return float(value)
