"""An instrument's log (power analyser, USB meter) aligned with records by time stamps.

The log is read after the run. The instrument and the device have separate clocks: give the
difference as `offset_s`, or synchronise both before the run.

Logs may be truncated and incomplete. Whole parts are used. Where the log does not show the
consumption it has a hole, and a frame that touches a hole has no energy. Holes are never filled.
"""

from __future__ import annotations

import csv
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.csv_table import unclear_number
from cnn.common.errors import DataError
from cnn.common.outside import decode
from testbed.records.measurement import Measurement

MAX_ROWS: Final = 50_000_000
MAX_TIME_S: Final = 1e12
"""Seconds since 1970; a time beyond this range is not an instrument's."""
MAX_POWER_MW: Final = 1e15
"""More than the output of all power stations."""
SEPARATORS: Final = ",;\t"
PREAMBLE: Final = 50
"""Maximum number of lines of an instrument's own data before the header."""

FORM: Final = (
    "a header, a time column (time_s or unix_s: seconds since 1970; timestamp: ISO 8601) and "
    "power_mw, power_w, or voltage_v with current_a; units may be in brackets: Power (mW)"
)
_TIMES: Final = ("time", "unix", "timestamp")
_NAMES: Final = {
    "power": ("power", "p"),
    "voltage": ("voltage", "v", "u", "vbus"),
    "current": ("current", "i", "ibus"),
}
_UNITS: Final = {
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "power": {"mw": 1.0, "w": 1e3, "uw": 1e-3, "kw": 1e6},
    "voltage": {"v": 1.0, "mv": 1e-3, "uv": 1e-6, "kv": 1e3},
    "current": {"a": 1e3, "ma": 1.0, "ua": 1e-3},
}
"""Factors to seconds, milliwatts, volts and milliamperes."""


@dataclass(frozen=True, slots=True)
class PowerLog:
    """A power reading over time.

    Attributes:
        time_s: float64 (N,), ascending, seconds since 1970 by the device's clock.
        power_mw: float64 (N,).
        source: name for the records.
        max_gap_s: the energy between two samples further apart is unknown.
        broken: bool (N,), whether there is unreadable data between a sample and the next one.
        left_out: rows that could not be used, by reason.
    """

    time_s: NDArray[np.float64]
    power_mw: NDArray[np.float64]
    source: str
    max_gap_s: float = 1.0
    broken: NDArray[np.bool_] | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    def energy_mj(self, start_s: float, end_s: float) -> float | None:
        """Energy from `start_s` to `end_s` by trapezoids, millijoules.

        None if the log does not cover the window, has a hole in it, or shows zero or negative
        energy.
        """
        t = self.time_s
        if end_s < start_s or len(t) < 2 or start_s < t[0] or end_s > t[-1]:
            return None
        first, last = np.searchsorted(t, start_s, "right"), np.searchsorted(t, end_s, "left")
        if self._unknown(max(0, int(first) - 1), int(last)).any():
            return None
        inside = slice(first, last)
        edges = np.interp([start_s, end_s], t, self.power_mw)
        times = np.concatenate([[start_s], t[inside], [end_s]])
        powers = np.concatenate([edges[:1], self.power_mw[inside], edges[1:]])
        energy_mj = float(np.trapezoid(powers, times))
        return energy_mj if energy_mj > 0 else None

    def holes(self, start_s: float, end_s: float) -> list[tuple[float, float]]:
        """Stretches from `start_s` to `end_s` with unknown energy; ascending."""
        t = self.time_s
        if not len(t):
            return [(start_s, end_s)]
        unknown = np.concatenate([[True], self._unknown(0, len(t) - 1), [True]])
        edges = np.concatenate([[-np.inf], t, [np.inf]])
        # Each run of unknown intervals is one hole.
        change = np.flatnonzero(np.diff(np.concatenate([[0], unknown.astype(np.int8), [0]])))
        spans = edges[change].reshape(-1, 2).clip(start_s, end_s)
        return [(float(a), float(b)) for a, b in spans if b > a]

    def _unknown(self, first: int, last: int) -> NDArray[np.bool_]:
        """Mask of the unknown intervals after samples `first` to `last` - 1."""
        unknown: NDArray[np.bool_] = np.diff(self.time_s[first : last + 1]) > self.max_gap_s
        return unknown if self.broken is None else unknown | self.broken[first:last][: len(unknown)]


