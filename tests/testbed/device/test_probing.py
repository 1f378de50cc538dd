"""Active probing: within its budget, in idle time only, and the estimates get newer by it."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest
from sockets import Relay

from cnn.bundle import Bundle
from cnn.common.errors import ConfigError
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED
from testbed.device.device_loop import Device, DeviceConfig
from testbed.device.frame_sources import CameraFrame, open_frames
from testbed.device.link_checks import MAX_PROBE_BYTES, PROBE_OVERHEAD_BYTES, ProbePlan, Prober
from testbed.link.link_process import LinkProcess
from testbed.meters.power import ModelMeter, power_profile
from testbed.policy.observation_fields import NEVER_S
from testbed.policy.observer import Observer
from testbed.policy.policies import StaticPolicy
from testbed.policy.task_settings import Settings
from testbed.records.measurement import Measurement
from testbed.server.server_process import ServerProcess
from testbed.traces.trace import Trace
from testbed.wire.client import MecClient
from testbed.wire.protocol import probe_message

pytestmark = pytest.mark.slow(10)

POWER = power_profile("jetson-nano+5g-nsa-lowband")


@pytest.fixture(scope="module")
def frames(bundle: Bundle) -> list[CameraFrame]:
    return list(open_frames("render", bundle.config.input_size, seed=1, n=12))


def drive(
    target: str,
    bundle: Bundle,
    runtime: SplitRuntime,
    frames: list[CameraFrame],
    **settings: float,
) -> tuple[list[Measurement], Observer]:
    """A device that computes everything itself, and so learns of the link by probes alone."""
    observer = Observer(
        Settings(radio_5g=True, accuracy_floor=0.9, delay_share=0.5, full_local_ms=10)
    )
    with MecClient(target, bundle.hash) as client:
        client.connect(10)
        unit = Device(
            runtime,
            client,
            StaticPolicy(SHIPPED.action(1, 1)),
            observer,
            ModelMeter(POWER),
            DeviceConfig(period_ms=150, max_queue_ms=5000, timeout_ms=1000, **settings),  # type: ignore[arg-type]
        )
        return list(unit.run(frames)), observer


def link(server: ServerProcess, mbps: float, rtt_ms: float) -> LinkProcess:
    trace = Trace(np.full(2, mbps), np.full(2, rtt_ms), 10.0, "test", "5G", "generated")
    return LinkProcess(trace, ("127.0.0.1", server.port))


def test_probes_refresh_the_estimates_and_are_accounted_for(
    server: ServerProcess, bundle: Bundle, runtime: SplitRuntime, frames: list[CameraFrame]
) -> None:
    padding = 2000
    with contextlib.closing(link(server, 2.0, 20.0)) as slow:
        rows, observer = drive(
            f"127.0.0.1:{slow.port}",
            bundle,
            runtime,
            frames,
            probe_budget_per_min=300,
            probe_bytes=padding,
            probe_stale_s=0.0,
        )
    sent_bytes = padding + PROBE_OVERHEAD_BYTES
    probes = sum(row.probes for row in rows)
    assert 2 <= probes <= 1 + 11 * 0.15 * 300 / 60  # 11 idle times of at most 150 ms
    assert all(row.probe_bytes == row.probes * sent_bytes for row in rows)
    assert {row.status for row in rows} == {"ok"}
    assert sum(row.uplink_bytes for row in rows) == 0  # these are the frames' own
    # 8 * 2059 bit over 2 Mbit/s and the round trip: 28 ms, and what the calls cost here.
    true_ms = 8 * sent_bytes / 2000 + 20
    assert true_ms - 1 < observer.transfer_mean_ms < true_ms + 30
    assert observer.expected_transfer_ms(sent_bytes) == pytest.approx(true_ms, abs=15)
    for row in rows:
        assert row.radio_mj is not None
        if row.probes:  # 797 mW while the exchange lasts, 32.2 nJ for every bit
            at_least = 0.797 * (true_ms - 1) + 32.2e-6 * 8 * sent_bytes
            assert row.radio_mj >= row.probes * at_least
        else:
            assert row.radio_mj == 0


def test_without_a_budget_nothing_is_sent(
    server: ServerProcess, bundle: Bundle, runtime: SplitRuntime, frames: list[CameraFrame]
) -> None:
    rows, observer = drive(server.target, bundle, runtime, frames[:3], probe_stale_s=0.0)
    assert sum(row.probes for row in rows) == 0
    assert time.monotonic() - observer.newest_transfer_s >= NEVER_S
    assert {row.radio_mj for row in rows} == {0}


def test_no_probe_goes_out_when_its_answer_would_come_too_late(
    server: ServerProcess, bundle: Bundle, runtime: SplitRuntime, frames: list[CameraFrame]
) -> None:
    """A round trip of 400 ms does not fit between frames 150 ms apart. The first probe is sent
    in good faith (50 ms expected), given up before the next frame, and makes the next rarer."""
    with contextlib.closing(link(server, 50.0, 400.0)) as far:
        rows, observer = drive(
            f"127.0.0.1:{far.port}",
            bundle,
            runtime,
            frames,
            probe_budget_per_min=240,
            probe_stale_s=0.0,
        )
    assert 1 <= sum(row.probes for row in rows) <= 3
    assert max(row.queue_ms for row in rows[1:]) < 300  # not the 400 ms of an answer
    assert observer.failures == 0  # an exchange may take 1000 ms: nothing is known to be down


def test_budget_is_kept_whatever_happens() -> None:
    rng = np.random.default_rng(0)
    for per_min in (1, 7, 60):
        prober, now_s, known_s, sent = Prober(ProbePlan(per_min, 0, 1.0)), 0.0, -60.0, []
        while now_s < 600:
            now_s += rng.exponential(0.3)
            if prober.due_s(known_s) <= now_s:
                assert now_s - known_s >= 1.0
                prober.sent(now_s)
                sent.append(now_s)
                if rng.random() < 0.7:
                    known_s = now_s + 0.05
                else:
                    prober.unanswered()
            elif rng.random() < 0.02:
                known_s = now_s  # a frame was offloaded
        assert len(sent) > 1
        within_a_minute = max(sum(a <= t < a + 60 for t in sent) for a in sent)
        assert within_a_minute <= per_min


def test_unanswered_probes_get_rarer_until_something_is_answered() -> None:
    prober, gaps = Prober(ProbePlan(60, 0, 0.0)), []
    for _ in range(6):
        at_s = max(prober.due_s(-60.0), 0.0)
        prober.sent(at_s)
        prober.unanswered()
        gaps.append(prober.due_s(-60.0) - at_s)
    assert gaps == [2, 4, 8, 8, 8, 8]
    assert prober.due_s(at_s + 0.5) == at_s + 1


def test_a_probe_needs_more_time_than_it_is_expected_to_take() -> None:
    prober = Prober(ProbePlan(60))
    assert prober.window_ms(1.0, 1.1, 50.0) == pytest.approx(90.0)
    assert prober.window_ms(1.0, 1.1, 95.0) is None
    assert prober.window_ms(1.2, 1.1, 0.0) is None
    assert Prober(ProbePlan()).due_s(0.0) == np.inf


@pytest.mark.parametrize(
    "settings",
    [
        {"probe_budget_per_min": -1},
        {"probe_budget_per_min": 1000},
        {"probe_bytes": -1},
        {"probe_bytes": MAX_PROBE_BYTES + 1},
        {"probe_stale_s": -0.1},
        {"probe_stale_s": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="probes a minute"):
        DeviceConfig(**settings)  # type: ignore[arg-type]


def test_padding_is_as_long_as_asked_for() -> None:
    for n in (1, 127, 128, 1000, MAX_PROBE_BYTES):
        assert n < len(probe_message(n)) <= n + 3
    assert probe_message(0) == b""


def test_overhead_is_what_a_counting_relay_sees(server: ServerProcess, bundle: Bundle) -> None:
    with Relay(server.port) as relay, MecClient(relay.target, bundle.hash) as client:
        client.connect(10)
        for padding in (0, 100, 1000):
            client.probe(5000, padding)
            time.sleep(0.1)
            before = len(relay.sent)
            for _ in range(10):
                client.probe(5000, padding)
            time.sleep(0.1)
            overhead = (len(relay.sent) - before) / 10 - padding
            assert overhead == pytest.approx(PROBE_OVERHEAD_BYTES, abs=6)
