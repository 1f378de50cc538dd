"""Measured quantities over time, and their conversion to evenly spaced samples and traces.

The rules (explained in `docs/traces.md`):

* A gap in an uplink series is a logging gap, not an outage: the last value is held for at
  most `MAX_HOLD_S`; a longer gap cuts the series in two.
* A lost ping is not a missing value. A packet sent during an outage arrives when the link is back
  (TCP repeats it), so its round trip is the time until the next answered ping was sent plus that
  ping's round trip, and exceeds the latter by at least TCP's shortest retransmission time-out.
* Resampling averages over the new period, so the capacity's integral is kept exactly.

`trace_of` makes a trace of the rates in a file (`Measured`). Data that is left out or changed on
the way is counted and reported in `Trace.source`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError, DataError
from testbed.traces.trace import Trace, n_samples

Floats = NDArray[np.float64]

MAX_HOLD_S = 2.0
"""Longest logging gap that is filled by holding the last value, seconds."""

RETRANSMISSION_MS = 200.0
"""Linux's shortest TCP retransmission time-out (TCP_RTO_MIN, include/net/tcp.h: HZ / 5)."""

MAX_STEP_BACK_S: Final = 2.0
"""Rows that go back in time by more are not late rows: they mean another run or a clock change."""


@dataclass(frozen=True, slots=True)
class Series:
    """Samples of one quantity of one measured trace, as published.

    Attributes:
        name: trace id, such as ``sa24-20241101-001124-ul``.
        set_name: measured set, such as ``sa24``.
        kind: ``ul`` (capacity, Mbit/s) or ``rtt`` (milliseconds).
        group: whole drive, day or route; the unit of the train/test split.
        run: measuring cycle; equal for tests taken minutes apart on one drive.
        tech: radio technology as named by the source.
        time_s: float64 (n,), rising, seconds from the start of the trace.
        values: float64 (n,); NaN is a logging gap (``ul``) or a lost ping (``rtt``).
        period_s: nominal spacing, seconds; the last sample holds for it.
    """

    name: str
    set_name: str
    kind: str
    group: str
    run: str
    tech: str
    time_s: Floats
    values: Floats
    period_s: float

    def __post_init__(self) -> None:
        time, values = self.time_s, self.values
        shapes_fit = time.ndim == 1 and time.shape == values.shape and len(time) > 0
        if not shapes_fit or self.period_s <= 0 or not np.isfinite(time).all():
            raise DataError(
                f"series {self.name}: {time.size} times, {values.size} values, "
                f"period {self.period_s} s",
                expected="as many finite times as values, at least one, and a positive period",
                hint="check the trace file",
            )
        if (np.diff(time) <= 0).any() or np.nanmin(values, initial=0.0) < 0:
            raise DataError(
                f"series {self.name}: times that do not rise, or negative values",
                expected="rising times and values from 0 up",
                hint="check the trace file",
            )


def generation(tech: str) -> str:
    """``5G`` or ``LTE`` for a source's technology name.

    Anything that names 5G counts as 5G, mixtures included; 3G and satellite count as LTE.
    """
    return "5G" if "5G" in tech.upper() else "LTE"


def without_start(series: Series, skip_s: float) -> Series:
    """The series less its first `skip_s` seconds, counted from 0 again."""
    keep = series.time_s >= skip_s
    if not keep.any():
        return series
    time = series.time_s[keep]
    return replace(series, time_s=time - time[0], values=series.values[keep])


def cut_at_gaps(series: Series, max_hold_s: float = MAX_HOLD_S) -> list[Series]:
    """Pieces of an uplink series without gaps longer than `max_hold_s`, the rest held.

    Pieces after the first have ``+`` and their start in seconds appended to their name.
    """
    known = np.isfinite(series.values)
    time, values = series.time_s[known], series.values[known]
    if len(time) == 0:
        return []
    first_of_piece = np.diff(time) > max_hold_s + series.period_s
    bounds = [0, *(np.flatnonzero(first_of_piece) + 1).tolist(), len(time)]
    pieces = []
    for first, end in pairwise(bounds):
        start = time[first]
        name = series.name if first == 0 else f"{series.name}+{start:.0f}s"
        piece_time = time[first:end] - start
        pieces.append(replace(series, name=name, time_s=piece_time, values=values[first:end]))
    return pieces


def answered(series: Series) -> Series:
    """An RTT series whose lost pings have become long round trips (rule above).

    Losses at the end of the series are dropped, as the return of the link is not known.
    Raises `DataError` if every ping was lost.
    """
    known = np.flatnonzero(np.isfinite(series.values))
    if len(known) == 0:
        raise DataError(
            f"series {series.name}: every ping was lost",
            expected="at least one answer",
            hint="leave the series out",
        )
    time, values = series.time_s[: known[-1] + 1], series.values[: known[-1] + 1]
    following = known[np.searchsorted(known, np.arange(len(values)))]
    waited_ms = np.maximum((time[following] - time) * 1e3, RETRANSMISSION_MS)
    lost = ~np.isfinite(values)
    filled = np.where(lost, values[following] + waited_ms, values)
    return replace(series, time_s=time, values=filled)


