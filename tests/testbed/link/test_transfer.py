"""The transfer time against step-by-step integration of the capacity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.link.transfer import CapacityIntegral
from testbed.traces.trace import Trace

RATES = st.lists(st.one_of(st.just(0.0), st.floats(0.05, 200.0)), min_size=1, max_size=12).filter(
    lambda rates: max(rates) > 0
)


def make(rates: list[float], period_s: float = 0.1) -> Trace:
    up = np.array(rates, dtype=np.float64)
    return Trace(up, np.full(len(up), 20.0), period_s, "test", "5G", "generated")


def brute_force(trace: Trace, start_s: float, bits: float, steps: int) -> float:
    """Walk through time in steps of period / `steps` until the bits have left."""
    step_s = trace.period_s / steps
    k = int(start_s / step_s)
    t = start_s
    while True:
        rate = trace.uplink_mbps[(k // steps) % len(trace.uplink_mbps)] * 1e6
        until = (k + 1) * step_s
        room = rate * max(until - t, 0.0)
        if room >= bits - 1e-3 and rate > 0:
            return t + bits / rate
        bits -= room
        t, k = until, k + 1


@settings(max_examples=150, deadline=None)
@given(RATES, st.floats(0, 5), st.floats(1, 1e7), st.sampled_from([0.1, 0.5, 1.0]))
def test_finish_equals_fine_step_integration(
    rates: list[float], start_s: float, bits: float, period_s: float
) -> None:
    trace = make(rates, period_s)
    total = sum(rates) * 1e6 * period_s
    bits = min(bits, 20 * total)
    integral = CapacityIntegral.of(trace)
    expected = brute_force(trace, start_s, bits, steps=7)
    finish = integral.finish(start_s, bits)[0]
    # Where the payload just fits before an outage, rounding may decide either way: there the
    # bits that left must agree rather than the time.
    left = integral.bits_until(finish) - integral.bits_until(start_s)
    assert left == pytest.approx(bits, rel=1e-9, abs=0.1)
    between = integral.bits_until(expected) - integral.bits_until(finish)
    assert finish == pytest.approx(expected, abs=1e-6) or abs(between) < 0.1


@settings(max_examples=100, deadline=None)
@given(RATES, RATES, RATES, st.floats(0, 5), st.floats(0, 1e7))
def test_a_trace_among_others_is_that_trace_alone(
    before: list[float], rates: list[float], after: list[float], start_s: float, bits: float
) -> None:
    joined = make([*before, *rates, *after])
    totals = np.concatenate([[0.0], np.cumsum(joined.uplink_mbps * 1e5)]).tolist()
    rate_list = (joined.uplink_mbps * 1e6).tolist()
    among = CapacityIntegral(rate_list, totals, 0.1, len(before), len(rates))
    alone = CapacityIntegral.of(make(rates))
    assert among.bits_until(start_s) == pytest.approx(alone.bits_until(start_s), abs=1e-2)
    end, at = among.finish(start_s, bits)
    gap = alone.bits_until(end) - alone.bits_until(alone.finish(start_s, bits)[0])
    assert gap == pytest.approx(0, abs=0.1)
    assert len(before) <= at < len(before) + len(rates)


def test_payload_waits_through_outage_and_wraps() -> None:
    integral = CapacityIntegral.of(make([1.0, 0.0, 2.0], period_s=1.0))
    assert integral.finish(0.0, 1e6)[0] == 1.0  # fits exactly before the outage
    assert integral.finish(0.5, 1.5e6)[0] == pytest.approx(2.5)
    assert integral.finish(1.2, 1.0)[0] == pytest.approx(2.0 + 0.5e-6)
    assert integral.finish(2.0, 2.5e6)[0] == pytest.approx(3.5)  # wraps into the next pass
    assert integral.finish(0.0, 30e6)[0] == pytest.approx(30.0)
    assert integral.finish(1.5, 0.0)[0] == 1.5
    assert integral.bits_until(4.0) == pytest.approx(4e6)
