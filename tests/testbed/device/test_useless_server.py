"""A device beside a server that is live and of no use: no frame lost, no false answer taken."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnn.bundle import Bundle
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED
from testbed.device.device_loop import Device, DeviceConfig
from testbed.device.frame_sources import CameraFrame, open_frames
from testbed.meters.meter import NoMeter
from testbed.policy.observer import Observer
from testbed.policy.policies import StaticPolicy
from testbed.policy.task_settings import Settings
from testbed.records.measurement import Measurement
from testbed.wire.client import ExchangeFailed, MecClient
from tests.support.scripts import BENCHMARKS, benchmark

pytestmark = pytest.mark.slow(28)

SENT = SHIPPED.action(5, 4)
_PATH = BENCHMARKS / "_evil_server.py"


EVIL: Any = benchmark("_evil_server")


@pytest.fixture(scope="module")
def evil(bundle: Bundle) -> Iterator[Any]:
    with EVIL.EvilServer("honest", bundle=bundle) as server:
        yield server


@pytest.fixture(scope="module")
def frames(bundle: Bundle) -> list[CameraFrame]:
    return list(open_frames("render", bundle.config.input_size, seed=1, n=12))


def run(
    runtime: SplitRuntime,
    target: str,
    frames: list[CameraFrame],
    n: int,
    **config: float,
) -> list[Measurement]:
    with MecClient(target, runtime.bundle.hash) as client:
        client.connect(20)
        unit = Device(
            runtime,
            client,
            StaticPolicy(SENT),
            Observer(Settings(True, 0.9, 0.5, 10)),
            NoMeter(),
            DeviceConfig(**{"max_queue_ms": 60_000, **config}),  # type: ignore[arg-type]
        )
        return list(unit.run(itertools.islice(itertools.cycle(frames), n)))


REASONS = {
    **dict.fromkeys(EVIL.WRONG_ANSWERS, "bad answer"),
    "garbage": "bad answer",
    "empty": "bad answer",
    "huge": "refused",  # as gRPC says of an answer beyond the bound
    "bomb": "refused",
    "full": "refused",
    "fails": "rejected",
    "resets": "unavailable",
    "deaf": "timeout",
    "late": "timeout",
}


@pytest.mark.parametrize("mode", REASONS)
def test_whatever_is_no_answer_is_a_failure_and_the_device_answers_itself(
    runtime: SplitRuntime, evil: Any, frames: list[CameraFrame], mode: str
) -> None:
    evil.mode = mode
    silent = mode in ("deaf", "late")
    rows = run(runtime, evil.target, frames, 2, period_ms=0, timeout_ms=150 if silent else 30_000)
    assert [row.status for row in rows] == ["fallback"] * 2
    assert {row.reason for row in rows} <= {REASONS[mode], "unavailable"}
    assert rows[0].reason == REASONS[mode]
    for row, frame in zip(rows, frames, strict=False):
        assert row.prediction == runtime.local(frame.image, SENT.exit)[0]
        assert row.server_ms is None


def test_an_honest_server_is_believed(
    runtime: SplitRuntime, evil: Any, frames: list[CameraFrame]
) -> None:
    evil.mode = "honest"
    rows = run(runtime, evil.target, frames, 12, period_ms=0, timeout_ms=30_000)
    assert {row.status for row in rows} == {"ok"}
    for row, frame in zip(rows, frames, strict=True):
        assert row.prediction == runtime.act(frame.image, SENT)[0]


@pytest.mark.parametrize("mode", ["deaf", "late", "full", "wrong id", "resets", "every fifth"])
def test_a_live_server_that_does_not_infer_is_no_longer_waited_for(
    runtime: SplitRuntime, evil: Any, frames: list[CameraFrame], mode: str
) -> None:
    evil.mode = mode
    asked = evil.inferences
    rows = run(
        runtime,
        evil.target,
        frames,
        80,
        period_ms=20,
        timeout_ms=60,
        breaker_failures=3,
        breaker_backoff_ms=50,
    )
    waited = [row for row in rows if row.reason not in ("", "breaker open")]
    assert all(row.prediction is not None for row in rows)
    assert rows[-1].reason == "breaker open"
    if mode == "every fifth":  # each answered probe closes the breaker, later ever more must be
        assert len(waited) < 20
    else:
        assert len(waited) == 3
        assert evil.inferences - asked > 3  # and yet it is tried again


def test_a_server_that_comes_to_its_senses_is_used_again(
    runtime: SplitRuntime, evil: Any, frames: list[CameraFrame]
) -> None:
    evil.mode = "deaf"

    def drive() -> Iterator[CameraFrame]:
        for k, frame in enumerate(itertools.islice(itertools.cycle(frames), 150)):
            if k == 30:
                evil.mode = "honest"
            yield frame

    with MecClient(evil.target, runtime.bundle.hash) as client:
        client.connect(20)
        unit = Device(
            runtime,
            client,
            StaticPolicy(SENT),
            Observer(Settings(True, 0.9, 0.5, 10)),
            NoMeter(),
            DeviceConfig(
                period_ms=30, timeout_ms=200, max_queue_ms=60_000, breaker_failures=2,
                breaker_backoff_ms=100,
            ),
        )  # fmt: skip
        rows = list(unit.run(drive()))
    assert {row.status for row in rows[:30]} == {"fallback"}
    assert "ok" in {row.status for row in rows[30:]}


def test_an_answer_of_any_size_takes_little_memory(
    runtime: SplitRuntime, frames: list[CameraFrame], bundle: Bundle
) -> None:
    """64 MiB of zeros travel as 64 kB: they must not be unpacked. The server is another process."""
    command = [sys.executable, str(_PATH), "bomb"]
    environment = {**os.environ, "PYTHONPATH": str(_PATH.parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            target = server.stdout.readline().strip()
            run(runtime, target, frames, 1, period_ms=0, timeout_ms=30_000)
            before = psutil.Process().memory_info().rss
            run(runtime, target, frames, 3, period_ms=0, timeout_ms=30_000)
            assert psutil.Process().memory_info().rss - before < 16 * 2**20
        finally:
            server.kill()


_EDITS = st.lists(
    st.tuples(st.integers(0, 10_000), st.binary(max_size=4), st.integers(0, 4)),
    min_size=1,
    max_size=4,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=_EDITS)
def test_a_damaged_answer_is_possible_or_a_failure(
    runtime: SplitRuntime, evil: Any, edits: list[tuple[int, bytes, int]]
) -> None:
    def damage(data: bytes) -> bytes:
        for where, insert, cut in edits:
            at = where % (len(data) + 1)
            data = data[:at] + insert + data[at + cut :]
        return data

    evil.mode, evil.damage = "honest", damage
    payload = np.zeros((1, *runtime.wire_shape(4)), np.uint8)
    reasons: list[str] = []
    try:
        with MecClient(evil.target, runtime.bundle.hash) as client:
            reply = client.infer(payload, 5, 4, timeout_ms=30_000)
    except ExchangeFailed as error:
        reasons.append(error.reason)
    finally:
        evil.damage = None
    if reasons:
        assert reasons == ["bad answer"]
        return
    assert reply.prediction >= 0
    assert 0 <= reply.confidence <= 1
    assert 0 <= reply.server_ms + reply.server_queue_ms <= reply.total_ms + 1
    assert 0 <= reply.server_wait_ms <= 600_000
    assert 0 <= reply.queue_length <= 1_000_000
    assert 0 <= reply.transfer_ms <= reply.total_ms
