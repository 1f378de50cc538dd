"""Measured rates as a file states them, and the trace they make.

What is left out or changed on the way is counted, and said in `Trace.source`.
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

MAX_STEP_BACK_S: Final = 2.0
"""Rows that go back in time by more are not late rows but another run, or a clock change."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Rates of one link over time.

    Attributes:
        name: name for the trace.
        origin: what it was read from, for `Trace.source`.
        tech: ``5G`` or ``LTE``; empty if nothing says which, which makes it LTE.
        start_s: float64 (n,), rising; when each rate begins, seconds.
        end_s: float64 (n,), when it ends; the next may begin later (a gap), not earlier.
        mbps: float64 (n,), 1e6 bit/s; NaN where nothing was measured.
        rtt: round trips of the same time (NaN is a lost ping), or None.
        notes: what was counted while reading.
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

    A gap of at most `MAX_HOLD_S` holds the rate before it; a longer one ends the trace. The
    bits and the length of the stretch are kept: `period_s` is stretched or shortened to a
    whole fraction of the length.

    Args:
        measured: from a reader.
        rtt_ms: constant base round trip; None takes the measured ones.
        period_s: spacing wanted, seconds.
        path: for messages.

    Raises:
        ConfigError: no round trips at all.
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
    """Raise `ConfigError` for a base round trip or a period that is none."""
    if rtt_ms is not None and not 0 <= rtt_ms < 1e6:
        raise ConfigError(
            f"--rtt-ms {rtt_ms:g}", expected="milliseconds from 0 up", hint="correct --rtt-ms"
        )
    if not 0 < period_s < 3600:
        raise ConfigError(
            f"--period-s {period_s:g}", expected="seconds above 0", hint="correct --period-s"
        )


def needs_rtt(path: Path) -> ConfigError:
    """What to say where a file has no base round trips."""
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
    """The rows of the longest piece between long gaps, and how many such pieces there are."""
    cuts = np.flatnonzero(start[1:] - end[:-1] > MAX_HOLD_S) + 1
    firsts, ends = np.append(0, cuts), np.append(cuts, len(start))
    longest = int(np.argmax(end[ends - 1] - start[firsts]))
    return slice(int(firsts[longest]), int(ends[longest])), len(firsts)


def _gap_notes(
    known: NDArray[np.bool_], start: Floats, end: Floats, inside: slice, pieces: int
) -> list[str]:
    """What was missing, held and left out; `known` of all rows, `start` and `end` of those."""
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
