"""What several seeds say of a setting: interquartile mean and probability of improvement.

Definitions are those of R. Agarwal et al., "Deep Reinforcement Learning at the Edge of the
Statistical Precipice" (NeurIPS 2021, arXiv 2108.13264), as its library rliable computes them.
Scores are a matrix (runs, tasks): here seeds and scenarios. Intervals are percentiles of a
bootstrap that is stratified by task: the runs of every task are drawn anew, and tasks are kept.

Only the resampling is written here; `scipy` has the statistics. Its own `bootstrap` needs at least
two runs and another argument for the generator in each of its versions.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

from agents.evaluation import Interval

Floats = NDArray[np.float64]
RESAMPLES: Final = 2000
_TRIMMED: Final = 0.25
"""Share of the scores that is left out at each end."""


def interquartile_mean(scores: Floats, seed: int = 0) -> Interval:
    """Mean of the middle half of all runs of all tasks, and its 95 % interval.

    As in rliable, ``floor(0.25 * n)`` of the n scores are left out at each end.

    Args:
        scores: float64 (runs, tasks).
        seed: of the bootstrap.
    """
    rows = np.random.default_rng(seed).integers(len(scores), size=(RESAMPLES, *scores.shape))
    drawn = scores[rows, np.arange(scores.shape[1])]
    means = trim_mean(drawn.reshape(len(drawn), -1), _TRIMMED, axis=1)
    return _interval(float(trim_mean(scores, _TRIMMED, axis=None)), means)


def probability_of_improvement(lower: Floats, other: Floats, seed: int = 0) -> Interval:
    """Probability that a run of one setting costs less than a run of another one.

    The mean over tasks of the share of pairs (run, other run) in which the first is lower, where
    equal ones count one half: the Mann-Whitney statistic over the number of pairs.

    Args:
        lower: costs, float64 (runs, tasks).
        other: costs of the other setting, float64 (runs, tasks), on the same tasks.
        seed: of the bootstrap, which draws the runs of both.
    """
    less = (lower[:, None] < other[None]) + 0.5 * (lower[:, None] == other[None])
    rng = np.random.default_rng(seed)
    ours, others = (_weights(scores.shape, rng) for scores in (lower, other))
    resampled = np.einsum("btr,rst,bts->b", ours, less, others, optimize=True)
    return _interval(float(less.mean()), resampled / lower.shape[1])


def _weights(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Weights of the runs in every resample, float64 (resamples, tasks, runs); they sum to 1."""
    runs, tasks = shape
    counts = rng.multinomial(runs, np.full(runs, 1.0 / runs), size=(RESAMPLES, tasks))
    weights: Floats = counts / runs
    return weights


def _interval(value: float, resampled: Floats) -> Interval:
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Interval(value, float(low), float(high))
