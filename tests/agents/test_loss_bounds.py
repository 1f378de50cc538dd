"""Upper confidence bounds: exact coverage, closed forms, Clopper and Pearson, simulation."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from scipy.stats import beta, binom

from agents.loss_bounds import Method, least_bound, p_value, upper_bound
from cnn.common.errors import ConfigError, DataError

METHODS: tuple[Method, ...] = ("betting", "hoeffding-bentkus")


def failures(k: int, n: int) -> np.ndarray:
    """Losses of n trials, k of which failed."""
    return (np.arange(n) < k).astype(float)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("low", [-1.0, 0.0])
@pytest.mark.parametrize("n", [1, 4, 20, 50])
def test_the_hypothesis_is_wrongly_rejected_as_seldom_as_said(
    method: Method, low: float, n: int
) -> None:
    """Exact: all numbers of failures, weighted with their probability."""
    for mean in (0.01, 0.05, 0.2, 0.5, 0.9):
        p = np.array([p_value(failures(k, n), mean, method=method, low=low) for k in range(n + 1)])
        chance = binom.pmf(np.arange(n + 1), n, mean)
        for d in (0.01, 0.05, 0.2):
            assert chance[p <= d].sum() <= d


@pytest.mark.parametrize(("method", "within"), [("betting", 0.12), ("hoeffding-bentkus", 0.05)])
def test_no_bound_is_below_the_exact_one_of_failures(method: Method, within: float) -> None:
    """Clopper and Pearson's bound is the least that is valid for 0/1 losses and rises with k.

    Betting on the best stake, were it known, would be 0.056 above it at most: that is the price
    of Markov's inequality. The mixture of stakes adds as much: half of the capital is on stake
    1, where no track has a loss, so that the others have a fourteenth each. With 0.3 on it the
    worst is 0.108, but the bound of 195 tracks without a loss grows from 1.80 to 2.00 points.
    """
    n = 30
    for k in range(n):
        exact = float(beta.ppf(0.95, k + 1, n - k))
        bound = upper_bound(failures(k, n), 0.95, method=method, low=0.0)
        assert exact <= bound
        assert bound <= exact + within


def test_the_least_bound_is_that_of_no_failure() -> None:
    for n in (1, 10, 300):
        assert least_bound(n, 0.95) == pytest.approx(float(beta.ppf(0.95, 1, n)))
        assert upper_bound(np.zeros(n), 0.95) >= least_bound(n, 0.95)
    # Half of the capital is on the stake that is best without a loss: one halving to make up for.
    assert upper_bound(np.zeros(300), 0.95) < least_bound(300, 0.975)


def test_one_track_by_hand() -> None:
    """Capital 1 + c m / (1 - m) for a loss of 0, with the mean stake c; it is to reach 20."""
    stake = 0.5 * 1.0 + 0.5 * (0.8 + 0.6 + 0.4 + 0.25 + 0.15 + 0.08 + 0.04) / 7
    odds = 19 / stake
    assert upper_bound(np.zeros(1), 0.95) == pytest.approx(odds / (1 + odds), abs=1e-8)


def test_equal_losses_come_near_their_bound() -> None:
    """All staked on every loss d: ((1 - d) / (1 - m)) ** n = 20 or 40, without and with halving."""
    for d in (-0.2, 0.0, 0.1):
        bound = upper_bound(np.full(200, d), 0.95)
        assert 1 - (1 - d) * 0.05 ** (1 / 200) <= bound <= 1 - (1 - d) * 0.025 ** (1 / 200)


def test_hoeffding_and_bentkus_by_hand() -> None:
    def h(a: float, b: float) -> float:
        return a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))

    hoeffding = math.exp(-10 * h(0.1, 0.3))
    found = p_value(failures(1, 10), 0.3, method="hoeffding-bentkus", low=0.0)
    assert found == pytest.approx(hoeffding)
    at_most_50 = sum(math.comb(1000, k) * 0.07**k * 0.93 ** (1000 - k) for k in range(51))
    found = p_value(failures(50, 1000), 0.07, method="hoeffding-bentkus", low=0.0)
    assert found == pytest.approx(math.e * at_most_50)
    # The same losses laid out from -1 to 1.
    twice = p_value(2 * failures(50, 1000) - 1, 2 * 0.07 - 1, method="hoeffding-bentkus")
    assert twice == pytest.approx(found)


def heavy(rng: np.random.Generator, n: int) -> np.ndarray:
    """Mostly near 0, up to 1: the ninth power of a uniform number, mean 0.1."""
    return rng.random(n) ** 9


def two_points(rng: np.random.Generator, n: int) -> np.ndarray:
    """Mostly a small gain, seldom everything lost: mean 0."""
    return np.where(rng.random(n) < 1 / 11, 1.0, -0.1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("draw", "mean"), [(heavy, 0.1), (two_points, 0.0)])
@pytest.mark.parametrize("n", [5, 40])
def test_coverage_in_simulation(method: Method, draw: object, mean: float, n: int) -> None:
    rng = np.random.default_rng(3)
    runs = 1500
    wrong = sum(p_value(draw(rng, n), mean, method=method) <= 0.1 for _ in range(runs))  # type: ignore[operator]
    assert wrong / runs <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / runs)


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_of_fresh_tracks_is_covered_exactly(method: Method) -> None:
    """Exact: every order of six losses, the first three calibrate, the others are fresh."""
    pool = (0.0, -0.3, 0.9, 0.1, 1.0, 0.0)
    orders = list(permutations(pool))
    p = np.array(
        [
            p_value(np.array(order[:3]), sum(order[3:]) / 3, fresh=3, method=method)
            for order in orders
        ]
    )
    for d in (0.05, 0.2, 0.5):
        assert (p <= d).mean() <= d


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_of_fresh_tracks_is_covered_in_simulation(method: Method) -> None:
    rng = np.random.default_rng(5)
    runs, wrong = 800, 0
    for _ in range(runs):
        pool = np.where(rng.random(60) < 0.15, rng.random(60), 0.0)
        known, fresh = pool[:30], pool[30:]
        wrong += p_value(known, float(fresh.mean()), fresh=30, method=method) <= 0.1
    assert wrong / runs <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / runs)


def test_a_promise_for_fewer_tracks_is_wider() -> None:
    losses = np.random.default_rng(0).random(60) ** 6
    bounds = [upper_bound(losses, 0.95, fresh=n) for n in (20, 60, 600, 10**6)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == pytest.approx(upper_bound(losses, 0.95), abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fresh", [None, 25])
def test_the_bound_is_where_the_p_value_reaches_the_level(
    method: Method, fresh: int | None
) -> None:
    losses = np.random.default_rng(1).random(40) ** 4 - 0.1
    means = np.linspace(-0.99, 0.99, 60)
    p = [p_value(losses, float(m), fresh=fresh, method=method) for m in means]
    assert all(a >= b for a, b in pairwise(p))
    bound = upper_bound(losses, 0.9, fresh=fresh, method=method)
    assert p_value(losses, bound, fresh=fresh, method=method) <= 0.1
    assert p_value(losses, bound - 1e-4, fresh=fresh, method=method) > 0.1


def test_betting_is_tighter_on_small_differences() -> None:
    losses = np.random.default_rng(2).normal(0.004, 0.03, 150).clip(-1, 1)
    betting = upper_bound(losses, 0.95)
    assert betting < 0.3 * upper_bound(losses, 0.95, method="hoeffding-bentkus")


def test_bounds_at_the_ends() -> None:
    assert upper_bound(np.ones(5), 0.95) == 1.0
    assert p_value(np.ones(5), 1.0) == 1.0
    assert p_value(np.array([1.0, 0.9]), 1.0) == 0.0


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match=r"loss 1\.5; expected .*-1 to 1"):
        upper_bound(np.array([0.0, 1.5]), 0.95)
    with pytest.raises(DataError, match="loss nan"):
        p_value(np.array([math.nan]), 0.1)
    with pytest.raises(DataError, match=r"shape \(0,\)"):
        p_value(np.array([]), 0.1)
    with pytest.raises(ConfigError, match="level 95"):
        upper_bound(np.zeros(3), 95)
    with pytest.raises(ConfigError, match="fresh tracks 0"):
        upper_bound(np.zeros(3), 0.9, fresh=0)
