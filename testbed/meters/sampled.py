"""A counter made from a power sensor: samples integrated over time by a thread."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from testbed.meters.meter import CounterMeter

MAX_GAP_S = 0.5
"""Two samples further apart than this do not say what was spent between them."""


class SampledMeter(CounterMeter):
    """Integrates a power reading (trapezoids between samples).

    Args:
        read_mw: current power in milliwatts, or None if it cannot be read now.
        source: name for the records.
        interval_s: time between samples; 0 samples only at the ends of windows.
        clock: seconds, monotonic.

    A sample fails if the sensor says None, raises, or says what no running device spends: 0,
    less, or no number. A window in which a sample failed, or with a gap longer than `MAX_GAP_S`
    (the thread that samples was held up), reads None.
    """

    def __init__(
        self,
        read_mw: Callable[[], float | None],
        source: str,
        *,
        interval_s: float = 0.02,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(source)
        self._read_mw = read_mw
        self._clock = clock
        self._lock = threading.Lock()
        self._total_mj = 0.0
        self._last: tuple[float, float] | None = None
        self._breaks = 0
        self._breaks_at_begin = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if interval_s > 0:
            self._thread = threading.Thread(
                target=self._sample_until_closed, args=(interval_s,), daemon=True
            )
            self._thread.start()

    def begin(self) -> None:
        """Start a window."""
        self._sample()
        with self._lock:
            self._breaks_at_begin = self._breaks
            self._began_mj = None if self._last is None else self._total_mj

    def counter_mj(self) -> float | None:
        """Integral so far; None if the sensor failed since `begin`."""
        self._sample()
        with self._lock:
            broken = self._last is None or self._breaks != self._breaks_at_begin
            return None if broken else self._total_mj

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _sample_until_closed(self, interval_s: float) -> None:
        while not self._stop.wait(interval_s):
            self._sample()

    def _sample(self) -> None:
        with self._lock:
            power_mw, now_s = self._power_mw(), self._clock()
            if power_mw is None:
                self._last = None
                self._breaks += 1
                return
            if self._last is not None:
                then_s, then_mw = self._last
                if now_s - then_s > MAX_GAP_S:
                    self._breaks += 1
                else:
                    self._total_mj += (now_s - then_s) * (power_mw + then_mw) / 2
            self._last = (now_s, power_mw)

    def _power_mw(self) -> float | None:
        """One sample, milliwatts; None if it failed."""
        try:
            power_mw = self._read_mw()
        except Exception:  # whatever a driver's library raises must not end the drive
            return None
        measured = power_mw is not None and math.isfinite(power_mw) and power_mw > 0
        return power_mw if measured else None