def resample(series: Series, period_s: float) -> Floats:
    """Means over consecutive periods of the piecewise-constant series.

    Args:
        series: without NaN; each value holds until the next, the last for `series.period_s`.
        period_s: spacing wanted, seconds.

    Returns:
        float64 (m,), m = whole periods within the series, at least 1.
    """
    edges = np.append(series.time_s, series.time_s[-1] + series.period_s)
    count = max(1, int((edges[-1] - edges[0]) / period_s + 1e-6))
    return _means(series.values, edges, edges[0], count, period_s)


def resample_window(series: Series, start_s: float, count: int, period_s: float) -> Floats:
    """`count` means over periods from `start_s` on, in the series' own time.

    The first value also holds before the series, the last one after it.
    """
    end_s = max(start_s + count * period_s, series.time_s[-1] + series.period_s)
    first = min(start_s, series.time_s[0])
    edges = np.concatenate([[first], series.time_s[1:], [end_s]])
    return _means(series.values, edges, start_s, count, period_s)


def _means(values: Floats, edges: Floats, start_s: float, count: int, period_s: float) -> Floats:
    """`count` means from `start_s` on of the function that has `values` between `edges`."""
    integral = np.concatenate([[0.0], np.cumsum(values * np.diff(edges))])
    grid = start_s + period_s * np.arange(count + 1)
    # Rounding may leave a difference slightly below zero if the value is 0.
    means: Floats = np.diff(np.interp(grid, edges, integral)) / period_s
    return np.maximum(means, 0.0)


def tile(values: Floats, count: int) -> Floats:
    """The first `count` values of the endless repetition of `values`."""
    return np.resize(values, count)


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
    """

    name: str
    origin: str
    tech: str
    start_s: Floats
    end_s: Floats
    mbps: Floats
    rtt: Series | None = None
    notes: tuple[str, ...] = ()


def trace_of(measured: Measured, rtt_ms: float | None, period_s: float, path: Path) -> Trace:
    """The longest stretch of `measured` without long gaps as an evenly spaced trace.

    A gap of at most `MAX_HOLD_S` keeps the previous rate; a longer one ends the trace. The
    bits and the length of the stretch are kept: `period_s` is stretched or shortened to a
    whole fraction of the length.

    Args:
        measured: from a reader.
        rtt_ms: constant base round trip; None takes the measured ones.
        period_s: spacing wanted, seconds.
        path: for messages.

    Raises:
        ConfigError: there are no round trips.
        DataError: no rate, or no capacity.
    """
    known = np.isfinite(measured.mbps)
    if not known.any() or not np.nanmax(measured.mbps) > 0:
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
    notes = [*measured.notes, *_gap_notes(known, start, end, inside, pieces)]
    if rtt_ms is not None:
        rtt = np.full(len(capacity), float(rtt_ms))
        origin = f"constant round trip {rtt_ms:g} ms set by hand"
    elif measured.rtt is not None:
        rtt = resample_window(answered(measured.rtt), start_s, len(capacity), period_s)
        origin = "its own round trips"
        notes += _rtt_notes(measured.rtt)
    else:
        raise needs_rtt(path)
    if not measured.tech:
        notes.append("technology not stated: taken as LTE")
    offset_s = start_s - measured.start_s[0]
    name = f"{measured.name}+{offset_s:.0f}s" if inside.start else measured.name
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


def time_order(time_s: Floats, where: Callable[[int], str]) -> tuple[NDArray[np.int64], int]:
    """The order that sorts rows by time, and how many rows came late.

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
    return np.argsort(time_s, kind="stable"), int((back_s > 0).sum())


def _longest_piece(start: Floats, end: Floats) -> tuple[slice, int]:
    """The rows of the longest piece between long gaps, and the number of such pieces."""
    cuts = np.flatnonzero(start[1:] - end[:-1] > MAX_HOLD_S) + 1
    firsts, ends = np.append(0, cuts), np.append(cuts, len(start))
    longest = int(np.argmax(end[ends - 1] - start[firsts]))
    return slice(int(firsts[longest]), int(ends[longest])), len(firsts)


def _gap_notes(
    known: NDArray[np.bool_], start: Floats, end: Floats, inside: slice, pieces: int
) -> list[str]:
    """Notes on missing, held and omitted data; `known` of all rows, `start` and `end` of those."""
    notes = []
    if not known.all():
        notes.append(f"{int((~known).sum())} of {len(known)} rows without a rate")
    gap_s = start[inside][1:] - end[inside][:-1]
    held = gap_s[gap_s > 0.01 * MAX_HOLD_S]
    if len(held):
        notes.append(f"{len(held)} gaps held ({held.sum():.4g} s)")
    if pieces > 1:
        whole_s, kept_s = float((end - start).sum()), float((end[inside] - start[inside]).sum())
        notes.append(
            f"longest of {pieces} pieces between gaps of over {MAX_HOLD_S:g} s; "
            f"{whole_s - kept_s:.4g} of {whole_s:.4g} measured s left out"
        )
    return notes


def _rtt_notes(rtt: Series) -> list[str]:
    lost = int((~np.isfinite(rtt.values)).sum())
    return [f"{lost} of {len(rtt.values)} pings lost"] if lost else []
