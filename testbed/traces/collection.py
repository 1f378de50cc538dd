"""Measured traces: series of the collection, uplink joined with round trips.

The collection is a folder that `testbed.traces.sample_files` reads; `load_traces` joins uplink
and round trips into traces of one of the kinds in `testbed.traces.trace_kinds`. They were not
measured at the same time: `Trace.source` names the two series that were joined.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cnn.common.errors import DataError
from testbed.traces.sample_files import read_series
from testbed.traces.series import (
    Floats,
    Series,
    answered,
    cut_at_gaps,
    resample,
    tile,
    without_start,
)
from testbed.traces.trace import Trace
from testbed.traces.trace_kinds import Selection, in_part, select

SLOW_START_S: Final = {"sa24": 2.0}
"""Seconds at the start of a set's uplink tests in which TCP had not yet filled the link."""

MIN_DURATION_S: Final = 20.0
"""Shorter uplink pieces are left out. The shortest tests that a stall ended lasted 20 s."""


def load_traces(
    folder: Path,
    kind: str,
    part: str = "all",
    *,
    period_s: float = 0.1,
    min_duration_s: float = MIN_DURATION_S,
) -> list[Trace]:
    """Measured traces of one kind, uplink joined with round trips (see `SELECTIONS`).

    Round trips come from the uplink's own measuring cycle if the kind requires it (repeated to
    the trace's end), otherwise from series of the same part, the first selected by the trace's
    name. `Trace.source` names them.

    Arguments and errors are those of `load_collection`, which also reports the data left out.
    """
    return load_collection(
        folder, kind, part, period_s=period_s, min_duration_s=min_duration_s
    ).traces


@dataclass(frozen=True, slots=True)
class Collection:
    """Traces of one kind and part.

    Attributes:
        traces: see `load_traces`.
        notes: counts of the measured data left out.
    """

    traces: list[Trace]
    notes: tuple[str, ...]


def load_collection(
    folder: Path,
    kind: str,
    part: str = "all",
    *,
    period_s: float = 0.1,
    min_duration_s: float = MIN_DURATION_S,
) -> Collection:
    """Measured traces of one kind (see `load_traces`), and the data left out.

    Args:
        folder: the collection, or a folder with ``traces`` in it.
        kind: ``urban-5g``, ``highway-lte`` or ``poor-coverage``.
        part: ``train``, ``test`` or ``all`` (split by drive, `testbed.traces.trace_kinds`).
        period_s: spacing of the traces' samples, seconds.
        min_duration_s: shorter pieces are left out.

    Raises:
        ConfigError: unknown kind or part.
        DataError: the files are missing or do not match the index.
    """
    selection = select(kind)
    uplinks = uplink_series(folder, selection, part)
    pings = _pings(folder, selection, part, {series.run for series in uplinks})
    dead = sum(_missing(series) == len(series.values) for series in pings)
    pool = [answered(series) for series in pings if _missing(series) < len(series.values)]
    pieces = [(piece, series) for series in uplinks for piece in cut_at_gaps(series)]
    sampled = [(piece, series, resample(piece, period_s)) for piece, series in pieces]
    short = [len(c) * period_s for *_, c in sampled if len(c) * period_s < min_duration_s]
    long = [(p, s, c) for p, s, c in sampled if len(c) * period_s >= min_duration_s]
    silent = [len(c) * period_s for *_, c in long if c.max() == 0]
    traces = [_joined(p, s, c, pool, selection, period_s) for p, s, c in long if c.max() > 0]
    cuts = len(pieces) - sum(_missing(series) < len(series.values) for series in uplinks)
    n_pings = sum(len(series.values) for series in pings)
    notes = (
        f"{len(traces)} traces of {len(uplinks)} uplink series of {kind}, part {part}",
        _started_later(uplinks),
        _counted(sum(map(_missing, uplinks)), "samples are missing: held, or cut at"),
        _counted(cuts, "long gaps cut a series in two"),
        _seconds(short, f"pieces shorter than {min_duration_s:g} s left out"),
        _seconds(silent, "pieces without any capacity left out"),
        _counted(dead, "ping series without an answer left out"),
        _counted(sum(map(_missing, pings)), f"of {n_pings} pings lost"),
    )
    return Collection(traces, tuple(note for note in notes if note))


