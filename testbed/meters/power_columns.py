"""The columns of an instrument's log: which are time and power, and in which units."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

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
class PowerColumns:
    """Where a row holds its time and its power.

    Attributes:
        time: column of the time.
        time_unit_s: what a 1 in it is, seconds.
        factors: columns whose product is the power.
        unit_mw: what a product of 1 is, milliwatts.
        width: cells of a whole row. One with fewer is torn off, and its last cell may lack
            digits; one with more has other columns than the header.
        decimal: what stands before the fractions. A number with the other mark is none, since
            nobody knows what it means there.
    """

    time: int
    time_unit_s: float
    factors: tuple[int, ...]
    unit_mw: float
    width: int
    decimal: str = "."

    def values(self, cells: Sequence[str]) -> tuple[float, float]:
        """A row's time, seconds since 1970, and power, milliwatts; NaN where it has none.

        ``OL``, ``---`` and an empty cell are no power. A stamp without a zone is in this
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
        ValueError: if two columns could be meant.
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
    for unit_mw in _UNITS["power"].values():  # the same figure in two units is no contradiction
        if (at_unit := found.get(f"power {unit_mw}")) is not None:
            return PowerColumns(*time, (at_unit[0],), unit_mw, width)
    if "voltage" in found and "current" in found:
        (volts, volt), (amperes, milliampere) = found["voltage"], found["current"]
        return PowerColumns(*time, (volts, amperes), volt * milliampere, width)
    return None


def _quantity(name: str) -> tuple[str, float] | None:
    """What a column's name says: ``Power (mW)``, ``power_mw`` and ``P [mW]`` say the same."""
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
