"""The anytime-valid alarm: exact expectation, brute force, false alarms, delay under a shift."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from cnn.common.errors import ConfigError
from testbed.deploy.loss_monitor import LossMonitor

STAKES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
FRAMES = 30
"""Of a track."""


def capital_after(evidence: tuple[float, ...], limit: float) -> float:
    monitor = LossMonitor(limit, between=1e12)
    for x in evidence:
        monitor.add(x)
    return monitor.capital


def test_the_capital_is_the_sum_over_all_starts() -> None:
    rng = np.random.default_rng(0)
    evidence, limit = rng.random(40) ** 4, 0.15
    total = sum(
        math.prod(1 - stake + stake * x / limit for x in evidence[first:]) / len(STAKES)
        for first in range(40)
        for stake in STAKES
    )
    assert capital_after(tuple(evidence), limit) == pytest.approx(total)


@pytest.mark.parametrize("mean", [0.25, 0.1])
def test_the_mean_capital_grows_by_one_a_unit_at_most(mean: float) -> None:
    """Exact: all sequences of eight evidences of 0 or 1, weighted with their probability."""
    total = sum(
        mean ** sum(seen) * (1 - mean) ** (8 - sum(seen)) * capital_after(seen, 0.25)
        for seen in product((0.0, 1.0), repeat=8)
    )
    assert total == pytest.approx(8.0) if mean == 0.25 else total < 8.0


def frames_of(tracks: np.ndarray) -> list[tuple[float, bool]]:
    """Frames that all share the evidence of their track."""
    return [(float(x), k == 0) for x in tracks for k in range(FRAMES)]


@pytest.mark.slow(4)
def test_false_alarms_lie_as_far_apart_as_said() -> None:
    """At the limit itself, in tracks whose frames are all right or all wrong."""
    rng = np.random.default_rng(1)
    limit, between, lengths = 0.05, 200, []
    for _ in range(200):
        monitor = LossMonitor(limit, between)
        while not monitor.alarm:
            monitor.add(float(rng.random() < limit))
        lengths.append(monitor.units)
    # The standard error is about a fourteenth of the mean; it is in truth some 1.5 times `between`.
    assert np.mean(lengths) >= between


def test_frames_of_a_track_are_not_independent() -> None:
    """Betting on each of them alarms without need; betting on tracks does not."""
    tracks = (np.random.default_rng(2).random(400) < 0.05).astype(float)
    by_frame, by_track = LossMonitor(0.08, 1e4), LossMonitor(0.08, 1e4)
    for x, starts in frames_of(tracks):
        by_frame.add(x)
        by_track.add_frame(x, starts_track=starts)
    assert by_frame.alarm
    assert not by_track.alarm


HUNDRED_HOURS = 100 * 3600 * 10 // FRAMES
"""In tracks, at ten frames a second."""


@pytest.mark.parametrize(
    ("calm", "shifted", "limit"),
    [
        ((0.4, 40.0), (4.0, 16.0), 0.015),  # 1 - confidence: mean 0.01, then 0.2
        ((0.05, 4.95), (1.0, 2.0), 0.015),  # errors: mean 0.01, then a third
    ],
)
@pytest.mark.slow(2)
def test_a_late_shift_is_found_within_300_frames(
    calm: tuple[float, float], shifted: tuple[float, float], limit: float
) -> None:
    """After 90,000 frames without one, track means drawn from beta distributions."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        monitor = LossMonitor(limit, HUNDRED_HOURS)
        for x in rng.beta(*calm, 90_000 // FRAMES):
            monitor.add(x)
        assert not monitor.alarm
        alarms = [monitor.add(x) for x in rng.beta(*shifted, 300 // FRAMES)]
        assert alarms[-1]


def test_an_alarm_stays_until_reset() -> None:
    monitor = LossMonitor(0.1, between=10)
    while not monitor.add(1.0):
        pass
    assert monitor.capital >= 10
    found, units = monitor.capital, monitor.units
    assert monitor.add(0.0)
    assert (monitor.capital, monitor.units) == (found, units)
    monitor.reset()
    assert (monitor.alarm, monitor.capital, monitor.units) == (False, 0.0, 0)
    assert not monitor.add(0.0)


def test_a_track_counts_once_with_the_mean_of_its_frames() -> None:
    by_frame, by_track = LossMonitor(0.2, 1e4), LossMonitor(0.2, 1e4)
    tracks = ((0.0, 1.0, 0.5), (1.0,), (math.nan, 0.25), (math.nan,), (0.0,))
    for track in tracks:
        for k, x in enumerate(track):
            by_frame.add_frame(x, starts_track=k == 0)
    for mean in (0.5, 1.0, 0.25):  # the last has not ended, the one before has no evidence
        by_track.add(mean)
    assert by_frame.capital == pytest.approx(by_track.capital)
    assert by_frame.units == 3


def test_bad_input_is_named() -> None:
    for limit, between in ((0.0, 9), (1.0, 9), (math.nan, 9), (0.1, 1.0), (0.1, math.inf)):
        with pytest.raises(ConfigError, match="of a loss monitor"):
            LossMonitor(limit, between)
    monitor = LossMonitor(0.1, 100)
    for evidence in (-0.1, 1.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            monitor.add(evidence)
    with pytest.raises(ValueError, match="expected 0 to 1"):
        monitor.add_frame(2.0, starts_track=True)
