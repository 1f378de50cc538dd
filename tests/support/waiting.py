"""Waiting for what must come, instead of a sleep that may be too short."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], limit_s: float = 60.0) -> None:
    """Return once `condition` holds; the test fails if it does not within `limit_s`."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "what was waited for never came"
        time.sleep(0.002)
