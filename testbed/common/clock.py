"""Waiting until a moment on the monotonic clock, precisely and interruptibly."""

from __future__ import annotations

import threading
import time
from typing import Final

_SPIN_S: Final = 0.0005
"""The last half millisecond is spun: a sleeping thread may wake up about that late."""
_NAP_S: Final = 0.05
"""Longest sleep between two checks of the stop flag."""


def wait_until(when_s: float, stop: threading.Event | None = None) -> None:
    """Return at `when_s` (`time.monotonic`), or within 50 ms of `stop` being set."""
    while True:
        left_s = when_s - time.monotonic() - _SPIN_S
        if left_s <= 0 or (stop is not None and stop.is_set()):
            break
        time.sleep(min(left_s, _NAP_S))
    while time.monotonic() < when_s and not (stop is not None and stop.is_set()):
        pass
