"""Rates that one file holds (`Measured`), and the trace that they become (`trace_of`).

What is left out, held or filled on the way is counted in `Trace.source`, with its rows in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError, DataError
from testbed.traces.series import MAX_HOLD_S, Floats, Series, answered, resample, resample_window
from testbed.traces.trace import Trace, n_samples

Rows = NDArray[np.int64]

MAX_STEP_BACK_S: Final = 2.0
"""Rows that go back in time by more are not late rows: they mean another run or a clock change."""
_MOST_PLACES: Final = 8
"""Rows, or stretches of rows, that a note names."""

RoundTrips = Callable[[str, int, float], tuple[Floats, str]]
"""(name of a trace, n samples, their spacing in seconds) -> base round trips, float64 (n,) in
milliseconds, and the words for their origin."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Rates of one link over time.

    Attributes:
        name: name for the trace.
        origin: its source, for `Trace.source`.
        tech: ``5G`` or ``LTE``; empty if unknown, which counts as LTE.
        start_s: float64 (n,), rising; when each rate begins, seconds.
        end_s: float64 (n,), when it ends; the next may begin later (a gap), not earlier.
        mbps: float64 (n,), 1e6 bit/s; NaN for no measurement.
        rtt: round trips of the same time (NaN is a lost ping), or None.
        notes: counts made while reading.
        rows: int64 (n,), where each rate stands in the file, from 1; None if that is not known.
        row_word: what `rows` counts: ``line``, ``row`` or ``interval``.
        day: date on which it was measured, such as ``2024-11-05``; empty if the file has none.
    """

    name: str
    origin: str
    tech: str
    start_s: Floats
    end_s: Floats
    mbps: Floats
    rtt: Series | None = None
    notes: tuple[str, ...] = ()
    rows: Rows | None = None
    row_word: str = "line"
    day: str = ""

    @property
    def has_capacity(self) -> bool:
        """Whether any rate is above 0."""
        return bool((self.mbps > 0).any())


def constant_rtt(rtt_ms: float) -> RoundTrips:
    """The same base round trip at all times."""
    return lambda name, count, period_s: (
        np.full(count, float(rtt_ms)),
        f"constant round trip {rtt_ms:g} ms set by hand",
    )


def trace_of(
    measured: Measured,
    rtt_ms: float | None,
    period_s: float,
    path: Path,
    otherwise: RoundTrips | None = None,
) -> Trace:
    """The longest stretch of `measured` without long gaps as an evenly spaced trace.

    A gap of at most `MAX_HOLD_S` keeps the previous rate; a longer one ends the trace. The
    bits and the length of the stretch are kept: `period_s` is stretched or shortened to a
    whole fraction of the length.

    Args:
        measured: from a reader.
        rtt_ms: constant base round trip; None takes the measured ones.
        period_s: spacing wanted, seconds.
        path: for messages.
        otherwise: round trips where there are none; None refuses.

    Raises:
        ConfigError: there are no round trips.
        DataError: no rate, or no capacity.
    """
    known = np.isfinite(measured.mbps)
    if not measured.has_capacity:
        raise DataError(
            f"{path}: {int(known.sum())} measured rates, none above 0",
            expected="some capacity",
            hint="check that the test ran, and the direction",
        )
    start, end, mbps = measured.start_s[known], measured.end_s[known], measured.mbps[known]
    inside, pieces = _longest_piece(start, end)
    start_s, length_s = float(start[inside][0]), float(end[inside][-1] - start[inside][0])
    steps = n_samples(length_s, period_s, measured.name)
    if abs(steps * period_s - length_s) > 1e-6 * period_s:
        period_s = length_s / steps
    last_s = float(end[inside][-1] - start[inside][-1])
    piece = Series(measured.name, path.name, "ul", "", "", "", start[inside], mbps[inside], last_s)
    capacity = resample(piece, period_s)
    notes = [*measured.notes, *_gap_notes(measured, known, inside, pieces)]
    offset_s = start_s - measured.start_s[0]
    name = f"{measured.name}+{offset_s:.0f}s" if inside.start else measured.name
    if rtt_ms is not None:
        otherwise = constant_rtt(rtt_ms)
    if rtt_ms is None and measured.rtt is not None:
        rtt = resample_window(answered(measured.rtt), start_s, len(capacity), period_s)
        origin = "its own round trips"
        notes += _rtt_notes(measured)
    elif otherwise is not None:
        rtt, origin = otherwise(name, len(capacity), period_s)
    else:
        raise needs_rtt(path)
    if not measured.tech:
        notes.append("technology not stated: taken as LTE")
    return Trace(
        uplink_mbps=capacity,
        rtt_ms=rtt,
        period_s=period_s,
        name=name,
        tech=measured.tech or "LTE",
        source="; ".join([f"measured: uplink {name} of {measured.origin}, {origin}", *notes]),
    )


def check_options(rtt_ms: float | None, period_s: float) -> None:
    """Raise `ConfigError` for an invalid base round trip or period."""
    if rtt_ms is not None and not 0 <= rtt_ms < 1e6:
        raise ConfigError(
            f"--rtt-ms {rtt_ms:g}", expected="milliseconds from 0 up", hint="correct --rtt-ms"
        )
    if not 0 < period_s < 3600:
        raise ConfigError(
            f"--period-s {period_s:g}", expected="seconds above 0", hint="correct --period-s"
        )


def needs_rtt(path: Path) -> ConfigError:
    """The error for a file without base round trips."""
    return ConfigError(
        f"{path} has no round trips of an idle link",
        expected="a base round trip",
        hint="give --rtt-ms",
    )


def places(numbers: Rows, word: str = "line") -> str:
    """Rows in words: ``line 7``, ``lines 3-5, 9``, ``lines 1, 3, 5 and 12 more``."""
    rows = np.unique(numbers)
    borders = np.flatnonzero(np.diff(rows) > 1) + 1
    runs = [(int(run[0]), int(run[-1])) for run in np.split(rows, borders)]
    said = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:_MOST_PLACES]]
    more = len(rows) - sum(b - a + 1 for a, b in runs[:_MOST_PLACES])
    text = f"{word}{'s' if len(rows) > 1 else ''} {', '.join(said)}"
    return f"{text} and {more} more" if more else text


def time_order(time_s: Floats, where: Callable[[int], str]) -> tuple[Rows, Rows]:
    """The order that sorts rows by time, and the rows (from 0) that came late.

    Args:
        time_s: float64 (n,), seconds.
        where: names a row in messages.

    Raises:
        DataError: a row goes back by more than `MAX_STEP_BACK_S`.
    """
    back_s = np.maximum.accumulate(time_s) - time_s
    if back_s.max() > MAX_STEP_BACK_S:
        row = int(np.argmax(back_s > MAX_STEP_BACK_S))
        raise DataError(
            f"{where(row)}: goes back by {back_s[row]:.4g} s",
            expected="rows in the order of time, of one run",
            hint="sort the file, or split it if it holds several runs or a clock change",
        )
    return np.argsort(time_s, kind="stable"), np.flatnonzero(back_s > 0)


def _longest_piece(start: Floats, end: Floats) -> tuple[slice, int]:
    """The rows of the longest piece between long gaps, and the number of such pieces."""
    cuts = np.flatnonzero(start[1:] - end[:-1] > MAX_HOLD_S) + 1
    firsts, ends = np.append(0, cuts), np.append(cuts, len(start))
    longest = int(np.argmax(end[ends - 1] - start[firsts]))
    return slice(int(firsts[longest]), int(ends[longest])), len(firsts)


def _gap_notes(
    measured: Measured, known: NDArray[np.bool_], inside: slice, pieces: int
) -> list[str]:
    """Notes on missing, held and omitted data; `inside` counts the known rates alone."""
    start, end = measured.start_s[known], measured.end_s[known]
    rows = None if measured.rows is None else measured.rows[known]
    notes = []
    if not known.all():
        text = f"{int((~known).sum())} of {len(known)} rows without a rate"
        if measured.rows is not None:
            text += f" ({places(measured.rows[~known], measured.row_word)})"
        notes.append(text)
    gap_s = start[inside][1:] - end[inside][:-1]
    held = gap_s > 0.01 * MAX_HOLD_S
    if held.any():
        at = "" if rows is None else f", after {places(rows[inside][:-1][held], measured.row_word)}"
        notes.append(f"{int(held.sum())} gaps held ({gap_s[held].sum():.4g} s{at})")
    if pieces > 1:
        whole_s, kept_s = float((end - start).sum()), float((end[inside] - start[inside]).sum())
        text = (
            f"longest of {pieces} pieces between gaps of over {MAX_HOLD_S:g} s; "
            f"{whole_s - kept_s:.4g} of {whole_s:.4g} measured s left out"
        )
        if rows is not None:
            text += f" ({places(np.delete(rows, inside), measured.row_word)})"
        notes.append(text)
    return notes


def _rtt_notes(measured: Measured) -> list[str]:
    assert measured.rtt is not None
    lost = ~np.isfinite(measured.rtt.values)
    if not lost.any():
        return []
    text = f"{int(lost.sum())} of {len(lost)} pings lost"
    if measured.rows is not None and len(measured.rows) == len(lost):
        text += f" ({places(measured.rows[lost], measured.row_word)})"
    return [text]
