"""The meter interface: a window around one frame, and a reading without guesses.

It also has meters made of a counter (`CounterMeter`) or of a power sensor (`SampledMeter`), and
functions to read one value of a sysfs file.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

MAX_GAP_S = 0.5
"""The energy between two samples further apart than this is unknown."""


@dataclass(frozen=True, slots=True)
class FrameActivity:
    """The device's activity in one frame's window, from its start to the next frame's start.

    Attributes:
        start_s: start of the window on `time.monotonic`'s clock, seconds.
        end_s: its end, seconds.
        compute_ms: deciding, head, encoder and fallback.
        wait_ms: waiting for this frame's answer (or the time-out).
        exchange_ms: modem active, first byte to answer (or time-out).
        sent_bytes: bytes handed to the modem, framing included.
        tail_ms: modem connected after an exchange, within this window.
    """

    start_s: float
    end_s: float
    compute_ms: float
    wait_ms: float
    exchange_ms: float
    sent_bytes: float
    tail_ms: float


@dataclass(frozen=True, slots=True)
class EnergyReading:
    """Energy of one window, millijoules; a term that could not be read is None.

    Attributes:
        compute_mj: computing.
        radio_mj: modem.
        idle_mj: device waiting for the answer.
        energy_mj: the sum. A hardware meter fills only this, and it then covers the
            whole window, the wait for the next frame included.
        source: name of the meter.
    """

    compute_mj: float | None
    radio_mj: float | None
    idle_mj: float | None
    energy_mj: float | None
    source: str


def unmeasured(source: str) -> EnergyReading:
    """The reading of a window that `source` could not measure: everything is None."""
    return EnergyReading(None, None, None, None, source)


class Meter(ABC):
    """Measures the energy of one window at a time.

    Call `begin` at the start of a window and `end` at its end; the next `begin` may follow `end`
    at once. A failed reading is None in the result and never raises.

    Attributes:
        source: name that goes into the records.
        tail_ms: how long the modem stays connected after an exchange, if the meter knows it.
    """

    source: str = ""
    tail_ms: float = 0.0

    @abstractmethod
    def begin(self) -> None:
        """Start a window."""

    @abstractmethod
    def end(self, activity: FrameActivity) -> EnergyReading:
        """End the window; `activity` describes it."""

    def close(self) -> None:  # noqa: B027 -- most meters hold no resources
        """Release the meter's resources."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NoMeter(Meter):
    """A machine without a meter: every reading is None."""

    source = "none"

    def begin(self) -> None:
        """Nothing to start."""

    def end(self, activity: FrameActivity) -> EnergyReading:
        """A reading in which everything is None."""
        return unmeasured(self.source)


class CounterMeter(Meter):
    """A meter based on a running energy counter, in millijoules.

    Subclasses read the counter; None means that it could not be read. A counter that did not
    move, or moved backwards (it was restarted), did not measure: the reading is None, not 0.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._began_mj: float | None = None

    @abstractmethod
    def counter_mj(self) -> float | None:
        """Energy since an arbitrary moment, millijoules, never falling; None if unreadable."""

    def begin(self) -> None:
        """Remember the counter."""
        self._began_mj = self.counter_mj()

    def end(self, activity: FrameActivity) -> EnergyReading:
        """Difference of the counter over the window."""
        now_mj = self.counter_mj()
        if now_mj is None or self._began_mj is None:
            return unmeasured(self.source)
        spent_mj = now_mj - self._began_mj
        measured = math.isfinite(spent_mj) and spent_mj > 0
        return EnergyReading(None, None, None, spent_mj if measured else None, self.source)


class SampledMeter(CounterMeter):
    """Integrates a power reading (trapezoids between samples).

    Args:
        read_mw: current power in milliwatts, or None if it cannot be read now.
        source: name for the records.
        interval_s: time between samples; 0 samples only at the ends of windows.
        clock: seconds, monotonic.

    A sample fails if the sensor returns None, raises, or returns an impossible power: 0, a negative
    value, or not a number. A window with a failed sample, or with a gap longer than `MAX_GAP_S`
    (the sampling thread was held up), reads None.
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
        except Exception:  # no exception of a driver's library may end the drive
            return None
        measured = power_mw is not None and math.isfinite(power_mw) and power_mw > 0
        return power_mw if measured else None


def read_text(path: Path) -> str | None:
    """Stripped content of a file; None if it is absent or may not be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def read_int(path: Path) -> int | None:
    """Content of a file as an integer; None if it is absent, unreadable or not an integer."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def why_unreadable(path: Path) -> str:
    """Why `read_int` gives None for a file, in words; empty if it gives a number."""
    try:
        text = path.read_text().strip()
    except PermissionError:
        return f"{path.name} is not readable without root"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, UnicodeDecodeError):
        return f"{path.name} gives an error"
    return "" if read_int(path) is not None else f"{path.name} holds {text[:20]!r}, no number"
