"""What the fits of capacity and round trip share: quantiles, normal scores, their memory."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

import numpy as np

from testbed.traces.generator_parameters import GRID
from testbed.traces.levels import Flags
from testbed.traces.series import Floats

LONG_LAG_S: Final = 2.0
"""Lag of the second correlation that the fit of a level's memory uses, seconds."""


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
