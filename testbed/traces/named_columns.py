"""Any table of measurements over time, whose columns and units the user names.

``uplink_mbps=Throughput:kbps`` says: the uplink's rates stand in the column Throughput, in kbit/s.
The names on the left are those of our own samples (docs/traces.md), which are also the units if
none is given. The table is read as `cnn.common.csv_table` reads all users' tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.csv_table import CsvTable, parse_csv_table
from cnn.common.errors import ConfigError, DataError
from testbed.traces.measured import Measured, Rows, places, time_order
from testbed.traces.number_files import UNITS
from testbed.traces.series import Floats, Series, tech_of_rows
from testbed.traces.split_rule import day_in

ISO: Final = "iso"
"""Unit of a column of dates with times (ISO 8601), such as ``2024-05-17T09:30:00.250Z``."""
_SECONDS: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_MILLISECONDS: Final = {unit: 1e3 * value for unit, value in _SECONDS.items()}
UNITS_OF: Final[dict[str, dict[str, float]]] = {
    "time_s": {**_SECONDS, ISO: 1.0},
    "uplink_mbps": UNITS,
    "rtt_ms": _MILLISECONDS,
    "tech": {},
}
"""What a column may hold -> its units and their factors."""
_DEFAULT: Final = {"time_s": "s", "uplink_mbps": "mbps", "rtt_ms": "ms", "tech": ""}
_MIDNIGHT_1990_S: Final = 631152000.0
"""Later times in seconds are taken as times since 1970, earlier ones as times since a start."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the user's table, and the factor from its unit to ours."""

    name: str
    unit: str
    factor: float


def columns_of(given: Sequence[str]) -> dict[str, Column]:
    """The columns that ``--column`` names: what it holds -> where.

    Raises:
        ConfigError: a word is unknown, a column is named twice, or the rates are not.
    """
    found: dict[str, Column] = {}
    for text in given:
        key, equals, rest = text.partition("=")
        if key not in UNITS_OF or not equals or not rest or key in found:
            raise ConfigError(
                f"--column {text[:60]}",
                expected=f"WHAT=NAME:UNIT, WHAT once, one of {', '.join(UNITS_OF)}",
                hint="write it like --column uplink_mbps=Throughput:kbps",
            )
        name, colon, unit = rest.rpartition(":")
        if not colon or unit not in UNITS_OF[key]:
            name, unit = rest, _DEFAULT[key]  # a name may contain a colon
            _refuse_unit(text, key, rest)
        found[key] = Column(" ".join(name.split()), unit, UNITS_OF[key].get(unit, 1.0))
    if "uplink_mbps" not in found:
        raise ConfigError(
            f"--column for {', '.join(found) or 'nothing'}",
            expected="also the column of the rates",
            hint="give --column uplink_mbps=NAME:UNIT",
        )
    return found


def _refuse_unit(text: str, key: str, rest: str) -> None:
    """Refuse what looks like a unit and is none of `key`: a short word after the last colon."""
    unit = rest.rpartition(":")[2]
    if ":" in rest and unit.isalpha() and len(unit) <= 5 and UNITS_OF[key]:
        raise ConfigError(
            f"--column {text[:60]}: unit {unit}",
            expected=f"one of {', '.join(UNITS_OF[key])}",
            hint="correct the unit, or add one if it belongs to the column's name",
        )