def _joined(
    piece: Series,
    series: Series,
    capacity: Floats,
    pool: list[Series],
    selection: Selection,
    period_s: float,
) -> Trace:
    """A piece of an uplink series, sampled as `capacity`, with round trips of the pool."""
    rtt, origin = _round_trips(piece, pool, selection.own_rtt, len(capacity), period_s)
    source = f"measured: uplink {piece.name}, {origin}"
    if _missing(series):
        source += f"; {_missing(series)} of {len(series.values)} samples of the series missing"
    if series.set_name in SLOW_START_S:
        source += f"; its first {SLOW_START_S[series.set_name]:g} s left out"
    return Trace(
        uplink_mbps=capacity,
        rtt_ms=rtt,
        period_s=period_s,
        name=piece.name,
        tech=selection.tech,
        source=source,
    )


def _missing(series: Series) -> int:
    return int((~np.isfinite(series.values)).sum())


def _started_later(uplinks: list[Series]) -> str:
    sets = Counter(s.set_name for s in uplinks if s.set_name in SLOW_START_S)
    return "; ".join(
        f"the first {SLOW_START_S[name]:g} s (TCP's slow start) of {n} tests of {name} left out"
        for name, n in sets.items()
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count else ""


def _seconds(lengths_s: list[float], what: str) -> str:
    return f"{len(lengths_s)} {what} ({sum(lengths_s):.1f} s)" if lengths_s else ""


def uplink_series(folder: Path, selection: Selection, part: str) -> list[Series]:
    """Uplink series of a selection and part, less TCP's start; gaps still in them."""
    return [
        without_start(series, SLOW_START_S.get(series.set_name, 0.0))
        for source in selection.uplink
        for series in read_series(folder, source.set_name, "ul")
        if source.takes(series) and in_part(series.group, part)
    ]


def rtt_series(folder: Path, selection: Selection, part: str, runs: set[str]) -> list[Series]:
    """Round-trip series of a selection and part, lost pings answered (`trace_series`).

    With `own_rtt`, only those of the measuring cycles in `runs`.
    """
    return [
        answered(s) for s in _pings(folder, selection, part, runs) if _missing(s) < len(s.values)
    ]


def _pings(folder: Path, selection: Selection, part: str, runs: set[str]) -> list[Series]:
    """`rtt_series` as measured, also series of which every ping was lost."""
    found = [
        series
        for source in selection.rtt
        for series in read_series(folder, source.set_name, "rtt")
        if source.takes(series)
        and in_part(series.group, part)
        and (series.run in runs or not selection.own_rtt)
    ]
    if all(_missing(series) == len(series.values) for series in found):
        raise DataError(
            f"{folder}: no round-trip series for part {part}",
            expected="at least one",
            hint="get the sets that docs/traces.md names for this kind",
        )
    return found


def _round_trips(
    uplink: Series, pool: list[Series], own: bool, count: int, period_s: float
) -> tuple[Floats, str]:
    """Round trips for `count` samples of an uplink piece, and their source.

    Its own cycle's pings, repeated, if `own` and there are any; else the series of the pool
    selected by the uplink's name, and as many after it as the piece needs.
    """
    if own:
        for series in pool:
            if series.run == uplink.run:
                rtt = tile(resample(series, period_s), count)
                return rtt, f"rtt {series.name} (same cycle, minutes later)"
    first = zlib.crc32(uplink.name.encode()) % len(pool)
    parts: list[Floats] = []
    while sum(map(len, parts)) < count:
        parts.append(resample(pool[(first + len(parts)) % len(pool)], period_s))
    origin = f"rtt {pool[first].name} (another place and time)"
    if len(parts) > 1:
        origin = f"rtt {pool[first].name} and {len(parts) - 1} after it (another place and time)"
    return np.concatenate(parts)[:count], origin
