"""Fitting the generator's round trips (`RttModel`): bases, a correlated factor, stalls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from testbed.traces.generator_parameters import GRID, RttModel
from testbed.traces.levels import Flags, runs
from testbed.traces.normal_scores import memory, quantiles
from testbed.traces.series import Floats

BASE_QUANTILE: Final = 0.25
"""A series' base round trip is this quantile: below its stalls even where they are many."""

MAX_BASE_MS: Final = 1000.0
"""A series above this was stalled throughout and has no base; it is left out of the fit."""

STALL_RATIO: Final = 2.0
STALL_MS: Final = 30.0
"""A round trip this much above its series' base (factor, and at least milliseconds) is a
stall of the link."""


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
    """Lengths (ms) of the stalls: in a stretch, each rise begins another one."""
    lengths = []
    for first, end in runs(stalled):
        if not stalled[first]:
            continue
        expected = 0.0
        for i in range(first, end):
            if excess_ms[i] > expected + STALL_MS:  # above what the stall before leaves over
                lengths.append(float(excess_ms[i]))
                expected = float(excess_ms[i])
            expected = max(expected - step_s * 1e3, 0.0)
    return lengths


def _clumping(counts: NDArray[np.int64], durations_s: Floats) -> float:
    """Gamma shape of the series' onset rates, by moments: var = mean + mean**2 / shape."""
    expected = durations_s * counts.sum() / durations_s.sum()
    extra = float(((counts - expected) ** 2 - expected).sum())
    if extra <= 0 or counts.sum() == 0:
        return 100.0  # no clumping to see: nearly equal rates
    return round(min(max(float((expected**2).sum()) / extra, 0.05), 100.0), 4)
