"""What a meter is: a window around one frame, and a reading that never guesses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class FrameActivity:
    """What the device did in one frame's window, from its start to the next frame's start.

    Attributes:
        start_s: start of the window on `time.monotonic`'s clock, seconds.
        end_s: its end, seconds.
        compute_ms: deciding, head, encoder and fallback.
        wait_ms: waiting for this frame's answer (or the time-out).
        exchange_ms: modem active, first byte to answer (or time-out).
        sent_bytes: bytes handed to the modem, framing included.
        tail_ms: modem kept up after an exchange, within this window.
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
        energy_mj: all of it. A hardware meter fills this alone, and it then covers the
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

    Call `begin` at the start of a window and `end` at its end; `end` may be followed at
    once by the next `begin`. A failed reading is None in the result and never raises.

    Attributes:
        source: name that goes into the records.
        tail_ms: how long the modem stays up after an exchange, as far as the meter knows.
    """

    source: str = ""
    tail_ms: float = 0.0

    @abstractmethod
    def begin(self) -> None:
        """Start a window."""

    @abstractmethod
    def end(self, activity: FrameActivity) -> EnergyReading:
        """End the window; `activity` says what happened in it."""

    def close(self) -> None:  # noqa: B027 -- most meters hold nothing
        """Release what the meter holds."""

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
    """A meter that is a running energy counter, in millijoules.

    Subclasses read the counter; None means that it could not be read. A counter that did not
    move, or moved backwards (it was restarted), measured nothing: the reading is None, not 0.
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
