"""Fitting the trace generator (`testbed.traces.generator`) to measured series.

Everything is closed form, counting or one root: quantiles, lag correlations, transition
counts, and Weibull dwell times by maximum likelihood with the stays that a trace's end cuts
off as right-censored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from testbed.traces.generator_fit_rtt import fit_rtt
from testbed.traces.generator_parameters import GRID, LevelModel, TraceModel
from testbed.traces.levels import Labelled, label, runs
from testbed.traces.normal_scores import memory, quantiles
from testbed.traces.series import Floats


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
        provenance: what the caller knows of the data's origin; counts are added.
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
                # A stay that the trace's start or end cuts lasted at least what was seen.
                whole = first > 0 and end < len(trace.level)
                (ended if whole else cut).append((end - first) * step_s)
    return fit_weibull(np.array(ended), np.array(cut))


def fit_weibull(ended: Floats, cut: Floats) -> tuple[float, float]:
    """Shape and scale by maximum likelihood; `cut` durations are right-censored.

    The profile likelihood's equation in the shape has one root; the shape is kept within
    0.3..5, which only matters for a handful of nearly equal stays.
    """
    every = np.concatenate([ended, cut])
    if len(ended) < 2:  # hardly ever left: exponential with the time seen
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
    """Chance of each level to come after k; half a visit is added to the neighbours, so that
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
