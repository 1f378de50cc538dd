"""A circuit breaker: after repeated failures, stop offloading until a probe succeeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

_SPREAD: Final = 0.2
"""Random share added to or taken from a back-off, so that devices do not return together."""


@dataclass(slots=True)
class CircuitBreaker:
    """Opens after `failures` failed exchanges in a row; closes when a probe is answered.

    While it is open nothing is offloaded. A probe is due once the back-off has passed;
    each failed probe doubles the back-off, up to eight times the first. Times are seconds
    on one monotonic clock.

    Attributes:
        failures: failed exchanges in a row that open it; 0 never opens.
        backoff_s: first back-off.
        rng: spreads the back-off.
    """

    failures: int
    backoff_s: float
    rng: np.random.Generator
    _failed: int = field(default=0, init=False)
    _probe_at_s: float | None = field(default=None, init=False)
    _probes: int = field(default=0, init=False)

    @property
    def is_open(self) -> bool:
        """True while nothing may be offloaded."""
        return self._probe_at_s is not None

    def success(self) -> None:
        """An exchange or a probe was answered."""
        self._failed = self._probes = 0
        self._probe_at_s = None

    def failure(self, now_s: float) -> None:
        """An exchange failed."""
        self._failed += 1
        if self.failures and self._failed >= self.failures:
            self._back_off(now_s)

    def probe_due(self, now_s: float) -> bool:
        """True if it is open and the back-off has passed."""
        return self._probe_at_s is not None and now_s >= self._probe_at_s

    def probe_failed(self, now_s: float) -> None:
        """The probe was not answered: wait longer."""
        self._probes = min(self._probes + 1, 3)
        self._back_off(now_s)

    def _back_off(self, now_s: float) -> None:
        spread = 1 + _SPREAD * self.rng.uniform(-1, 1)
        self._probe_at_s = now_s + self.backoff_s * 2**self._probes * spread
