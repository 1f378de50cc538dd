"""Joining measured uplink series with round trips of another time.

They were not measured together: `Trace.source` names the two series that were joined.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np

from testbed.traces.measured import RoundTrips
from testbed.traces.series import (
    Floats,
    Series,
    answered,
    cut_at_gaps,
    generation,
    resample,
    tile,
    without_start,
)
from testbed.traces.trace import Trace

SLOW_START_S: Final = {"sa24": 2.0}
"""Seconds at the start of a set's uplink tests in which TCP had not yet filled the link."""

MIN_DURATION_S: Final = 20.0
"""Shorter uplink pieces are left out. The shortest tests that a stall ended lasted 20 s."""


@dataclass(frozen=True, slots=True)
class Collection:
    """Measured traces of one part.

    Attributes:
        traces: see `load_traces`.
        notes: counts of the measured data left out.
    """

    traces: list[Trace]
    notes: tuple[str, ...]


def join(
    uplinks: list[Series],
    pings: list[Series],
    words: str,
    *,
    own_rtt: bool,
    period_s: float,
    min_duration_s: float,
    tech: str = "",
    otherwise: RoundTrips | None = None,
) -> Collection:
    """Traces of uplink series with the round trips of `pings`, and the data left out.

    Args:
        uplinks: capacities.
        pings: round trips; a trace takes those of its own measuring cycle if `own_rtt` and there
            are any, else those that its name selects.
        words: what they are, for the notes.
        own_rtt: see `pings`.
        period_s: spacing of the traces' samples, seconds.
        min_duration_s: shorter pieces are left out.
        tech: of all traces; empty takes each series' own.
        otherwise: round trips if no ping was answered.
    """
    dead = sum(_missing(series) == len(series.values) for series in pings)
    pool = [answered(series) for series in pings if _missing(series) < len(series.values)]
    pieces = [(piece, series) for series in uplinks for piece in cut_at_gaps(series)]
    sampled = [(piece, series, resample(piece, period_s)) for piece, series in pieces]
    short = [len(c) * period_s for *_, c in sampled if len(c) * period_s < min_duration_s]
    long = [(p, s, c) for p, s, c in sampled if len(c) * period_s >= min_duration_s]
    silent = [len(c) * period_s for *_, c in long if c.max() == 0]
    traces = []
    for piece, series, capacity in long:
        if capacity.max() > 0:
            trips = _round_trips(piece, pool, own_rtt, len(capacity), period_s, otherwise)
            traces.append(_joined(piece, series, capacity, trips, tech, period_s))
    cuts = len(pieces) - sum(_missing(series) < len(series.values) for series in uplinks)
    n_pings = sum(len(series.values) for series in pings)
    notes = (
        f"{len(traces)} traces of {len(uplinks)} uplink series of {words}",
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
    trips: tuple[Floats, str],
    tech: str,
    period_s: float,
) -> Trace:
    """A piece of an uplink series, sampled as `capacity`, with round trips and their origin."""
    rtt, origin = trips
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
        tech=tech or generation(series.tech),
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


def without_slow_start(series: Series) -> Series:
    """An uplink series less the start that `SLOW_START_S` names for its set."""
    return without_start(series, SLOW_START_S.get(series.set_name, 0.0))


def all_lost(pings: list[Series]) -> bool:
    """Whether no ping was answered."""
    return all(_missing(series) == len(series.values) for series in pings)


def _round_trips(
    uplink: Series,
    pool: list[Series],
    own: bool,
    count: int,
    period_s: float,
    otherwise: RoundTrips | None,
) -> tuple[Floats, str]:
    """Round trips for `count` samples of an uplink piece, and their source.

    Its own cycle's pings, repeated, if `own` and there are any; else the series of the pool
    selected by the uplink's name, and as many after it as the piece needs; else `otherwise`.
    """
    if not pool:
        assert otherwise is not None
        return otherwise(uplink.name, count, period_s)
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
