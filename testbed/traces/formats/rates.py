"""Files of plain rates: Pensieve's two columns, and one rate a line."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from cnn.common.errors import ConfigError, DataError
from testbed.traces.formats.number_lines import numbers_of
from testbed.traces.measured import Measured
from testbed.traces.series import Floats

UNITS: Final = {"bps": 1e-6, "kbps": 1e-3, "mbps": 1.0, "kBps": 8e-3, "MBps": 8.0}
"""Names of rates -> Mbit/s (the last two count bytes)."""


def read_pensieve(text: str, path: Path) -> Measured:
    """Pensieve's traces: time in seconds, and the rate in Mbit/s *until* that time.

    So its simulator takes them (H. Mao et al., SIGCOMM 2017; ``sim/env.py``: rate i lasts
    from time i - 1 to time i). The first row's rate lasts from 0, or not at all if it is at 0.
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
    if end[0] == 0:
        if len(end) == 1:
            raise DataError(f"{path}: one row, at 0 s", expected="more", hint="check the file")
        notes.append("the first row, at 0 s, lasts no time")
        end, mbps = end[1:], mbps[1:]
        start = numbers[:-1, 0]
    else:
        start = np.append(0.0, end[:-1])
    return Measured(path.name, f"{path.name} (Pensieve)", "", start, end, mbps, None, tuple(notes))


def read_rates(text: str, path: Path, spacing_s: float | None, unit: str | None) -> Measured:
    """One rate a line, `spacing_s` apart, in `unit` (see `UNITS`).

    Raises:
        ConfigError: spacing or unit are not given, or unknown.
        DataError: it is no such file.
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
