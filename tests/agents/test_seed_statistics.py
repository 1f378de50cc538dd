"""Interquartile mean and probability of improvement against hand-worked numbers and scipy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, trim_mean

from agents.seed_statistics import interquartile_mean, probability_of_improvement


def test_a_mean_of_the_middle_half_of_all_runs_of_all_tasks() -> None:
    """Sorted: 1 2 | 3 4 5 10 | 20 30, two of eight left out at each end."""
    scores = np.array([[1.0, 30.0], [5.0, 3.0], [20.0, 2.0], [4.0, 10.0]])
    assert interquartile_mean(scores).mean == pytest.approx((3 + 4 + 5 + 10) / 4)


def test_five_seeds_lose_one_at_each_end() -> None:
    """As in rliable and scipy, whole runs are left out: 0.25 * 5 is one."""
    scores = np.array([[0.5], [0.1], [0.9], [0.3], [0.2]])
    assert interquartile_mean(scores).mean == pytest.approx((0.2 + 0.3 + 0.5) / 3)


def test_it_is_scipys_trimmed_mean() -> None:
    scores = np.random.default_rng(0).normal(size=(7, 3))
    assert interquartile_mean(scores).mean == trim_mean(scores, 0.25, axis=None)


def test_its_interval_is_that_of_all_resamples_within_tasks() -> None:
    """Three runs of two tasks: all 27 * 27 equally likely resamples, written out."""
    scores = np.array([[0.0, 10.0], [1.0, 14.0], [4.0, 11.0]])
    every = [
        trim_mean([*first, *second], 0.25)
        for first in product(scores[:, 0], repeat=3)
        for second in product(scores[:, 1], repeat=3)
    ]
    found = interquartile_mean(scores)
    assert [found.low, found.high] == pytest.approx(np.percentile(every, (2.5, 97.5)), abs=0.3)


def test_a_resample_never_mixes_tasks() -> None:
    """Runs of a task are equal, tasks are not: every resample has the same mean."""
    scores = np.array([[1.0, 5.0, 9.0]] * 4)
    found = interquartile_mean(scores)
    assert (found.low, found.high) == (found.mean, found.mean) == (5.0, 5.0)


def test_probability_counts_pairs_and_halves_of_ties() -> None:
    """1 below 2 and 3; 2 equal to 2 and below 3: 3.5 of 4 pairs. In the other task none: 0 of 4."""
    lower = np.array([[1.0, 9.0], [2.0, 8.0]])
    other = np.array([[2.0, 1.0], [3.0, 2.0]])
    assert probability_of_improvement(lower, other).mean == (3.5 / 4 + 0.0) / 2


def test_probability_is_the_mann_whitney_statistic() -> None:
    """rliable's formula, with lower costs as improvement; the settings may have other seeds."""
    rng = np.random.default_rng(1)
    lower, other = rng.normal(size=(6, 4)), rng.normal(0.5, 1, size=(9, 4))
    by_task = [mannwhitneyu(other[:, t], lower[:, t]).statistic / (6 * 9) for t in range(4)]
    assert probability_of_improvement(lower, other).mean == pytest.approx(np.mean(by_task))


def test_its_interval_is_that_of_all_resamples_of_both() -> None:
    lower, other = np.array([[0.0], [2.0], [4.0]]), np.array([[1.0], [3.0], [3.0]])
    every = [
        np.mean([(x < y) + 0.5 * (x == y) for x in xs for y in ys])
        for xs in product(lower[:, 0], repeat=3)
        for ys in product(other[:, 0], repeat=3)
    ]
    found = probability_of_improvement(lower, other)
    assert [found.low, found.high] == pytest.approx(np.percentile(every, (2.5, 97.5)), abs=0.05)


def test_the_two_directions_add_up_to_one() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    there = probability_of_improvement(one, other).mean
    assert there + probability_of_improvement(other, one).mean == pytest.approx(1)


def test_one_run_has_an_interval_without_width_and_seeds_decide() -> None:
    found = interquartile_mean(np.array([[3.0]]))
    assert (found.mean, found.low, found.high) == (3.0, 3.0, 3.0)
    scores = np.random.default_rng(3).normal(size=(5, 2))
    assert interquartile_mean(scores, 1) == interquartile_mean(scores, 1)
    assert interquartile_mean(scores, 1) != interquartile_mean(scores, 2)
