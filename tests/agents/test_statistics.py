"""Intervals against the normal theory they must agree with."""

from __future__ import annotations

import numpy as np
import pytest

from agents.evaluation import gap_closed, interval, paired_differences, resamples


def test_interval_agrees_with_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = interval(values, resamples(400, 1))
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.25 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.25 * half)


def test_pairing_removes_what_drives_share() -> None:
    rng = np.random.default_rng(2)
    drive = rng.normal(0, 10, 100)
    per_drive = {"a": drive + 1.0, "b": drive + rng.normal(0, 0.1, 100)}
    found = paired_differences(per_drive, "b", resamples(100, 3))
    assert list(found) == ["a"]
    assert 0.95 < found["a"].low < found["a"].high < 1.05


def test_resamples_are_seeded_and_whole() -> None:
    a, b = resamples(10, 1), resamples(10, 1)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a.sum(1), 1.0)
    assert not np.array_equal(a, resamples(10, 2))


def test_gap_closed() -> None:
    assert gap_closed(1.0, 1.0, 0.5) == 0.0
    assert gap_closed(1.0, 0.5, 0.5) == 1.0
    assert gap_closed(1.0, 0.625, 0.5) == 0.75
    assert gap_closed(0.5, 0.5, 0.5) is None
