"""Fitting the trace generator (`testbed.traces.generator`) to measured series.

All steps are closed forms, counts or one root: quantiles, lag correlations, transition counts, and
Weibull dwell times by maximum likelihood, with stays that the end of a trace cuts off as
right-censored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from testbed.traces.generator import GRID, LevelModel, RttModel, TraceModel
from testbed.traces.series import Floats

BASE_QUANTILE: Final = 0.25
"""A series' base round trip is this quantile: below its stalls even if they are many."""
MAX_BASE_MS: Final = 1000.0
"""A series above this was stalled throughout and has no base; it is left out of the fit."""
STALL_RATIO: Final = 2.0
STALL_MS: Final = 30.0
"""A round trip this much above its series' base (factor, and at least milliseconds) is a
stall of the link."""
Flags = NDArray[np.bool_]
Levels = NDArray[np.int64]
OUTAGE_MBPS: Final = 0.05
"""Below this a sample is an outage: a 12 kB payload would take 2 s."""
SMOOTH_S: Final = 5.0
"""Window of the running median that decides the level, seconds."""
SHORTEST_STAY_S: Final = 2.0
"""Shorter stays in a level are added to the previous one."""
LONG_LAG_S: Final = 2.0
"""Lag of the second correlation that the fit of a level's memory uses, seconds."""


def fit_model(
    kind: str,
    tech: str,
    capacities: Sequence[Floats],
    step_s: float,
    rtts: Sequence[Floats],
    rtt_step_s: float,
    n_levels: int,
    provenance: dict[str, Any],
) -> TraceModel:
    """Fit one kind.

    Args:
        kind: name of the kind.
        tech: ``5G`` or ``LTE``.
        capacities: one array a trace, Mbit/s, evenly spaced by `step_s`.
        step_s: spacing, seconds.
        rtts: one array a series, milliseconds, evenly spaced by `rtt_step_s`.
        rtt_step_s: spacing, seconds.
        n_levels: number of levels, at least 2; each gets an equal share of the time.
        provenance: the data's origin; counts are added.
    """
    traces = label(capacities, step_s, n_levels)
    levels = tuple(_fit_level(traces, k, n_levels, step_s) for k in range(n_levels))
    counts = {
        "uplink_traces": len(capacities),
        "uplink_hours": round(sum(map(len, capacities)) * step_s / 3600, 2),
        "rtt_series": len(rtts),
        "rtt_hours": round(sum(map(len, rtts)) * rtt_step_s / 3600, 2),
    }
    return TraceModel(kind, tech, step_s, levels, fit_rtt(rtts, rtt_step_s), provenance | counts)


def _fit_level(traces: list[Labelled], k: int, n_levels: int, step_s: float) -> LevelModel:
    up = [t.capacity[(t.level == k) & ~t.out] for t in traces]
    values = np.concatenate(up)
    total = sum(int((~t.out).sum()) for t in traces)
    shape, scale_s = _fit_dwell(traces, k, step_s)
    steadiness, persistence = memory(
        [t.capacity for t in traces], [(t.level == k) & ~t.out for t in traces], values, step_s
    )
    outage_s, onsets = _outages(traces, k, step_s)
    if len(outage_s) < 10:  # too few of its own: lengths from all levels
        every = [_outages(traces, other, step_s)[0] for other in range(n_levels)]
        outage_s = np.concatenate(every)
    return LevelModel(
        share=len(values) / total,
        capacity_mbps=quantiles(values),
        steadiness=steadiness,
        persistence=persistence,
        dwell_shape=shape,
        dwell_scale_s=scale_s,
        following=_following(traces, k, n_levels),
        outages_per_s=onsets / (len(values) * step_s),
        outage_s=quantiles(outage_s) if len(outage_s) else (step_s,) * len(GRID),
    )


def _fit_dwell(traces: list[Labelled], k: int, step_s: float) -> tuple[float, float]:
    ended: list[float] = []
    cut: list[float] = []
    for trace in traces:
        stays = runs(trace.level)
        for first, end in stays:
            if trace.level[first] == k:
                # A stay that the trace's start or end cuts lasted at least the observed time.
                whole = first > 0 and end < len(trace.level)
                (ended if whole else cut).append((end - first) * step_s)
    return fit_weibull(np.array(ended), np.array(cut))


def fit_weibull(ended: Floats, cut: Floats) -> tuple[float, float]:
    """Shape and scale by maximum likelihood; `cut` durations are right-censored.

    The profile likelihood's equation in the shape has one root; the shape is kept within
    0.3..5, which only matters for a handful of nearly equal stays.
    """
    every = np.concatenate([ended, cut])
    if len(ended) < 2:  # hardly ever left: exponential with the observed time
        return 1.0, float(every.sum() / max(len(ended), 1)) if len(every) else 1.0
    log_every, mean_log = np.log(every), np.log(ended).mean()

    def slope(shape: float) -> float:
        weight = (every / every.max()) ** shape
        return float((weight * log_every).sum() / weight.sum() - 1 / shape - mean_log)

    low, high = 0.3, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    shape = (low + high) / 2
    scale = float(((every**shape).sum() / len(ended)) ** (1 / shape))
    return round(shape, 4), round(scale, 4)


