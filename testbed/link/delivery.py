"""When bytes that enter the link come out of it. Pure arithmetic, no sockets, no clock.

Uplink: one FIFO radio for all connections. A segment that enters at time a leaves when the
integral of the capacity, from the moment the one before it has left (or a), reaches its bits;
it comes out half a round trip later. Downlink: half a round trip, and a constant capacity if
one is given. The round trip is the trace's when the segment enters the air's far side (uplink)
or the link (downlink); bytes never overtake.
"""

from __future__ import annotations

from cnn.common.errors import ConfigError
from testbed.link.transfer import CapacityIntegral
from testbed.traces.trace import Trace


class LinkSchedule:
    """Due times of segments, in seconds of trace time.

    Args:
        trace: uplink capacity and round trip, repeated.
        downlink_mbps: capacity towards the device, Mbit/s; None is unlimited.
    """

    def __init__(self, trace: Trace, downlink_mbps: float | None = None) -> None:
        if downlink_mbps is not None and downlink_mbps <= 0:
            raise ConfigError(
                f"downlink capacity {downlink_mbps} Mbit/s",
                expected="more than 0, or none for unlimited",
                hint="correct it",
            )
        self._integral = CapacityIntegral(trace)
        self._one_way_s: list[float] = (trace.rtt_ms / 2e3).tolist()
        self._period_s = trace.period_s
        self._down_bits_per_s = None if downlink_mbps is None else downlink_mbps * 1e6
        self._up_free_s = self._down_free_s = 0.0
        self._up_last_s = self._down_last_s = 0.0

    def one_way_s(self, time_s: float) -> float:
        """Half the base round trip at a trace time, seconds."""
        return self._one_way_s[int(time_s / self._period_s) % len(self._one_way_s)]

    def uplink_due_s(self, entered_s: float, size_bytes: int) -> float:
        """When a segment (or, with 0 bytes, a sign such as the end of a connection) comes out."""
        left_s = max(entered_s, self._up_free_s)
        if size_bytes:
            left_s = self._integral.finish_s(left_s, 8.0 * size_bytes)
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
