"""Measured quantities over time, and their conversion to evenly spaced samples and traces.

The rules (explained in `docs/traces.md`):

* A gap in an uplink series is a logging gap, not an outage: the last value is held for at
  most `MAX_HOLD_S`; a longer gap cuts the series in two.
* A lost ping is not a missing value. A packet sent during an outage arrives when the link is back
  (TCP repeats it), so its round trip is the time until the next answered ping was sent plus that
  ping's round trip, and exceeds the latter by at least TCP's shortest retransmission time-out.
* Resampling averages over the new period, so the capacity's integral is kept exactly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError

Floats = NDArray[np.float64]

MAX_HOLD_S = 2.0
"""Longest logging gap that is filled by holding the last value, seconds."""

RETRANSMISSION_MS = 200.0
"""Linux's shortest TCP retransmission time-out (TCP_RTO_MIN, include/net/tcp.h: HZ / 5)."""

_5G: Final = re.compile(r"5G|\bNR|EN-?DC", re.IGNORECASE)


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
        day: date on which it was measured, such as ``2024-11-05``; empty if unknown.
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
    day: str = ""

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

    Anything that names 5G (or its radio, NR) counts as 5G, mixtures included; 3G and satellite
    count as LTE.
    """
    return "5G" if _5G.search(tech) else "LTE"


def tech_of_rows(cells: Iterable[str]) -> tuple[str, str]:
    """The technology of most rows (``5G``, ``LTE``, or empty), and a note if there are both."""
    rows: Counter[str] = Counter()
    for name, count in Counter(cells).items():
        if name not in ("", "-"):
            rows[generation(name)] += count
    if not rows:
        return "", ""
    note = f"5G in {rows['5G']} of {rows.total()} rows" if len(rows) > 1 else ""
    return ("5G" if rows["5G"] >= rows["LTE"] else "LTE"), note


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