def read_columns(text: str, path: Path, given: Sequence[str], spacing_s: float | None) -> Measured:
    """A table's rates, and its round trips if a column of them is named.

    Args:
        text: content of the file.
        path: names the trace.
        given: as ``--column`` was given, see `columns_of`.
        spacing_s: seconds between rows, for a table without a column of times.

    Raises:
        ConfigError: the columns or the spacing are not given, or twice.
        DataError: it is not such a table, or goes back in time.
    """
    columns = columns_of(given)
    if ("time_s" in columns) == (spacing_s is not None):
        raise ConfigError(
            f"{path}: {'both' if spacing_s is not None else 'neither'} a column of times and "
            "a spacing",
            expected="one of the two",
            hint="give --column time_s=NAME:UNIT or --spacing-s",
        )
    table = parse_csv_table(text, path, needed=[column.name for column in columns.values()])
    lines = np.array(table.lines(), np.int64)
    time_s = _times(table, columns.get("time_s"), spacing_s, lines)
    keys: list[str] = [key for key in ("uplink_mbps", "rtt_ms") if key in columns]
    cells = table.numbers(*(columns[k].name for k in keys), least=0.0, missing=["-"])
    values = {key: v * columns[key].factor for key, v in zip(keys, cells, strict=True)}
    order, late = time_order(time_s, lambda row: f"{path}, line {lines[row]}")
    notes = [f"{len(late)} late rows sorted in ({places(lines[late])})"] if len(late) else []
    kept = _once(path, time_s, values, order, lines)
    if len(kept) < len(order):
        repeated = np.setdiff1d(order, kept)
        notes.append(f"{len(repeated)} repeated rows left out ({places(lines[repeated])})")
    tech, mixed = tech_of_rows(table.texts(columns["tech"].name) if "tech" in columns else [])
    notes += [mixed] if mixed else []
    time, start = time_s[kept], time_s[kept] - time_s[kept][0]
    step_s = float(np.median(np.diff(time))) if len(time) > 1 else spacing_s or 1.0
    rtt = values.get("rtt_ms")
    pings = None
    if rtt is not None and np.isfinite(rtt).any():
        pings = Series(path.name, path.name, "rtt", "", "", "", start, rtt[kept], step_s)
    named = columns["uplink_mbps"]
    return Measured(
        path.name,
        f"{path.name} (column {named.name} in {named.unit})",
        tech,
        start,
        np.minimum(np.append(start[1:], np.inf), start + step_s),
        values["uplink_mbps"][kept],
        pings,
        tuple(notes),
        lines[kept],
        "line",
        _day(float(time[0]), path),
    )


def _times(table: CsvTable, column: Column | None, spacing_s: float | None, lines: Rows) -> Floats:
    """The time of each row, seconds."""
    if column is None:
        assert spacing_s is not None
        if not 0 < spacing_s < 1e6:
            raise ConfigError(
                f"--spacing-s {spacing_s:g}", expected="seconds above 0", hint="correct it"
            )
        return spacing_s * np.arange(len(table), dtype=np.float64)
    if column.unit != ISO:
        (time,) = table.numbers(column.name, required=[column.name])
        return np.asarray(time * column.factor)
    found = []
    for row, cell in enumerate(table.texts(column.name)):
        try:
            moment = datetime.fromisoformat(cell)
            # Without a zone only differences count, and they are as if it were UTC.
            zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            found.append(zoned.timestamp())
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{table.path}, line {lines[row]}: {cell[:40] or 'nothing'} in column "
                f"{column.name}",
                expected="a date with a time, such as 2024-05-17T09:30:00.250Z",
                hint="correct the cell, or the column's unit",
            ) from error
    return np.array(found)


def _once(
    path: Path, time_s: Floats, values: dict[str, Floats], order: Rows, lines: Rows
) -> NDArray[np.int64]:
    """`order` without rows that repeat the one before; different rows of a moment are refused."""
    same = np.flatnonzero(np.diff(time_s[order]) <= 0)
    for i in same.tolist():
        a, b = int(order[i]), int(order[i + 1])
        for column in values.values():
            if column[a] != column[b] and not (np.isnan(column[a]) and np.isnan(column[b])):
                raise DataError(
                    f"{path}, lines {lines[a]} and {lines[b]}: different rows of one moment",
                    expected="one row a moment",
                    hint="remove one, or split the file if it holds several runs",
                )
    return np.asarray(np.delete(order, same + 1), np.int64)


def _day(first_s: float, path: Path) -> str:
    """The date (UTC) of the first row, if its times count from 1970, else of the file's name."""
    try:
        if first_s > _MIDNIGHT_1990_S:
            return datetime.fromtimestamp(first_s, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        pass
    return day_in(path.name)
