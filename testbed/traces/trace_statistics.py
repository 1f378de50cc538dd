"""Statistics by which generated and measured traces are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from testbed.traces.generator_fit import OUTAGE_MBPS, runs
from testbed.traces.series import Floats
from testbed.traces.trace import Trace

PROBABILITIES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
RTT_PROBABILITIES: Final = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LAGS_S: Final = (1.0, 5.0, 10.0)
WINDOW_S: Final = 120.0
"""Long traces are cut to this, so that measured and generated ones have equal weight."""


def summary(traces: Sequence[Trace]) -> dict[str, Any]:
    """Pooled distribution, correlation in time and outages of traces of one period.

    Autocorrelation is that of ln(capacity + 0.1 Mbit/s) about the mean of all traces, so it
    includes lasting differences between traces; ``within`` uses each trace's own mean.
    """
    period_s = traces[0].period_s
    pieces = [piece for trace in traces for piece in _windows(trace.uplink_mbps, period_s)]
    up = np.concatenate(pieces)
    rtt = np.concatenate([trace.rtt_ms for trace in traces])
    log = [np.log(piece + 0.1) for piece in pieces]
    outages = np.concatenate([_outage_lengths(piece, period_s) for piece in pieces])
    hours = len(up) * period_s / 3600
    return {
        "traces": len(traces),
        "hours": hours,
        "uplink_mbps": _quantiles(up, PROBABILITIES) | {"mean": float(up.mean())},
        "trace_mean_mbps": _quantiles(np.array([p.mean() for p in pieces]), PROBABILITIES),
        "outage_fraction": float((up < OUTAGE_MBPS).mean()),
        "outages_per_minute": len(outages) / hours / 60,
        "outage_s": _quantiles(outages, PROBABILITIES) if len(outages) else {},
        "autocorrelation": {
            f"{lag:g} s": _autocorrelation(log, round(lag / period_s), float(up_mean))
            for lag in LAGS_S
            for up_mean in (np.concatenate(log).mean(),)
        },
        "autocorrelation_within": {
            f"{lag:g} s": _autocorrelation(log, round(lag / period_s), None) for lag in LAGS_S
        },
        "rtt_ms": _quantiles(rtt, RTT_PROBABILITIES) | {"mean": float(rtt.mean())},
        "rtt_autocorrelation": {
            f"{lag:g} s": _autocorrelation(
                [np.log(trace.rtt_ms) for trace in traces], round(lag / period_s), None
            )
            for lag in LAGS_S
        },
    }


def distribution_distance(a: Floats, b: Floats) -> float:
    """Largest difference between two empirical distribution functions (Kolmogorov-Smirnov)."""
    both = np.sort(np.concatenate([a, b]))
    below_a = np.searchsorted(np.sort(a), both, "right") / len(a)
    below_b = np.searchsorted(np.sort(b), both, "right") / len(b)
    return float(np.abs(below_a - below_b).max())


def _windows(values: Floats, period_s: float) -> list[Floats]:
    size = round(WINDOW_S / period_s)
    if len(values) <= size:
        return [values]
    return [values[i : i + size] for i in range(0, len(values) - size // 2, size)]


def _quantiles(values: Floats, probabilities: Sequence[float]) -> dict[str, float]:
    found = np.quantile(values, probabilities)
    return {f"p{100 * p:02.0f}": float(v) for p, v in zip(probabilities, found, strict=True)}


def _outage_lengths(capacity: Floats, period_s: float) -> Floats:
    out = capacity < OUTAGE_MBPS
    return np.array([(end - first) * period_s for first, end in runs(out) if out[first]])


def _autocorrelation(series: Sequence[Floats], lag: int, mean: float | None) -> float:
    product = square = 0.0
    pairs = values = 0
    for one in series:
        x = one - (one.mean() if mean is None else mean)
        square += float((x**2).sum())
        values += len(x)
        if len(x) > lag:
            product += float((x[:-lag] * x[lag:]).sum())
            pairs += len(x) - lag
    return product / pairs / (square / values) if pairs and square > 0 else float("nan")