def _following(traces: list[Labelled], k: int, n_levels: int) -> tuple[float, ...]:
    """Probability of each level after k; half a visit is added to the neighbours, so that
    a level that was never left can still be left."""
    count = np.zeros(n_levels)
    count[[n for n in (k - 1, k + 1) if 0 <= n < n_levels]] = 0.5
    for trace in traces:
        change = np.flatnonzero((trace.level[:-1] == k) & (trace.level[1:] != k))
        np.add.at(count, trace.level[change + 1], 1)
    return tuple(round(float(v), 6) for v in count / count.sum())


def _outages(traces: list[Labelled], k: int, step_s: float) -> tuple[Floats, int]:
    """Lengths of outages that begin in level k, seconds, and their number."""
    lengths = [
        (end - first) * step_s
        for trace in traces
        for first, end in runs(trace.out)
        if trace.out[first] and trace.level[first] == k
    ]
    return np.array(lengths), len(lengths)


def fit_rtt(series: Sequence[Floats], step_s: float) -> RttModel:
    """Fit round trips, one array a series."""
    base = np.array([np.quantile(rtt, BASE_QUANTILE) for rtt in series])
    usable = base < MAX_BASE_MS
    series = [rtt for rtt, use in zip(series, usable, strict=True) if use]
    base = base[usable]
    if not series:
        raise DataError(
            f"no round-trip series with a base below {MAX_BASE_MS:g} ms",
            expected="at least one",
            hint="check the selection",
        )
    ratios, calm, lengths, counts = [], [], [], []
    for rtt, typical in zip(series, base, strict=True):
        stalled = rtt > max(STALL_RATIO * typical, typical + STALL_MS)
        ratios.append(rtt / typical)
        calm.append(~stalled)
        new = _stalls(rtt - typical, stalled, step_s)
        lengths += new
        counts.append(len(new))
    reference = np.concatenate(ratios)[np.concatenate(calm)]
    steadiness, persistence = memory(ratios, calm, reference, step_s)
    durations_s = np.array([len(rtt) * step_s for rtt in series])
    return RttModel(
        step_s=step_s,
        base_ms=quantiles(base),
        ratio=quantiles(reference),
        steadiness=steadiness,
        persistence=persistence,
        stalls_per_s=round(sum(counts) / float(durations_s.sum()), 6),
        stall_clumping=_clumping(np.array(counts), durations_s),
        stall_ms=quantiles(np.array(lengths)) if lengths else (0.0,) * len(GRID),
    )


def _stalls(excess_ms: Floats, stalled: Flags, step_s: float) -> list[float]:
    """Lengths (ms) of the stalls: in a stretch, each rise begins a new one."""
    lengths = []
    for first, end in runs(stalled):
        if not stalled[first]:
            continue
        expected = 0.0
        for i in range(first, end):
            if excess_ms[i] > expected + STALL_MS:  # above the rest of the previous stall
                lengths.append(float(excess_ms[i]))
                expected = float(excess_ms[i])
            expected = max(expected - step_s * 1e3, 0.0)
    return lengths


def _clumping(counts: NDArray[np.int64], durations_s: Floats) -> float:
    """Gamma shape of the series' onset rates, by moments: var = mean + mean**2 / shape."""
    expected = durations_s * counts.sum() / durations_s.sum()
    extra = float(((counts - expected) ** 2 - expected).sum())
    if extra <= 0 or counts.sum() == 0:
        return 100.0  # no visible clumping: nearly equal rates
    return round(min(max(float((expected**2).sum()) / extra, 0.05), 100.0), 4)


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


def quantiles(values: Floats) -> tuple[float, ...]:
    """Quantiles at `GRID`, to six digits."""
    return tuple(float(f"{v:.6g}") for v in np.quantile(values, GRID))


def normal_scores(values: Floats, reference: Floats) -> Floats:
    """Standard normal scores of `values` by their mid-rank in `reference`."""
    ordered = np.sort(reference)
    rank = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    u = (rank / 2 + 0.5) / (len(ordered) + 1)
    inverse = NormalDist().inv_cdf
    return np.array([inverse(min(max(p, 1e-6), 1 - 1e-6)) for p in u.tolist()])


def memory(
    pieces: Sequence[Floats], keep: Sequence[Flags], reference: Floats, step_s: float
) -> tuple[float, float]:
    """Steadiness and persistence of the scores z (see `LevelModel`), from their correlation
    over one step and over `LONG_LAG_S`: a fast part that one step forgets, a slow AR(1)."""
    long = max(2, round(LONG_LAG_S / step_s))
    near = _correlation(pieces, keep, reference, 1)
    far = _correlation(pieces, keep, reference, long)
    if near <= 0 or far <= 0:
        return round(near, 4), 0.0
    persistence = min((far / near) ** (1 / (long - 1)), 0.999)
    return round(min(near / persistence, 1.0), 4), round(persistence, 4)


def _correlation(
    pieces: Sequence[Floats], keep: Sequence[Flags], reference: Floats, lag: int
) -> float:
    """Correlation (0..1) of the scores of samples `lag` apart, all kept from one to the other."""
    first, second = [], []
    for values, kept in zip(pieces, keep, strict=True):
        inside = np.concatenate([[0], np.cumsum(kept)])
        whole = np.flatnonzero(inside[lag + 1 :] - inside[: -lag - 1] == lag + 1)
        first.append(values[whole])
        second.append(values[whole + lag])
    a = normal_scores(np.concatenate(first), reference)
    b = normal_scores(np.concatenate(second), reference)
    if len(a) < 10 or a.std() == 0 or b.std() == 0:
        return 0.0
    return min(max(float(np.corrcoef(a, b)[0, 1]), 0.0), 1.0)
