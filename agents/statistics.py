"""Bootstrap intervals over drives, and paired differences between policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the ends of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def resamples(drives: int, seed: int, n: int = 2000) -> NDArray[np.float64]:
    """Weights of `n` bootstrap resamples of whole drives, float64 (n, drives), rows sum to 1.

    Drives, not frames, are drawn: frames of one drive share its trace and its tracks.
    """
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(drives, np.full(drives, 1.0 / drives), size=n)
    weights: NDArray[np.float64] = counts / drives
    return weights


def interval(per_drive: Floats, weights: Floats) -> Interval:
    """Percentile bootstrap of the mean of one figure a drive, float64 (drives,)."""
    means = weights @ per_drive
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(float(per_drive.mean()), float(low), float(high))


def paired_differences(
    per_drive: Mapping[str, Floats], reference: str, weights: Floats
) -> dict[str, Interval]:
    """Every other policy's figure less the reference's, drive by drive.

    Args:
        per_drive: float64 (drives,) by policy, on the same drives.
        reference: policy to subtract.
        weights: from `resamples`.
    """
    base = per_drive[reference]
    return {
        name: interval(values - base, weights)
        for name, values in per_drive.items()
        if name != reference
    }


def gap_closed(best_static: float, policy: float, bound: float) -> float | None:
    """Share of the way from the best static pair's cost to the bound that a policy goes.

    None if there is no gap to speak of: nothing can then be closed.
    """
    gap = best_static - bound
    return None if gap < 1e-6 * abs(best_static) else (best_static - policy) / gap
