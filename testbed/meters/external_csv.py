"""An instrument's log (power analyser, USB meter) aligned with records by time stamps.

The log is read after the run. Its clock and the device's are two clocks: give the
difference as `offset_s`, or synchronise both before the run.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.errors import DataError
from testbed.records.measurement import Measurement

TIME_COLUMNS: Final = ("time_s", "unix_s", "timestamp")
MAX_ROWS: Final = 50_000_000
_FORM: Final = (
    "a header, a time column (time_s or unix_s: seconds since 1970; timestamp: ISO 8601) and "
    "power_mw, power_w, or voltage_v with current_a"
)


@dataclass(frozen=True, slots=True)
class PowerLog:
    """A power reading over time.

    Attributes:
        time_s: float64 (N,), ascending, seconds since 1970 by the device's clock.
        power_mw: float64 (N,).
        source: name for the records.
        max_gap_s: two samples further apart do not say what was spent between them.
    """

    time_s: NDArray[np.float64]
    power_mw: NDArray[np.float64]
    source: str
    max_gap_s: float = 1.0

    def energy_mj(self, start_s: float, end_s: float) -> float | None:
        """Energy from `start_s` to `end_s` by trapezoids, millijoules.

        None if the log does not cover the window or has a gap in it.
        """
        t = self.time_s
        if end_s < start_s or len(t) < 2 or start_s < t[0] or end_s > t[-1]:
            return None
        first, last = np.searchsorted(t, start_s, "right"), np.searchsorted(t, end_s, "left")
        around = t[max(0, first - 1) : last + 1]
        if np.diff(around).max(initial=0.0) > self.max_gap_s:
            return None
        inside = t[first:last]
        times = np.concatenate([[start_s], inside, [end_s]])
        powers = np.interp(times, t, self.power_mw)
        return float(np.trapezoid(powers, times))


def read_power_log(path: Path, *, offset_s: float = 0.0, max_gap_s: float = 1.0) -> PowerLog:
    """Read an instrument's CSV.

    Args:
        path: the file.
        offset_s: seconds to add to its time stamps to get the device's clock.
        max_gap_s: see `PowerLog`.

    Raises:
        DataError: if it is missing or not of the stated form.
    """
    times: list[float] = []
    powers: list[float] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            for number, row in enumerate(reader):
                if number >= MAX_ROWS:
                    raise ValueError(f"more than {MAX_ROWS} rows")
                times.append(_time_s(row) + offset_s)
                powers.append(_power_mw(row))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
        raise DataError(f"power log {path}: {error}", expected=_FORM, mend="convert it") from error
    time_s, power_mw = np.array(times), np.array(powers)
    if len(time_s) < 2 or not np.isfinite([time_s, power_mw]).all() or (np.diff(time_s) < 0).any():
        raise DataError(
            f"power log {path} with {len(time_s)} rows",
            expected="at least two finite rows in ascending time",
            mend="sort it and remove broken rows",
        )
    return PowerLog(time_s, power_mw, f"csv:{path.name}", max_gap_s)


def with_external_energy(
    rows: Sequence[Measurement], started_unix_s: float, log: PowerLog
) -> list[Measurement]:
    """Replace the energy of every frame by what the instrument saw in its window.

    A frame's window runs from its start (capture and queue) to the next frame's start.
    The last frame has no end, and the instrument cannot split the terms: both are None.
    """
    starts = [started_unix_s + row.captured_s + row.queue_ms / 1e3 for row in rows]
    out: list[Measurement] = []
    for i, row in enumerate(rows):
        energy = log.energy_mj(starts[i], starts[i + 1]) if i + 1 < len(rows) else None
        out.append(
            replace(
                row,
                compute_mj=None,
                radio_mj=None,
                idle_mj=None,
                energy_mj=energy,
                energy_source=log.source,
            )
        )
    return out


def _time_s(row: dict[str, str]) -> float:
    for name in TIME_COLUMNS[:2]:
        if name in row:
            return float(row[name])
    return datetime.fromisoformat(row["timestamp"]).timestamp()


def _power_mw(row: dict[str, str]) -> float:
    if "power_mw" in row:
        return float(row["power_mw"])
    if "power_w" in row:
        return float(row["power_w"]) * 1e3
    return float(row["voltage_v"]) * float(row["current_a"]) * 1e3
