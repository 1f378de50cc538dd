"""Transfer times: against `testbed.link.transfer`, brute-force integration, and themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnn.common.errors import ConfigError
from offload_env.trace_pool import TracePool
from testbed.link.transfer import CapacityIntegral
from testbed.traces.trace import Trace

RATES = st.lists(st.sampled_from([0.0, 0.2, 1.0, 7.5, 40.0]), min_size=1, max_size=8).filter(
    lambda rates: max(rates) > 0
)
RELAXED = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])


def _trace(rates: list[float], period_s: float) -> Trace:
    uplink = np.array(rates)
    return Trace(uplink, np.arange(len(rates)) + 5.0, period_s, "t", "5G", "generated")


def _stepped_ms(trace: Trace, start_ms: float, bits: float, step_ms: float) -> float:
    """Send `bits` in steps of `step_ms`, the slow and obvious way."""
    period_ms, n = trace.period_s * 1e3, len(trace.uplink_mbps)
    t = start_ms
    while True:
        bits -= float(trace.uplink_mbps[int((t + step_ms / 2) // period_ms) % n]) * 1e3 * step_ms
        t += step_ms
        if bits <= 0:
            return t


@RELAXED
@given(RATES, st.floats(0, 900), st.floats(1, 60_000))
def test_transfer_times_equal_brute_force_integration(
    rates: list[float], start_ms: float, bits: float
) -> None:
    trace = _trace(rates, 0.1)
    start_ms = round(start_ms, 1)
    end, _ = TracePool([trace]).sender(0)(start_ms, bits)
    assert end == pytest.approx(_stepped_ms(trace, start_ms, bits, 0.1), abs=0.11)


@RELAXED
@given(
    st.lists(st.tuples(RATES, st.sampled_from([0.1, 0.25, 1.0])), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_arrays_equal_scalars_exactly_and_testbed_closely(
    parts: list[tuple[list[float], float]], seed: int
) -> None:
    traces = [_trace(rates, period) for rates, period in parts]
    pool, rng = TracePool(traces), np.random.default_rng(seed)
    which = rng.integers(0, len(traces), 40)
    start = rng.uniform(0, 9_000, 40)
    bits = rng.choice([0.0, 1.0, 5e3, 6e4, 3e6], 40)
    end, one_way = pool.send(pool.lanes(which), start, bits)
    later = pool.one_way(pool.lanes(which), start)
    for k in range(40):
        sender, trace = pool.sender(which[k]), traces[which[k]]
        assert sender(float(start[k]), float(bits[k])) == (end[k], one_way[k])
        assert sender.one_way(float(start[k])) == later[k]
        independent = CapacityIntegral.of(trace).finish(start[k] / 1e3, bits[k])[0]
        assert end[k] == pytest.approx(independent * 1e3, abs=1e-4)
        period_ms = trace.period_s * 1e3
        # The sample in which the last bit left (at its very end still that one).
        near = {int((end[k] + d) / period_ms) % len(trace.rtt_ms) for d in (-1e-6, 0.0)}
        assert one_way[k] in {trace.rtt_ms[i] / 2 for i in near}
        assert later[k] == trace.rtt_ms[int(start[k] / period_ms) % len(trace.rtt_ms)] / 2


def test_sending_later_never_arrives_earlier() -> None:
    rng = np.random.default_rng(0)
    trace = _trace(rng.choice([0.0, 0.5, 20.0], 30).tolist(), 0.1)
    pool = TracePool([trace])
    start = np.sort(rng.uniform(0, 5_000, 500))
    end, _ = pool.send(pool.lanes(np.zeros(500, np.int64)), start, np.full(500, 9e3))
    assert (np.diff(end) >= 0).all()


def test_no_traces_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no traces"):
        TracePool([])
