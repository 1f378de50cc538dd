"""The processor: this machine as it is, or one that waits out the pace of a slower device."""

from __future__ import annotations

import time

import numpy as np
import pytest

from cnn.topology import SHIPPED
from testbed.device.processor import Pace, PaceKept, Processor


def steady(ms: float) -> Pace:
    """A device on which everything takes `ms`, without spread."""
    return Pace("steady", (ms,) * 20, (ms,) * 20, (0.0,) * 6, (0.0,) * 6, 0.0, SHIPPED)


def test_the_machine_as_it_is_waits_for_nothing_and_counts_nothing() -> None:
    processor = Processor(None, seed=0)
    processor.start(0, time.monotonic())
    result, took_ms = processor.run(lambda: 7, ms=60_000)  # a pace nobody asked for
    assert (result, processor.kept) == (7, None)
    assert took_ms < 60_000


def test_a_section_ends_when_its_pace_says() -> None:
    processor = Processor(steady(30), seed=0)
    began_s = time.monotonic()
    processor.start(0, began_s)
    result, _ = processor.run(lambda: "answer", ms=30)
    assert result == "answer"
    assert time.monotonic() >= began_s + 0.030
    kept = processor.kept
    assert kept is not None
    assert kept.sections == 1
    # In time, the device's clock reads exactly what the profile states.
    if kept.late == 0:
        assert processor.now_s() == pytest.approx(began_s + 0.030, abs=1e-9)


def test_what_runs_between_sections_is_part_of_their_time() -> None:
    processor = Processor(steady(1), seed=0)
    processor.start(0, time.monotonic() - 0.020)  # 20 ms of the frame have passed
    before_s = processor.now_s()
    processor.spend(40)
    assert processor.now_s() >= before_s + 0.040
    assert processor.now_s() - time.monotonic() <= 0  # and no more than 20 ms were waited for


def test_a_section_that_takes_longer_than_its_pace_is_counted_and_not_hidden() -> None:
    processor = Processor(steady(1), seed=0)
    processor.start(0, time.monotonic())
    _, took_ms = processor.run(lambda: time.sleep(0.02), ms=1)
    assert took_ms >= 20
    assert processor.kept == PaceKept(1, 1)


def test_after_an_exchange_time_counts_from_its_end() -> None:
    processor = Processor(steady(5), seed=0)
    processor.start(0, time.monotonic() - 10)
    end_s = time.monotonic() + 0.01
    processor.resume(end_s)
    processor.spend(5)
    assert processor.now_s() >= end_s + 0.005


def test_spread_is_seeded_and_has_mean_one() -> None:
    pace = Pace("spread", (1.0,) * 20, (1.0,) * 20, (0.0,) * 6, (0.0,) * 6, 0.1, SHIPPED)
    np.testing.assert_array_equal(pace.factors(3), pace.factors(3))
    assert not np.array_equal(pace.factors(3), pace.factors(4))
    assert pace.factors(3).mean() == pytest.approx(1.0, abs=4 * 0.1 / 64)
    assert np.log(pace.factors(3)).std() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("kept", "share", "valid"),
    [
        (PaceKept(0, 0), 0.0, True),
        (PaceKept(100, 2), 0.02, True),
        (PaceKept(100, 3), 0.03, False),
        (PaceKept(60, 0) + PaceKept(40, 3), 0.03, False),
    ],
)
def test_two_percent_late_are_valid_and_more_are_not(
    kept: PaceKept, share: float, valid: bool
) -> None:
    assert (kept.late_share, kept.valid) == (pytest.approx(share), valid)
    assert ("not valid" in kept.describe()) != valid
    assert PaceKept.of_source(kept.to_source()) == kept
    assert PaceKept.of_source({}) is None
