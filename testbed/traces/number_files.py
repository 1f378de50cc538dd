"""Trace files of numbers only, distinguished by their columns (`testbed.traces.recognise`).

* Mahimahi's packet-delivery files: each line is a time in milliseconds at which one 1500-byte
  packet can leave; the file repeats after its last line (R. Netravali et al., USENIX ATC 2015;
  ``traces/README`` of mahimahi).
* Logs of bytes received about once a second, the Norway HSDPA and the Ghent 4G data sets. Six
  columns (the data sets' own pages; H. Riiser et al., MMSys 2013, and J. van der Hooft et al.,
  IEEE Communications Letters 2016): time of day (HSDPA: seconds since 1970, Ghent: milliseconds),
  milliseconds since the start, latitude, longitude, bytes received since the last row,
  milliseconds since the last row. Both downloaded one large file over HTTP.
* Plain rates: Pensieve's two columns, and one rate a line.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError, DataError
from testbed.traces.measured import Measured, RoundTrips, constant_rtt, places, time_order
from testbed.traces.series import Floats
from testbed.traces.trace import Trace, n_samples

BITS: Final = 1500 * 8
"""Bits of one delivery opportunity (mahimahi's own queue counts 1504, with 4 of its tunnel)."""
LONGEST_MS: Final = 7 * 24 * 3600 * 1000
_NAMED_SO: Final = re.compile(r"(\.(up|down|trace|mahi|mahimahi)|\d ?[kmg]?bps)$", re.IGNORECASE)
"""Names of Mahimahi's files: ``ATT-LTE-driving.up``, ``12mbps.trace``, ``12mbps``."""
_SURELY_TIMES: Final = 20
"""This many different numbers in rising order are times: rates are not sorted."""
_CLOCKS_DIFFER: Final = 0.05
"""A row whose two clocks (since the start, since the last row) differ by less than this share of
its length has no gap before it; its bytes are spread over the time since the row before."""
UNITS: Final = {"bps": 1e-6, "kbps": 1e-3, "mbps": 1.0, "kBps": 8e-3, "MBps": 8.0}
"""Names of rates -> Mbit/s (the last two count bytes)."""


def numbers_of(text: str) -> NDArray[np.float64] | None:
    """A text of numbers only, equally many in each line, as float64 (lines, columns).

    None for other text. Blank lines are ignored.
    """
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    cells = text.split()
    if not lines or len(cells) % len(lines):
        return None
    width = len(cells) // len(lines)
    if width > 1 and any(len(line.split()) != width for line in lines):
        return None
    try:
        found = np.array(cells, dtype=np.float64).reshape(-1, width)
    except ValueError:
        return None
    return found if np.isfinite(found).all() else None


def are_whole(text: str) -> bool:
    """Whether the numbers of a text are written without a fraction or an exponent."""
    return not any(mark in text for mark in ".eE")


def mahimahi_trace(
    text: str, path: Path, rtt_ms: float | RoundTrips, period_s: float = 0.1
) -> Trace:
    """A Mahimahi file as a trace with exactly its bits in exactly its length.

    The trace's period is the largest one up to `period_s` that divides a pass into whole periods;
    a pass shorter than `period_s` is one constant rate.

    Args:
        text: content of the file.
        path: names the trace.
        rtt_ms: base round trip, not in such files: a constant, or where to get it.
        period_s: longest spacing of the trace, seconds.

    Raises:
        DataError: it is not such a file.
    """
    times_ms = _times(text, path)
    pass_ms, period_ms = int(times_ms[-1]), period_s * 1e3
    n_samples(pass_ms / 1e3, period_s, path.name)
    if pass_ms < period_ms:
        counts = np.array([len(times_ms)])
        step_s, bin_ms = math.floor(period_ms / pass_ms + 1e-9) * pass_ms / 1e3, float(pass_ms)
    else:
        bins = math.ceil(pass_ms / period_ms - 1e-9)
        # In whole numbers: a time on a border belongs to the bin that it ends.
        at = np.maximum((times_ms * bins + pass_ms - 1) // pass_ms - 1, 0)
        counts = np.bincount(at, minlength=bins)
        step_s, bin_ms = pass_ms / bins / 1e3, pass_ms / bins
    mean = len(times_ms) * BITS / pass_ms / 1e3
    made = rtt_ms if callable(rtt_ms) else constant_rtt(rtt_ms)
    rtt, origin = made(path.name, len(counts), step_s)
    return Trace(
        uplink_mbps=counts * BITS / bin_ms / 1e3,
        rtt_ms=rtt,
        period_s=step_s,
        name=path.name,
        tech="LTE",
        source=f"measured: mahimahi file {path.name}, packets due: {len(times_ms)} in {pass_ms} ms "
        f"(mean {mean:.4g} Mbit/s), {origin}",
    )


def may_be_rates(numbers: NDArray[np.float64], name: str) -> bool:
    """Whether rising whole numbers may also be one rate a line.

    Few different numbers may, unless the file has a name like Mahimahi's.
    """
    named_so = _NAMED_SO.search(name.removesuffix(".gz"))
    return not named_so and len(np.unique(numbers)) < _SURELY_TIMES


def _times(text: str, path: Path) -> NDArray[np.int64]:
    """The times of a Mahimahi file, milliseconds; raises `DataError` if it is not one."""
    numbers = numbers_of(text) if are_whole(text) else None
    if numbers is None or numbers.shape[1] != 1:
        wrong = next((n for n, line in enumerate(text.split("\n"), 1) if not _is_time(line)), 0)
        raise DataError(
            f"{path}, line {wrong}: not one whole number",
            expected="a time in milliseconds in each line (a Mahimahi file)",
            hint="check the file, or import it with sliproad testbed traces import",
        )
    times_ms = numbers[:, 0]
    if times_ms[0] < 0 or (np.diff(times_ms) < 0).any() or not times_ms[-1]:
        raise DataError(
            f"{path}: {len(times_ms)} times, not rising from 0 up to a positive end",
            expected="rising times in milliseconds (a Mahimahi file)",
            hint="check the file",
        )
    if times_ms[-1] > LONGEST_MS:
        raise DataError(
            f"{path}: lasts {times_ms[-1] / 3.6e6:.0f} h",
            expected="at most a week",
            hint="check that the times are milliseconds from the start of the trace",
        )
    return times_ms.astype(np.int64)


def _is_time(line: str) -> bool:
    text = line.strip()
    return not text or (text.isascii() and text.isdigit() and len(text) < 18)


def read_byte_log(text: str, path: Path, name: str) -> Measured:
    """A log of either data set; `name` is ``hsdpa`` or ``ghent``.

    Raises:
        DataError: it is not such a log, or goes back in time.
    """
    numbers = numbers_of(text)
    if numbers is None or numbers.shape[1] != 6:
        raise DataError(
            f"{path}: not six columns of numbers",
            expected="time, ms since the start, latitude, longitude, bytes, ms since the last row",
            hint="check the file, or give another --format",
        )
    wrong = np.flatnonzero((numbers[:, 4] < 0) | (numbers[:, 5] <= 0))
    if len(wrong):
        raise DataError(
            f"{path}, row {wrong[0] + 1}: {numbers[wrong[0], 4]:g} bytes in "
            f"{numbers[wrong[0], 5]:g} ms",
            expected="bytes from 0 up, in a time above 0",
            hint="check the file, or remove the row",
        )
    notes = ["download rates, taken as the uplink's"]
    once = np.append(True, (np.diff(numbers, axis=0) != 0).any(axis=1))
    rows = np.arange(1, len(numbers) + 1)
    if not once.all():
        repeated = places(rows[~once], "row")
        notes.append(f"{int((~once).sum())} repeated rows left out ({repeated})")
    numbers, rows = numbers[once], rows[once]
    order, late = time_order(numbers[:, 1] / 1e3, lambda row: f"{path}, row {rows[row]}")
    if len(late):
        notes.append(f"{len(late)} late rows sorted in ({places(rows[late], 'row')})")
    rows = rows[order]
    end, length = numbers[order, 1] / 1e3, numbers[order, 5] / 1e3
    bits = 8 * numbers[order, 4]
    since = np.append(length[0], np.diff(end))
    if (since <= 0).any():
        row = int(np.argmax(since <= 0))
        raise DataError(
            f"{path}: two different rows at {end[row] * 1e3:.0f} ms since the start",
            expected="one row a moment",
            hint="remove one, or split the file if it holds several runs",
        )
    joined = np.abs(since - length) <= _CLOCKS_DIFFER * length
    overlapping = ~joined & (since < length)
    if overlapping.any():
        notes.append(
            f"{int(overlapping.sum())} rows begin before the row before them ends "
            f"({places(rows[overlapping], 'row')})"
        )
    seconds = np.where(joined, since, length)
    start = end - np.minimum(seconds, since)
    origin = f"{path.name} ({'Ghent 4G' if name == 'ghent' else 'Norway HSDPA'})"
    clock_s = float(numbers[0, 0]) / (1e3 if name == "ghent" else 1.0)
    return Measured(
        path.name,
        origin,
        "LTE",
        start,
        end,
        bits / seconds / 1e6,
        None,
        tuple(notes),
        rows,
        "row",
        _day(clock_s),
    )


def _day(seconds: float) -> str:
    """The date (UTC) of a time since 1970; empty if there is no such date."""
    try:
        return datetime.fromtimestamp(seconds, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return ""


def read_pensieve(text: str, path: Path) -> Measured:
    """Pensieve's traces: time in seconds, and the rate in Mbit/s *until* that time.

    Its simulator uses them in this way (H. Mao et al., SIGCOMM 2017; ``sim/env.py``: rate i lasts
    from time i - 1 to time i). The first row's rate lasts from 0, or is dropped if its time is 0.
    """
    numbers = _numbers(text, path, 2)
    end, mbps = numbers[:, 0], numbers[:, 1]
    stuck = np.flatnonzero(np.diff(end) <= 0)
    if end[0] < 0 or len(stuck):
        row = int(stuck[0]) + 1 if len(stuck) else 0
        raise DataError(
            f"{path}, row {row + 1}: time {end[row]:g} s after {end[max(row - 1, 0)]:g} s",
            expected="rising times from 0 up",
            hint="sort the file, or split it if it holds several runs",
        )
    notes = ["Pensieve's order: each rate lasts until its time"]
    rows = np.arange(1, len(numbers) + 1)
    if end[0] == 0:
        if len(end) == 1:
            raise DataError(f"{path}: one row, at 0 s", expected="more", hint="check the file")
        notes.append("the first row, at 0 s, lasts no time")
        end, mbps, rows = end[1:], mbps[1:], rows[1:]
        start = numbers[:-1, 0]
    else:
        start = np.append(0.0, end[:-1])
    origin = f"{path.name} (Pensieve)"
    return Measured(path.name, origin, "", start, end, mbps, None, tuple(notes), rows, "row")


def read_rates(text: str, path: Path, spacing_s: float | None, unit: str | None) -> Measured:
    """One rate a line, `spacing_s` apart, in `unit` (see `UNITS`).

    Raises:
        ConfigError: spacing or unit are not given, or unknown.
        DataError: it is not such a file.
    """
    if spacing_s is None or unit is None or unit not in UNITS or not 0 < spacing_s < 1e6:
        raise ConfigError(
            f"{path}: spacing {spacing_s if spacing_s is not None else 'not given'}, "
            f"unit {unit or 'not given'}",
            expected=f"seconds between lines, and one of {', '.join(UNITS)}",
            hint="give --spacing-s and --unit, which such a file does not say",
        )
    mbps = _numbers(text, path, 1)[:, 0] * UNITS[unit]
    start = spacing_s * np.arange(len(mbps), dtype=np.float64)
    end = spacing_s * np.arange(1, len(mbps) + 1, dtype=np.float64)
    origin = f"{path.name} (rates in {unit}, {spacing_s:g} s apart, by hand)"
    return Measured(path.name, origin, "", start, end, mbps)


def _numbers(text: str, path: Path, width: int) -> Floats:
    """The numbers of a file of `width` columns; raises `DataError` unless the last is from 0 up."""
    found = numbers_of(text)
    if found is None or found.shape[1] != width or found[:, -1].min() < 0:
        raise DataError(
            f"{path}: not {width} {'column' if width == 1 else 'columns'} of numbers from 0 up",
            expected="seconds and Mbit/s" if width == 2 else "one rate a line",
            hint="check the file, or give another --format",
        )
    return found
