"""Upper confidence bounds of a mean loss: finite samples, no distribution assumed.

A loss is a number of at most 1, one a track. Both methods give a p-value of the hypothesis "the
mean loss is at least `mean`"; it falls as `mean` rises, and the bound is where it reaches
``1 - level``. The sample mean's ordinary interval would not do: with few tracks and rare losses
it is far too short.

The promise is for the mean over all tracks there will ever be (tracks drawn independently), or
over the next `fresh` tracks (all that is then assumed is that calibration and fresh tracks
are exchangeable). The latter is what a test on so many tracks can check, and is wider.

**Betting** (I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by
betting", JRSS B 86, 2024, arXiv:2010.09686). A gambler stakes the share c of the capital on every
loss x against the mean m. The capital is multiplied by ``1 + c (m - x) / (1 - m)``, which is never
negative as x is at most 1. Where the mean is at least m, it does not grow on average, so it
ends at ``1 / (1 - level)`` or more with probability ``1 - level`` at most (Markov). Capitals of
several fixed stakes are averaged ("grid Kelly" there), so the result does not depend on the order
of the tracks. For fresh tracks, m is what the mean of the tracks not yet seen would be
(sampling without replacement, section 5 there), and capitals of several orders are averaged, too:
an average of such capitals is one. The bound knows nothing of a least loss and needs none.

**Hoeffding-Bentkus** (S. Bates, A. Angelopoulos, L. Lei, J. Malik, M. Jordan, "Distribution-free,
risk-controlling prediction sets", J. ACM 68, 2021, arXiv:2101.02703, section 3.1), for losses
within `low`..1, scaled to 0..1: ``min(exp(-n h(min(x, m), m)), e P(Bin(n, m) <= ceil(n x)))`` with
the sample mean x and ``h(a, b) = a ln(a/b) + (1-a) ln((1-a)/(1-b))``. Both hold without
replacement (W. Hoeffding, JASA 58, 1963, theorem 4: sums are then smaller in convex order).
It knows nothing of the spread and is much wider for losses within -1..1; it is here as
a check and for losses of 0 or 1.

Which one is used must be chosen before the losses are seen; sliproad uses betting.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp, rel_entr
from scipy.stats import binom

from cnn.common.errors import ConfigError, DataError, in_range

Floats = NDArray[np.float64]
Method = Literal["betting", "hoeffding-bentkus"]

STAKES: Final = np.array([1.0, 0.8, 0.6, 0.4, 0.25, 0.15, 0.08, 0.04])
"""Shares of the capital. All of it is right for losses that hardly spread, less for others."""
_WEIGHTS: Final = np.array([0.5, *[0.5 / 7] * 7])
"""Of the stakes: few tracks can certify a small margin only if their losses hardly spread."""
_ORDERS: Final = 16
"""Orders of the tracks whose capitals are averaged, for a number of fresh tracks."""
_CLOSE: Final = 1e-9


def p_value(
    losses: Floats,
    mean: float,
    *,
    fresh: int | None = None,
    method: Method = "betting",
    low: float = -1.0,
) -> float:
    """p-value of "the mean loss is `mean` or more".

    Args:
        losses: float64 (n,), one a calibration track, `low` to 1.
        mean: the mean in question.
        fresh: number of fresh tracks whose mean it is; None is the mean of all there will be.
        method: see the module.
        low: least possible loss (only Hoeffding-Bentkus depends on it).

    Returns:
        Number in [0, 1]. If the hypothesis is true it is at most any d with probability d at
        most.

    Raises:
        DataError: if there is no loss, or one is out of its range.
        ConfigError: if `fresh` is no positive number.
    """
    _check(losses, fresh, low)
    if mean >= 1.0:
        return float(losses.min() >= 1.0)
    if method == "betting":
        return math.exp(-max(0.0, _log_capital(losses, mean, fresh)))
    n = len(losses)
    if fresh is not None:
        mean = (fresh * mean + float(losses.sum())) / (fresh + n)
    return _hoeffding_bentkus((losses.mean() - low) / (1 - low), (mean - low) / (1 - low), n)


def upper_bound(
    losses: Floats,
    level: float,
    *,
    fresh: int | None = None,
    method: Method = "betting",
    low: float = -1.0,
) -> float:
    """A number that the mean loss exceeds with probability ``1 - level`` at most.

    Args:
        losses, fresh, method, low: as of `p_value`.
        level: such as 0.95.

    Returns:
        The bound, `low` to 1.

    Raises:
        DataError, ConfigError: as `p_value`; also if the level is not between 0 and 1.
    """
    _check_level(level)

    def excess(mean: float) -> float:
        # In logarithms, where it is near to a straight line.
        p = p_value(losses, mean, fresh=fresh, method=method, low=low)
        return math.log(max(p, 1e-300) / (1 - level))

    if excess(low) <= 0.0:
        return low
    if excess(1.0 - _CLOSE) > 0.0:
        return 1.0
    # The end of the bracket on the safe side: at `high` the hypothesis is rejected.
    root = float(brentq(excess, low, 1.0 - _CLOSE, xtol=_CLOSE))
    return min(1.0, root + _CLOSE)


def least_bound(tracks: int, level: float) -> float:
    """No valid bound is below this on losses up to 1, even if none of the tracks has a loss.

    ``1 - (1 - level) ** (1 / tracks)``, Clopper and Pearson's bound for no failure in `tracks`
    trials; about ``3 / tracks`` at a level of 0.95.
    """
    _check_level(level)
    return float(-math.expm1(math.log(1 - level) / tracks))


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level {level:g}", expected="between 0 and 1", hint="try 0.95")


def _check(losses: Floats, fresh: int | None, low: float) -> None:
    inside = (losses >= low) & (losses <= 1.0)  # NaN is not
    if losses.ndim != 1 or not losses.size or not inside.all():
        wrong = losses[~inside]
        raise DataError(
            f"loss {wrong.flat[0]:g}" if wrong.size else f"losses of shape {losses.shape}",
            expected=f"one loss of {low:g} to 1 for each of at least one track",
            hint="correct the losses",
        )
    if fresh is not None:
        in_range("fresh tracks", fresh, 1, 1e9)


def _log_capital(losses: Floats, mean: float, fresh: int | None) -> float:
    """Logarithm of the mean capital over stakes and orders."""
    if fresh is None:
        x, expected = losses[None, :], np.full((1, len(losses)), mean)
    else:
        rng = np.random.default_rng(0)
        x = np.stack([rng.permutation(losses) for _ in range(_ORDERS)])
        unseen = np.cumsum(x[:, ::-1], axis=1)[:, ::-1]  # this track and those after it
        expected = (fresh * mean + unseen) / (fresh + np.arange(len(losses), 0, -1))
    odds = (expected - x) / (1.0 - expected)
    with np.errstate(divide="ignore"):  # everything staked, everything lost: log(0)
        grown = np.log1p(np.maximum(STAKES[:, None, None] * odds, -1.0)).sum(-1)
    return float(logsumexp(grown, b=_WEIGHTS[:, None] / len(x)))


def _hoeffding_bentkus(sample: float, mean: float, n: int) -> float:
    """Both for losses of 0 to 1, `n` of them with mean `sample`."""
    if mean <= 0.0:
        return 1.0
    least = min(sample, mean)
    divergence = rel_entr(least, mean) + rel_entr(1.0 - least, 1.0 - mean)
    successes = math.ceil(n * sample - _CLOSE)  # a sum of floats may be just above a whole number
    bentkus = math.e * binom.cdf(successes, n, mean)
    return float(min(1.0, math.exp(-n * divergence), bentkus))
