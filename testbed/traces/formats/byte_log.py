"""Logs of bytes received about once a second: the Norway HSDPA and the Ghent 4G data sets.

Six columns (the data sets' own pages; H. Riiser et al., MMSys 2013, and J. van der Hooft et
al., IEEE Communications Letters 2016): time of day (HSDPA: seconds since 1970, Ghent:
milliseconds), milliseconds since the start, latitude, longitude, bytes received since the last
row, milliseconds since the last row. Both downloaded one large file over HTTP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from cnn.common.errors import DataError
from testbed.traces.formats.number_lines import numbers_of
from testbed.traces.measured import Measured, time_order

_CLOCKS_DIFFER: Final = 0.05
"""A row whose two clocks (since the start, since the last row) differ by less than this share of
its length has no gap before it; its bytes are spread over the time since the row before."""


def read_byte_log(text: str, path: Path, name: str) -> Measured:
    """A log of either data set; `name` is ``hsdpa`` or ``ghent``.

    Raises:
        DataError: it is no such log, or goes back in time.
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
    if not once.all():
        notes.append(f"{int((~once).sum())} repeated rows left out")
    numbers = numbers[once]
    order, late = time_order(numbers[:, 1] / 1e3, lambda row: f"{path}, row {row + 1}")
    if late:
        notes.append(f"{late} late rows sorted in")
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
        notes.append(f"{int(overlapping.sum())} rows begin before the row before them ends")
    seconds = np.where(joined, since, length)
    start = end - np.minimum(seconds, since)
    origin = f"{path.name} ({'Ghent 4G' if name == 'ghent' else 'Norway HSDPA'})"
    return Measured(path.name, origin, "LTE", start, end, bits / seconds / 1e6, None, tuple(notes))