def read_power_log(path: Path, *, offset_s: float = 0.0, max_gap_s: float = 1.0) -> PowerLog:
    """Read the readable rows of an instrument's CSV.

    A row without a power, without a time, or with a time that contradicts the other rows leaves
    a hole. A last line without a line end may have lost digits and is left out.

    Args:
        path: the file.
        offset_s: seconds to add to its time stamps to get the device's clock.
        max_gap_s: see `PowerLog`.

    Raises:
        DataError: if it is missing, of another form, or has fewer than two usable rows.
    """
    try:
        text = decode(path.read_bytes(), errors="replace").replace("\0", "")
        cut_off = not text.endswith(("\n", "\r"))
        lines = text.splitlines()
        columns, body = _find_header(lines[:-1] if cut_off else lines)
        log = _Rows()
        for number, cells in enumerate(body):
            if number >= MAX_ROWS:
                raise ValueError(f"more than {MAX_ROWS} rows")
            if cells:
                time_s, power_mw = columns.values(cells)
                log.add(time_s + offset_s, power_mw)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"power log {path}: {error}", expected=FORM, hint="convert it") from error
    if cut_off:
        log.left_out["at the end, cut off"] = 1
    return log.finish(path, max_gap_s)


class _Rows:
    """Collects rows and makes a log of them."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._powers: list[float] = []
        self._torn: list[int] = []  # positions that follow a row without a time
        self.left_out: dict[str, int] = {}

    def add(self, time_s: float, power_mw: float) -> None:
        """Add a row; NaN for missing values."""
        if not abs(time_s) <= MAX_TIME_S:  # also NaN
            self._torn.append(len(self._times))
            self._leave_out("without a time", 1)
            return
        if not abs(power_mw) <= MAX_POWER_MW:
            power_mw = math.nan
        self._times.append(time_s)
        self._powers.append(power_mw)
        if math.isnan(power_mw):
            self._leave_out("without a power", 1)

    def finish(self, path: Path, max_gap_s: float) -> PowerLog:
        """The log of all rows.

        Raises:
            DataError: if fewer than two can be used.
        """
        time_s, power_mw, torn, contested = self._in_order()
        t, at = np.unique(time_s, return_inverse=True)
        # Rows of one moment are averaged; a row without a power leaves the moment without one.
        count = np.maximum(np.bincount(at, minlength=len(t)), 1)
        mean_mw = np.bincount(at, power_mw, len(t)) / count
        good = np.isfinite(mean_mw)
        if good.sum() < 2:
            found = "".join(f", {n} {why}" for why, n in self.left_out.items())
            raise DataError(
                f"power log {path} with {int(good.sum())} rows to use{found}",
                expected="at least two rows with a time and a power, in ascending time",
                hint="check its columns, and that the instrument was connected",
            )
        missing = np.bincount(at, torn, len(t)) > 0  # between the previous moment and this one
        inside = contested[(contested >= t[0]) & (contested <= t[-1])]
        for side in ("left", "right"):  # two rows have this time: neither is used
            missing[np.searchsorted(t, inside, side).clip(max=len(t) - 1)] = True
        # An interval between two good moments is broken if anything in it is.
        broken = np.append(np.diff(np.cumsum(missing | ~good)[good]) > 0, False)
        source = f"csv:{path.name}"
        return PowerLog(t[good], mean_mw[good], source, max_gap_s, broken, self.left_out)

    def _in_order(
        self,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
        """Ascending times, their powers, whether rows are missing before each, and the times of
        the rows that are out of order."""
        time_s, power_mw = np.array(self._times), np.array(self._powers)
        torn = np.zeros(len(time_s) + 1, bool)
        torn[self._torn] = True
        if not (np.diff(time_s) < 0).any():
            return time_s, power_mw, torn[:-1], np.empty(0)
        keep = _longest_ascending(self._times)
        contested = np.delete(time_s, keep)
        self._leave_out("with a time out of order", len(contested))
        tears = np.cumsum(torn[:-1])[keep]  # a tear moves to the next row that is kept
        return time_s[keep], power_mw[keep], np.diff(tears, prepend=0) > 0, contested

    def _leave_out(self, why: str, n: int) -> None:
        self.left_out[why] = self.left_out.get(why, 0) + n


def with_external_energy(
    rows: Sequence[Measurement], started_unix_s: float, log: PowerLog
) -> list[Measurement]:
    """Replace the energy of every frame by the instrument's energy in its window.

    A frame's window runs from its start (capture and queue) to the next frame's start.
    The last frame has no end, and the instrument cannot split the terms: both are None.
    """
    starts = frame_starts(rows, started_unix_s)
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


def frame_starts(rows: Sequence[Measurement], started_unix_s: float) -> list[float]:
    """When each frame's window began, seconds since 1970."""
    return [started_unix_s + row.captured_s + row.queue_ms / 1e3 for row in rows]


def _find_header(lines: Sequence[str]) -> tuple[PowerColumns, Iterator[list[str]]]:
    """The columns named in one of the first lines, and the rows of cells below it."""
    for at, line in enumerate(lines[:PREAMBLE]):
        for separator in SEPARATORS:
            columns = find_columns(next(_cells([line], separator)))
            if columns is not None:
                body = lines[at + 1 :]
                _refuse_unclear(columns, body, separator)
                comma = separator != "," and any("," in row for row in body)
                return replace(columns, decimal="," if comma else "."), _cells(body, separator)
    raise ValueError("no header that names a time and a power")


