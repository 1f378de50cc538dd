"""Logs of the Android app G-NetTrack Pro, as UCC's 4G and 5G data sets publish them.

Columns (D. Raca et al., MMSys 2018 and 2020): ``Timestamp`` (local time, whole seconds),
``DL_bitrate`` and ``UL_bitrate`` in kbit/s, ``State`` (D downloading, I idle), ``NetworkMode``,
``PINGAVG`` in ms; ``-`` is not measured.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from cnn.common.csv_table import CsvTable, parse_csv_table
from cnn.common.errors import DataError
from testbed.traces.measured import Measured, Rows, places, time_order
from testbed.traces.series import Floats, Series, tech_of_rows

TIME_FORMAT: Final = "%Y.%m.%d_%H.%M.%S"
COLUMN: Final = {"up": "UL_bitrate", "down": "DL_bitrate"}
PING: Final = "PINGAVG"
_WANTED: Final = ("Operatorname", "NetworkMode", "State", PING)


def read_gnettrack(text: str, path: Path, direction: str) -> Measured:
    """A log's rates of one direction (``up`` or ``down``), and its pings if it has any.

    Rows of one second (the app writes one for each change of the radio) become one: their mean.

    Raises:
        DataError: it is not such a log, holds two phones, or goes back in time.
    """
    table = parse_csv_table(text, path, needed=("Timestamp", COLUMN[direction]), wanted=_WANTED)
    _refuse_two_phones(table)
    time_s = _times(table)
    order, late = time_order(time_s, lambda row: f"{path}, line {table.lines()[row]}")
    columns = [COLUMN[direction], *([PING] if PING in table.cells else [])]
    values = [v[order] for v in table.numbers(*columns, least=0.0, missing=["-"])]
    seconds, first, rows = np.unique(time_s[order], return_index=True, return_counts=True)
    kbps = _means(values[0], first)
    notes = [
        f"{'uploads' if direction == 'up' else 'downloads'} as they were, which is the "
        "capacity only while a test filled the link"
    ]
    if direction == "down":
        notes.append("download rates, taken as the uplink's")
    lines = np.array(table.lines(), np.int64)
    notes += _counts(table, values[0], first, rows, lines, order, late)
    period_s = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 1.0
    start = seconds - seconds[0]
    end = np.minimum(np.append(start[1:], np.inf), start + period_s)
    modes = table.texts("NetworkMode") if "NetworkMode" in table.cells else []
    tech, mixed = tech_of_rows(modes)
    notes += [mixed] if mixed else []
    rtt = None
    if len(values) > 1:
        rtt = _pings(path.name, start, _means(values[1], first), period_s)
    if rtt is not None:
        notes.append(f"{len(rtt.values)} of {len(seconds)} seconds with a ping, during the test")
    return Measured(
        path.name,
        f"{path.name} (G-NetTrack, {COLUMN[direction]})",
        tech,
        start,
        end,
        kbps / 1e3,
        rtt,
        tuple(notes),
        lines[order][first],
        day=datetime.fromtimestamp(seconds[0], UTC).date().isoformat(),
    )


def _times(table: CsvTable) -> Floats:
    """Seconds since 1970 as if local time were UTC; only differences are used."""
    found = []
    for row, cell in enumerate(table.texts("Timestamp")):
        try:
            found.append(datetime.strptime(cell, TIME_FORMAT).replace(tzinfo=UTC).timestamp())
        except ValueError as error:
            raise DataError(
                f"{table.path}, line {table.lines()[row]}: {cell[:40] or 'nothing'} "
                "in column Timestamp",
                expected="a time such as 2019.12.14_10.16.30",
                hint="give the app's own file, not one that a spreadsheet has changed",
            ) from error
    return np.array(found)


def _refuse_two_phones(table: CsvTable) -> None:
    names = (
        sorted(set(table.texts("Operatorname")) - {"", "-"})
        if "Operatorname" in table.cells
        else []
    )
    if len(names) > 1:
        raise DataError(
            f"{table.path}: rows of {len(names)} operators ({', '.join(names[:4])[:60]})",
            expected="one phone on one network",
            hint="split the file by Operatorname",
        )


def _means(values: Floats, first: Rows) -> Floats:
    """The mean of each second's known values; NaN where there are none."""
    known = np.isfinite(values)
    count = np.add.reduceat(known.astype(np.float64), first)
    total = np.add.reduceat(np.where(known, values, 0.0), first)
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)


def _counts(
    table: CsvTable,
    kbps: Floats,
    first: Rows,
    rows: Rows,
    lines: Rows,
    order: Rows,
    late: Rows,
) -> list[str]:
    """Notes; `kbps` and `order` are sorted by time, `lines` and `late` as in the file."""
    notes = []
    if len(late):
        notes.append(f"{len(late)} late rows sorted in ({places(lines[late])})")
    if (rows > 1).any():
        differ = sum(
            len(set(kbps[a : a + n][np.isfinite(kbps[a : a + n])].tolist())) > 1
            for a, n in zip(first.tolist(), rows.tolist(), strict=True)
        )
        notes.append(
            f"{int((rows - 1).sum())} further rows of the same seconds, "
            f"in {differ} of which the rates differ (their mean is taken; "
            f"{places(lines[np.delete(order, first)])})"
        )
    states = table.texts("State") if "State" in table.cells else []
    idle = np.array([state == "I" for state in states], bool)
    if idle.any():
        notes.append(
            f"{int(idle.sum())} of {len(table)} rows while idle (State I; {places(lines[idle])})"
        )
    return notes


def _pings(name: str, time_s: Floats, ping_ms: Floats, period_s: float) -> Series | None:
    """The measured pings; an empty one was not sent, so it is not a lost ping."""
    known = np.isfinite(ping_ms)
    if not known.any():
        return None
    return Series(name, name, "rtt", "", "", "", time_s[known], ping_ms[known], period_s)
