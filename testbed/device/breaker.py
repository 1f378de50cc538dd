"""A circuit breaker: after repeated failures, stop offloading until the server infers again.

What it guards against is a server that takes requests and does not answer them, whatever else it
says: answers of its health service count for nothing, only answers to inferences do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

MAX_BACKOFF_S: Final = 1.25
"""Longest back-off (unless the first is longer), before its spread. Together with the time that a
probe takes, a device is back within 2 s of its server's return."""
MAX_DOUBLINGS: Final = 3
"""How often that is doubled for a server that answers probes and no frames: to 10 s."""
AGAIN_S: Final = 0.25
"""After a probe that met a connection for the first time: until the next."""
_ANSWER_WORTH: Final = 0.5
"""Failed exchanges that an answer makes up for."""
_SPREAD: Final = 0.2
"""Random share added to or taken from a back-off, so that devices do not return together."""


@dataclass(slots=True)
class CircuitBreaker:
    """Opens after `failures` failed exchanges in a row; closes when a probe is answered.

    While it is open nothing is offloaded. A probe is an inference, as the one that failed. It is
    due once the back-off has passed; each one that fails doubles the back-off, up to
    `MAX_BACKOFF_S`, and only the answer to a frame makes it short again.

    It also opens if more than one exchange in three fails for long: each failure counts one, and
    each answer takes half of one back. After it has closed, the next frame that fails opens it
    again, until answers have made up for the failures. A server that answers probes and then no
    frame is asked less and less often, up to `MAX_DOUBLINGS`. Times are seconds on one monotonic
    clock.

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

        Unless it met a connection for the first time: a server that has just come may need a
        moment, and is asked again soon.
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
