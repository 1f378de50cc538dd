"""Which level of capacity a measured trace is in, and when it is out.

The level is decided on a running median, by borders that give each level an equal share of
the time of all traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from testbed.traces.series import Floats

Flags = NDArray[np.bool_]
Levels = NDArray[np.int64]

OUTAGE_MBPS: Final = 0.05
"""Below this a sample is an outage: a 12 kB payload would take 2 s."""

SMOOTH_S: Final = 5.0
"""Window of the running median that decides the level, seconds."""

SHORTEST_STAY_S: Final = 2.0
"""Shorter stays in a level are counted to the one before."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """One trace with its outages and levels."""

    capacity: Floats
    out: Flags
    level: Levels


def label(capacities: Sequence[Floats], step_s: float, n_levels: int) -> list[Labelled]:
    """Outages and levels of every trace; traces that are one outage are left out."""
    smooth = []
    for capacity in capacities:
        out = capacity < OUTAGE_MBPS
        if not out.all():
            smooth.append((capacity, out, _running_median(capacity, out, step_s)))
    if not smooth:
        raise DataError(
            "no trace with any capacity", expected="at least one", hint="check the selection"
        )
    pooled = np.concatenate([s[~out] for _, out, s in smooth])
    borders = np.quantile(pooled, np.arange(1, n_levels) / n_levels)
    return [
        Labelled(capacity, out, _without_short_stays(np.searchsorted(borders, s), step_s))
        for capacity, out, s in smooth
    ]


def _running_median(capacity: Floats, out: Flags, step_s: float) -> Floats:
    """Median over `SMOOTH_S` around each step, outages left out; carried over long outages."""
    half = max(1, round(SMOOTH_S / step_s / 2))
    padded = np.pad(np.where(out, np.nan, capacity), half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    some = np.isfinite(windows).any(axis=1)
    known = np.flatnonzero(some)
    medians = np.nanmedian(windows[some], axis=1)
    nearest = np.clip(np.searchsorted(known, np.arange(len(capacity)), "right") - 1, 0, None)
    return np.asarray(medians[nearest])


def _without_short_stays(level: Levels, step_s: float) -> Levels:
    level = level.copy()
    shortest = round(SHORTEST_STAY_S / step_s)
    for first, end in runs(level)[1:]:
        if end - first < shortest:
            level[first:end] = level[first - 1]
    return level


def runs(values: NDArray[Any]) -> list[tuple[int, int]]:
    """First and one-past-last index of each stretch of equal values."""
    if len(values) == 0:
        return []
    border = np.flatnonzero(values[1:] != values[:-1]) + 1
    edges = [0, *border.tolist(), len(values)]
    return list(pairwise(edges))
