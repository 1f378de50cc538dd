"""Checks of the network beside the frames: the circuit breaker and the probes of the link.

The circuit breaker guards against a server that accepts requests but does not answer them: after
repeated failures nothing is offloaded until the server infers again. Only answers to inferences
count, not answers of its health service.

While the device works locally, its knowledge of the link gets old. A probe (a small exchange, with
or without padding) refreshes it, at the cost of its bytes, of the modem's energy, and of airtime.
So a probe is sent only while the device has nothing else to do, only if the newest transfer is old,
only if the answer can be expected before the next frame, and never more often than the budget
allows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from cnn.common.errors import ConfigError

MAX_BACKOFF_S: Final = 1.25
"""Longest back-off (unless the first is longer), before its spread. Together with the time that a
probe takes, a device is back within 2 s of its server's return."""
MAX_DOUBLINGS: Final = 3
"""How often it is doubled for a server that answers probes but no frames: to 10 s."""
AGAIN_S: Final = 0.25
"""Pause after a failed probe that found a connection for the first time."""
_ANSWER_WORTH: Final = 0.5
"""Failed exchanges that an answer compensates."""
_SPREAD: Final = 0.2
"""Random share added to or taken from a back-off, so that devices do not all return at once."""


@dataclass(slots=True)
class CircuitBreaker:
    """Opens after `failures` failed exchanges in a row; closes when a probe is answered.

    While it is open nothing is offloaded. A probe is an inference, like the one that failed. It is
    due once the back-off has passed; each one that fails doubles the back-off, up to
    `MAX_BACKOFF_S`, and only the answer to a frame shortens it again.

    It also opens if more than one exchange in three fails over a long time: each failure counts
    one, and each answer takes half of one back. After it has closed, the next frame that fails
    opens it again, until answers have compensated the failures. A server that answers probes but
    no frame is asked less and less often, up to `MAX_DOUBLINGS`. Times are seconds on one
    monotonic clock.

    Attributes:
        failures: failed exchanges in a row that open it; 0 never opens.
        backoff_s: first back-off.
        rng: spreads the back-off.
    """

    failures: int
    backoff_s: float
    rng: np.random.Generator
    _failed: float = field(default=0.0, init=False)
    _probe_at_s: float | None = field(default=None, init=False)
    _probes: int = field(default=0, init=False)
    _gone: bool = field(default=False, init=False)
    _by_probe: bool = field(default=False, init=False)  # closed, and no frame answered since
    _doublings: int = field(default=0, init=False)

    @property
    def is_open(self) -> bool:
        """True while nothing may be offloaded."""
        return self._probe_at_s is not None

    def success(self) -> None:
        """An exchange of a frame was answered."""
        self._probe_at_s, self._probes = None, 0
        self._by_probe, self._doublings = False, 0
        self._failed = max(0.0, self._failed - _ANSWER_WORTH)

    def failure(self, now_s: float, *, gone: bool = False) -> None:
        """An exchange of a frame failed.

        Args:
            now_s: when.
            gone: there was no connection, which is known at once.
        """
        self._failed = min(self._failed + 1, self.failures)
        if self.failures and self._failed >= self.failures:
            if self._by_probe:
                self._doublings = min(self._doublings + 1, MAX_DOUBLINGS)
            self._by_probe, self._gone = False, gone
            self._back_off(now_s)

    def probe_due(self, now_s: float) -> bool:
        """True if it is open and the back-off has passed."""
        return self._probe_at_s is not None and now_s >= self._probe_at_s

    def probe_answered(self) -> None:
        """A probe was answered in time: close."""
        self._probe_at_s, self._by_probe = None, True
        self._failed = max(0.0, self.failures - 1.0)

    def probe_failed(self, sent_s: float, *, gone: bool = False) -> None:
        """The probe sent at `sent_s` was not answered: wait longer.

        Except when it found a connection for the first time: a server that has just started may
        need a moment, and is asked again soon.
        """
        self._probes += 1
        came, self._gone = self._gone and not gone, gone
        if came:
            self._probe_at_s = sent_s + AGAIN_S
        else:
            self._back_off(sent_s)

    def _back_off(self, from_s: float) -> None:
        longest_s = max(self.backoff_s, MAX_BACKOFF_S)
        wait_s = min(self.backoff_s * 2.0 ** min(self._probes, 32), longest_s)
        wait_s *= 2.0**self._doublings
        self._probe_at_s = from_s + wait_s * (1 + _SPREAD * self.rng.uniform(-1, 1))


PROBE_OVERHEAD_BYTES: Final = 60
"""Bytes of the TCP stream that cross the uplink with a probe beside its padding: 58 without any,
62 or 63 with. Measured with a counting proxy on a warm connection
(`tests/testbed/device/test_probing.py`)."""
GUARD_S: Final = 0.010
"""Idle time left untouched before the next capture: timers are late, and an emulated slow
device keeps warm for some milliseconds (`testbed.device.processor`)."""
MAX_PROBE_BYTES: Final = 4096
"""Most padding of a probe: the limit of a server beside a payload (`WireSpec.max_message_bytes`),
and more than measuring the rate needs."""


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """How to probe.

    Attributes:
        per_min: most probes in any minute; 0 never probes.
        padding_bytes: sent with a probe; 0 measures the round trip; some hundred also the rate.
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
        """Bytes of a probe on the uplink."""
        return self.padding_bytes + PROBE_OVERHEAD_BYTES


class Prober:
    """Keeps the budget: probes are at least 60 / `per_min` seconds apart.

    Each unanswered probe doubles that pause, up to eightfold, until something is answered
    again: on a link that is down, or too slow for the device's idle times, probes would be
    wasted.

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
        """Longest time for a probe sent at `from_s`; None if it would not fit before the frame.

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
        """The last probe was not answered in its time."""
        self._unanswered = min(self._unanswered + 1, 3)
