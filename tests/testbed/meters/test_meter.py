"""Meters that integrate samples, against known powers."""

from __future__ import annotations

import math
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.meters.meter import CounterMeter, FrameActivity, SampledMeter

SECOND = FrameActivity(0, 1, 0, 0, 0, 0, 0)


class Counter(CounterMeter):
    """A counter that shows given values in turn."""

    def __init__(self, *values: float | None) -> None:
        super().__init__("x")
        self.values = list(values)

    def counter_mj(self) -> float | None:
        return self.values.pop(0)


@pytest.mark.parametrize(
    ("began", "ended", "energy"),
    [(10, 25, 15), (10, 10, None), (0, 0, None), (25, 10, None), (None, 1, None), (1, None, None),
     (1, math.nan, None), (1, math.inf, None)],
)  # fmt: skip
def test_a_counter_that_does_not_rise_measures_nothing(
    began: float | None, ended: float | None, energy: float | None
) -> None:
    meter = Counter(began, ended)
    meter.begin()
    assert meter.end(SECOND).energy_mj == energy


def test_trapezoids() -> None:
    now, power = [10.0], [2000.0]
    meter = SampledMeter(lambda: power[0], "x", interval_s=0, clock=lambda: now[0])
    meter.begin()
    now[0], power[0] = 10.4, 4000.0
    assert meter.end(SECOND).energy_mj == pytest.approx(0.4 * 3000)
    meter.begin()
    now[0] = 10.5
    assert meter.end(SECOND).energy_mj == pytest.approx(0.1 * 4000)


def test_a_sampled_meter_never_guesses() -> None:
    now = [0.0]
    values: list[float | None] = [1000.0, None, 1000.0, 1000.0, 1000.0, 1000.0]
    meter = SampledMeter(lambda: values.pop(0), "x", interval_s=0, clock=lambda: now[0])
    meter.begin()
    assert meter.end(SECOND).energy_mj is None  # the sensor failed
    meter.begin()
    now[0] = 5.0
    assert meter.end(SECOND).energy_mj is None  # 5 s without a sample
    meter.begin()
    now[0] = 5.1
    assert meter.end(SECOND).energy_mj == pytest.approx(1000 * 0.1)


@given(
    st.lists(
        st.one_of(st.none(), st.floats(), st.just(0.0), st.just(OSError("the bus is gone"))),
        min_size=2,
        max_size=12,
    )
)
def test_whatever_a_sensor_says_a_reading_is_positive_or_none(
    values: list[float | Exception | None],
) -> None:
    now, left = [0.0], iter(values)

    def read() -> float | None:
        now[0] += 0.1
        value = next(left)
        if isinstance(value, Exception):
            raise value
        return value

    meter = SampledMeter(read, "x", interval_s=0, clock=lambda: now[0])
    for a, b in zip(values[::2], values[1::2], strict=False):
        meter.begin()
        energy = meter.end(SECOND).energy_mj
        good = all(isinstance(v, float) and 0 < v < math.inf for v in (a, b))
        assert (energy is None) or energy > 0
        assert good or energy is None


def test_it_samples_by_itself_until_closed() -> None:
    before = threading.active_count()
    with SampledMeter(lambda: 1000.0, "x", interval_s=0.005) as meter:
        before_s = time.monotonic()
        meter.begin()
        began_s = time.monotonic()
        time.sleep(0.7)  # longer than the largest gap: it must have sampled in between
        ended_s = time.monotonic()
        energy = meter.end(SECOND).energy_mj
        # A watt throughout, so as many millijoules as milliseconds lie between the two calls.
        assert energy is not None
        assert 1e3 * (ended_s - began_s) <= energy + 1e-6
        assert energy <= 1e3 * (time.monotonic() - before_s) + 1e-6
    assert threading.active_count() == before


def test_a_sensor_that_raises_does_not_end_the_sampling() -> None:
    recovered = threading.Event()
    values = iter([1000.0, 1000.0])

    def read() -> float:
        try:
            return next(values)
        except StopIteration:
            recovered.set()  # still asked after it has raised
            raise RuntimeError("driver") from None

    with SampledMeter(read, "x", interval_s=0.001):
        assert recovered.wait(5)
        recovered.clear()
        assert recovered.wait(5)
