"""What a link did: its trace, when that started, and when the link was cut.

With this, anyone on the same host can say the true state at a moment of the monotonic clock
(CLOCK_MONOTONIC is one clock for all processes of a host), and a simulation can replay a
live run over the same link.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from cnn.common.errors import DataError
from cnn.common.outside import file_bytes, json_object, refusing
from testbed.link.transfer import CapacityIntegral
from testbed.traces.importing import MAX_FILE_BYTES
from testbed.traces.trace import Trace
from testbed.traces.trace_files import trace_from_json, trace_to_json, write_json


@dataclass(frozen=True, slots=True)
class LinkRecord:
    """State of a link over time, for truth and replay.

    Attributes:
        trace: what the link replays, repeated.
        start_time: `time.monotonic` at which the replay started; None if it has not yet.
        start_offset_s: trace time at that moment, seconds.
        downlink_mbps: capacity towards the device; None if unlimited.
        cuts: (from, to) in `time.monotonic`, when nothing passed in either direction.
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
        object.__setattr__(self, "_integral", CapacityIntegral(self.trace))

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
        write_json(
            path,
            {
                "trace": trace_to_json(self.trace),
                "start_monotonic_s": self.start_time,
                "start_offset_s": self.start_offset_s,
                "downlink_mbps": self.downlink_mbps,
                "cuts_monotonic_s": [list(cut) for cut in self.cuts],
                "backend": self.backend,
            },
        )

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


def _finite(value: float) -> float:
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    return float(value)
