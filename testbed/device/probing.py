"""When an idle device asks the network how it is: active probing with a budget.

What the device knows of the link gets old while it works locally. A probe (a small exchange,
with or without padding) refreshes it, at the price of its bytes, of the modem's energy, and of
airtime. So probes go out only while the device has nothing else to do, only if the newest
knowledge is old, only if the answer can be expected before the next frame, and never more
often than the budget allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from cnn.common.errors import ConfigError

PROBE_OVERHEAD_BYTES: Final = 60
"""Bytes of the TCP stream that cross the uplink with a probe beside its padding: 58 without any,
62 or 63 with. Measured with a counting proxy on a warm connection
(`tests/testbed/device/test_probing.py`)."""
GUARD_S: Final = 0.010
"""Idle time left untouched before the next capture: timers are late, and an emulated slow
device keeps warm for some milliseconds (`testbed.device.processor`)."""
MAX_PROBE_BYTES: Final = 4096
"""Most padding of a probe: what a server takes beside a payload (`WireSpec.max_message_bytes`),
and more than tells the rate."""


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """How to probe.

    Attributes:
        per_min: most probes in any minute; 0 never probes.
        padding_bytes: sent with a probe; 0 measures the round trip, some hundred also the rate.
        stale_s: age from which the newest transfer is too old to rely on.
    """

    per_min: float = 0.0
    padding_bytes: int = 0
    stale_s: float = 2.0

    def __post_init__(self) -> None:
        fits = 0 <= self.padding_bytes <= MAX_PROBE_BYTES
        if not (0 <= self.per_min <= 600 and fits and self.stale_s >= 0):
            raise ConfigError(
                f"{self}",
                expected=f"0..600 probes a minute, 0..{MAX_PROBE_BYTES} bytes, an age >= 0",
                hint="correct the setting; 0 probes a minute turns probing off",
            )

    @property
    def sent_bytes(self) -> int:
        """Bytes that a probe puts on the uplink."""
        return self.padding_bytes + PROBE_OVERHEAD_BYTES


class Prober:
    """Keeps the budget: probes are at least 60 / `per_min` seconds apart.

    Each one that is not answered doubles that pause, up to eightfold, until something is
    answered again: on a link that is down, or slower than the device's idle times are long,
    probes are spent for little.

    Times are seconds on one monotonic clock.
    """

    def __init__(self, plan: ProbePlan) -> None:
        self.plan = plan
        self._last_s = -np.inf
        self._unanswered = 0

    def due_s(self, known_s: float) -> float:
        """The earliest moment for the next probe, if the newest transfer ended at `known_s`."""
        if known_s > self._last_s:
            self._unanswered = 0
        if self.plan.per_min == 0:
            return float(np.inf)
        pause_s = 60 / self.plan.per_min * 2**self._unanswered
        return float(max(known_s + self.plan.stale_s, self._last_s + pause_s))

    def window_ms(self, from_s: float, next_frame_s: float, expected_ms: float) -> float | None:
        """How long a probe sent at `from_s` may take; None if it would not fit before the frame.

        Args:
            from_s: when it would be sent.
            next_frame_s: next capture.
            expected_ms: how long it is expected to take.
        """
        left_ms = (next_frame_s - from_s - GUARD_S) * 1e3
        return left_ms if left_ms > expected_ms else None

    def sent(self, at_s: float) -> None:
        """A probe went out at `at_s`, answered or not."""
        self._last_s = at_s

    def unanswered(self) -> None:
        """The last probe was not answered in the time it had."""
        self._unanswered = min(self._unanswered + 1, 3)
