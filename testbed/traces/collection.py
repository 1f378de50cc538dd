"""Measured traces: series of the collection, uplink joined with round trips.

The collection is a folder that `testbed.traces.sample_files` reads; `load_traces` joins uplink
and round trips into traces of one of the kinds in `testbed.traces.selection`. Nobody measured
both at one moment: `Trace.source` names the two series that were joined.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Final

import numpy as np

from cnn.errors import DataError
from testbed.traces.sample_files import read_series
from testbed.traces.selection import Selection, select
from testbed.traces.series import (
    Floats,
    Series,
    answered,
    cut_at_gaps,
    resample,
    tile,
    without_start,
)
from testbed.traces.split import in_part
from testbed.traces.trace import Trace

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

    Round trips come from the uplink's own measuring cycle where the kind says so (repeated
    to the trace's end), else from series of the same part, the first picked by the trace's
    name. `Trace.source` says which.

    Args:
        folder: the collection, or a folder with ``traces`` in it.
        kind: ``urban-5g``, ``highway-lte`` or ``poor-coverage``.
        part: ``train``, ``test`` or ``all`` (split by drive, `testbed.traces.split`).
        period_s: spacing of the traces' samples, seconds.
        min_duration_s: shorter pieces are left out.

    Raises:
        ConfigError: unknown kind or part.
        DataError: the files are missing or not as the index says.
    """
    selection = select(kind)
    uplinks = uplink_series(folder, selection, part)
    pool = rtt_series(folder, selection, part, {series.run for series in uplinks})
    traces = []
    for series in uplinks:
        for piece in cut_at_gaps(series):
            capacity = resample(piece, period_s)
            if len(capacity) * period_s < min_duration_s or capacity.max() == 0:
                continue
            rtt, origin = _round_trips(piece, pool, selection.own_rtt, len(capacity), period_s)
            traces.append(
                Trace(
                    uplink_mbps=capacity,
                    rtt_ms=rtt,
                    period_s=period_s,
                    name=piece.name,
                    tech=selection.tech,
                    source=f"measured: uplink {piece.name}, {origin}",
                )
            )
    return traces


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
    found = [
        answered(series)
        for source in selection.rtt
        for series in read_series(folder, source.set_name, "rtt")
        if source.takes(series)
        and in_part(series.group, part)
        and np.isfinite(series.values).any()
        and (series.run in runs or not selection.own_rtt)
    ]
    if not found:
        raise DataError(
            f"{folder}: no round-trip series for part {part}",
            expected="at least one",
            mend="get the sets that docs/traces.md names for this kind",
        )
    return found


def _round_trips(
    uplink: Series, pool: list[Series], own: bool, count: int, period_s: float
) -> tuple[Floats, str]:
    """Round trips for `count` samples of an uplink piece, and where they come from.

    Its own cycle's pings, repeated, if `own` and there are any; else the series of the pool
    that the uplink's name picks and as many after it as the piece is long.
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