def _refuse_unclear(columns: PowerColumns, body: Sequence[str], separator: str) -> None:
    """With semicolons and tabs, 1.234 may be thousands: raise, do not guess a factor of 1000."""
    if separator == ",":
        return
    used = (columns.time, *columns.factors)
    rows = _cells(body, separator)
    unclear = unclear_number(cells[i].strip() for cells in rows for i in used if i < len(cells))
    if unclear is not None:
        raise ValueError(f"{unclear} may be a fraction or thousands, and no other number tells")


def _cells(lines: Sequence[str], separator: str) -> Iterator[list[str]]:
    """Rows of cells. A quote ends with its line: an unclosed one would hide the rest."""
    for line in lines:
        if '"' in line:
            yield next(csv.reader([line], delimiter=separator), [])
        else:
            yield line.split(separator) if line.strip() else []


def _longest_ascending(times: Sequence[float]) -> list[int]:
    """Positions of a longest part of `times` that never falls (patience sorting)."""
    tops: list[float] = []
    ends: list[int] = []
    before = [-1] * len(times)
    for i, time_s in enumerate(times):
        pile = bisect_right(tops, time_s)
        before[i] = ends[pile - 1] if pile else -1
        tops[pile : pile + 1] = [time_s]
        ends[pile : pile + 1] = [i]
    out, i = list[int](), ends[-1] if ends else -1
    while i >= 0:
        out.append(i)
        i = before[i]
    return out[::-1]


@dataclass(frozen=True, slots=True)
class PowerColumns:
    """Columns of a row's time and power.

    Attributes:
        time: column of the time.
        time_unit_s: value of a 1 in it, seconds.
        factors: columns whose product is the power.
        unit_mw: value of a product of 1, milliwatts.
        width: cells of a whole row. A row with fewer is truncated, and its last cell may lack
            digits; a row with more has other columns than the header.
        decimal: the decimal mark. A number with the other mark is invalid, because its meaning
            is not known.
    """

    time: int
    time_unit_s: float
    factors: tuple[int, ...]
    unit_mw: float
    width: int
    decimal: str = "."

    def values(self, cells: Sequence[str]) -> tuple[float, float]:
        """A row's time, seconds since 1970, and power, milliwatts; NaN for missing ones.

        ``OL``, ``---`` and an empty cell are missing values. A stamp without a zone is in this
        machine's local time.
        """
        more = cells[self.width :]
        if len(cells) < self.width or (more and any(cell.strip() for cell in more)):
            return math.nan, math.nan
        power_mw = self.unit_mw
        for at in self.factors:
            power_mw *= self._number(cells[at])
        return self._time_s(cells[self.time]), power_mw if math.isfinite(power_mw) else math.nan

    def _time_s(self, cell: str) -> float:
        number = self._number(cell)
        if not math.isnan(number):
            return number * self.time_unit_s
        try:
            return datetime.fromisoformat(cell.strip()).timestamp()
        except (ValueError, OverflowError, OSError):
            return math.nan

    def _number(self, cell: str) -> float:
        if self.decimal != ".":
            if "." in cell:
                return math.nan
            cell = cell.replace(self.decimal, ".")
        try:
            return float(cell)
        except ValueError:
            return math.nan


def find_columns(header: Sequence[str]) -> PowerColumns | None:
    """The columns that a header names; None if it names no time or no power.

    Raises:
        ValueError: if two columns match.
    """
    found: dict[str, tuple[int, float]] = {}
    for at, name in enumerate(header):
        known = _quantity(name)
        if known is None:
            continue
        quantity, unit = known
        if quantity in found:
            raise ValueError(f"two columns of {quantity.partition(' ')[0]}: {name.strip()!r}")
        found[quantity] = at, unit
    time = next((found[name] for name in _TIMES if name in found), None)
    if time is None:
        return None
    width = max((at + 1 for at, name in enumerate(header) if name.strip()), default=0)
    for unit_mw in _UNITS["power"].values():  # the same figure may be given in two units
        if (at_unit := found.get(f"power {unit_mw}")) is not None:
            return PowerColumns(*time, (at_unit[0],), unit_mw, width)
    if "voltage" in found and "current" in found:
        (volts, volt), (amperes, milliampere) = found["voltage"], found["current"]
        return PowerColumns(*time, (volts, amperes), volt * milliampere, width)
    return None


def _quantity(name: str) -> tuple[str, float] | None:
    """Quantity and unit in a column's name: equal for ``Power (mW)``, ``power_mw``, ``P [mW]``."""
    words = re.findall(r"[^\W\d_]+\d*|\ufffd", name.lower().replace("µ", "u").replace("μ", "u"))
    if len(words) == 1 and words[0] in _TIMES:
        return words[0], 1.0
    if len(words) != 2:
        return None
    what, unit = words
    if what in _TIMES and unit in _UNITS["time"]:
        return what, _UNITS["time"][unit]
    for quantity, names in _NAMES.items():
        if what in names and unit in _UNITS[quantity]:
            factor = _UNITS[quantity][unit]
            return (f"power {factor}" if quantity == "power" else quantity), factor
    return None
