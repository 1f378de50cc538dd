"""The device loop with the real network, a real server process and real sockets."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sockets import Relay

from cnn.bundle import Bundle
from cnn.common.errors import ConfigError
from cnn.frame_codec import FrameCodec, FrameEncoding, decode_frame
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED
from testbed.device.device_loop import Device, DeviceConfig
from testbed.device.frame_record import tail_overlap_ms
from testbed.device.frame_sources import CameraFrame, open_frames
from testbed.meters.meter import NoMeter
from testbed.meters.power import ModelMeter, power_profile
from testbed.policy.decision_points import START, decision_points
from testbed.policy.observer import Observer
from testbed.policy.policies import RandomPolicy, StaticPolicy
from testbed.policy.task_settings import Settings
from testbed.records.measurement import Measurement
from testbed.records.record_file import read_records
from testbed.server.server_process import ServerProcess
from testbed.wire.client import ExchangeFailed, MecClient, Reply
from testbed.wire.protocol import ENCODING_OVERHEAD_BYTES, WIRE_OVERHEAD_BYTES
from testbed.wire.requests import build_request

pair = SHIPPED.action
POINTS = decision_points(SHIPPED)

pytestmark = pytest.mark.slow(40)

SETTINGS = Settings(radio_5g=True, accuracy_floor=0.9, delay_share=0.5, full_local_ms=10)


@pytest.fixture(scope="module")
def frames(bundle: Bundle) -> list[CameraFrame]:
    return list(open_frames("render", bundle.config.input_size, seed=1, n=60))


def make_device(
    runtime: SplitRuntime, client: object, policy: object, **settings: float | str
) -> Device:
    return Device(
        runtime,
        client,  # type: ignore[arg-type]
        policy,  # type: ignore[arg-type]
        Observer(SETTINGS),
        ModelMeter(power_profile("jetson-nano+5g-nsa-lowband")),
        DeviceConfig(**settings),  # type: ignore[arg-type]
    )


class Sequence:
    """A policy that plays a list of actions."""

    name = "sequence"
    space = POINTS.frame

    def __init__(self, actions: Iterable[int]) -> None:
        self._actions = list(actions)

    def reset(self) -> None:
        self._next = iter(self._actions)

    def decide(self, observation: np.ndarray, point: int = START) -> int:
        assert observation.dtype == np.float32
        return next(self._next)

    def decide_batch(self, observations: np.ndarray, points: Any = None) -> np.ndarray:
        raise NotImplementedError


def test_every_action_answers_what_the_network_says(
    runtime: SplitRuntime, server: ServerProcess, bundle: Bundle, frames: list[CameraFrame]
) -> None:
    order = np.random.default_rng(0).permutation(SHIPPED.n_actions)
    with MecClient(server.target, bundle.hash) as client:
        client.connect(10)
        unit = make_device(runtime, client, Sequence(order), period_ms=0, timeout_ms=5000)
        rows = list(unit.run(frames[: SHIPPED.n_actions]))
    assert [row.action for row in rows] == list(order)
    assert {row.status for row in rows} == {"ok"}
    for row, frame in zip(rows, frames, strict=False):
        action = SHIPPED.actions[row.action]
        prediction, confidence = runtime.act(frame.image, action)
        assert row.prediction == prediction
        assert row.confidence == pytest.approx(confidence, abs=1e-3)
        assert row.uplink_bytes == bundle.config.payload_bytes(action.exit, action.split)
        assert (row.transfer_ms is None) == action.is_local
        assert (row.encode_ms is None) == (action.is_local or action.split == 0)
        parts = [row.head_ms, row.encode_ms, row.transfer_ms, row.server_queue_ms, row.server_ms]
        assert row.delay_ms >= sum(p for p in parts if p is not None)


@pytest.mark.parametrize("encoding", ["webp", "jpeg:75"])
def test_an_encoded_frame_is_answered_as_its_decoded_self(
    runtime: SplitRuntime,
    server: ServerProcess,
    bundle: Bundle,
    frames: list[CameraFrame],
    encoding: str,
) -> None:
    chosen = FrameEncoding.parse(encoding)
    noise = np.random.default_rng(0).integers(0, 256, frames[0].image.shape, np.uint8)
    shown = [*frames[:8], dataclasses.replace(frames[8], image=noise)]
    with MecClient(server.target, bundle.hash) as client:
        client.connect(10)
        unit = make_device(
            runtime,
            client,
            StaticPolicy(pair(3, 0)),
            period_ms=0,
            timeout_ms=5000,
            frame_encoding=encoding,
        )
        rows = list(unit.run(shown))
    assert {row.status for row in rows} == {"ok"}
    for row, frame in zip(rows, shown, strict=True):
        data = chosen.encode(frame.image)
        raw = len(data) >= frame.image.nbytes  # what does not shrink goes as it is
        seen = frame.image if raw else decode_frame(data, chosen.codec, len(frame.image))
        prediction, confidence = runtime.act(seen, pair(3, 0))
        assert row.prediction == prediction
        assert row.confidence == pytest.approx(confidence, abs=1e-3)
        assert row.uplink_bytes == min(len(data), frame.image.nbytes)
        assert row.encode_ms is not None
        assert row.encode_ms > 0
    assert sum(row.uplink_bytes for row in rows[:8]) < 8 * 0.9 * noise.nbytes


def test_an_encoding_costs_the_stated_bytes_beside_the_payload(bundle: Bundle) -> None:
    plain = build_request(bundle.hash, 3, 0, (1, 48, 48, 3)).ByteSize()
    for codec in ("webp", "jpeg"):
        encoded = build_request(bundle.hash, 3, 0, (1500,), codec).ByteSize()  # type: ignore[arg-type]
        assert encoded - plain == ENCODING_OVERHEAD_BYTES


def test_energy_follows_from_times_and_bytes(
    runtime: SplitRuntime, server: ServerProcess, bundle: Bundle, frames: list[CameraFrame]
) -> None:
    with MecClient(server.target, bundle.hash) as client:
        client.connect(10)
        unit = make_device(runtime, client, StaticPolicy(pair(5, 0)), timeout_ms=5000)
        rows = list(unit.run(frames[:8]))

    def waited(row: Measurement) -> float:
        assert row.transfer_ms is not None
        assert row.server_ms is not None
        assert row.server_queue_ms is not None
        return row.transfer_ms + row.server_ms + row.server_queue_ms

    def beside_ms(row: Measurement) -> float:
        assert row.idle_mj is not None
        return abs(row.idle_mj / 2.030 - waited(row))

    # On a busy machine the device may lose the processor between two readings of its clock.
    row = min(rows, key=beside_ms)
    waited_ms = waited(row)
    # Jetson Nano: 3.2 W busy, 2.03 W idle; 5G NSA low band: 797 mW, 32.2 nJ/bit.
    assert row.idle_mj == pytest.approx(2.030 * waited_ms, rel=0.05)
    bits = 8 * (row.uplink_bytes + WIRE_OVERHEAD_BYTES)
    assert row.radio_mj == pytest.approx(0.797 * waited_ms + 32.2e-6 * bits, rel=0.05)
    assert row.compute_mj is not None
    assert row.compute_mj >= 3.2 * row.head_ms
    total = row.compute_mj + row.idle_mj + row.radio_mj  # type: ignore[operator]
    assert row.energy_mj == pytest.approx(total)


def test_without_a_server_every_frame_is_answered_from_the_block_where_it_stands(
    runtime: SplitRuntime, frames: list[CameraFrame]
) -> None:
    unit = make_device(runtime, None, RandomPolicy(3), period_ms=0)
    rows = list(unit.run(frames))
    assert len(rows) == len(frames)
    for row, frame in zip(rows, frames, strict=True):
        action = SHIPPED.actions[row.action]
        assert (row.prediction, row.status) == (
            runtime.local(frame.image, action.exit)[0],
            "ok" if action.is_local else "fallback",
        )
        assert (row.fallback_ms is None) == action.is_local


class CountingRuntime(SplitRuntime):
    """Says which segments ran."""

    ran: list[str]

    def _run(self, name: str, x: object) -> object:
        self.ran.append(name)
        return super()._run(name, x)  # type: ignore[arg-type]


def test_a_fallback_recomputes_nothing(bundle: Bundle, frames: list[CameraFrame]) -> None:
    runtime = CountingRuntime(bundle)
    runtime.ran = []
    closed = MecClient("127.0.0.1:1", bundle.hash)  # nothing listens on port 1
    unit = make_device(runtime, closed, StaticPolicy(pair(4, 2)), period_ms=0)
    (row,) = unit.run(frames[:1])
    closed.close()
    assert (row.status, row.reason) == ("fallback", "unavailable")
    assert runtime.ran == ["block1", "block2", "enc2", "block3", "block4", "exit4"]


def test_a_server_killed_and_restarted_loses_no_frame(
    runtime: SplitRuntime, bundle: Bundle, frames: list[CameraFrame]
) -> None:
    """The fault test of issue 4: real processes, kill -9, restart on the same port."""
    server = ServerProcess().start()

    def stream() -> Iterator[CameraFrame]:
        for i, frame in enumerate(itertools.islice(itertools.cycle(frames), 120)):
            if i == 40:
                server.kill()
            if i == 60:
                server.start()
            yield frame

    offloading = [a.index for a in SHIPPED.actions if not a.is_local]
    try:
        with MecClient(server.target, bundle.hash) as client:
            client.connect(10)
            unit = make_device(
                runtime,
                client,
                RandomPolicy(5, offloading),
                period_ms=40,
                timeout_ms=300,
                max_queue_ms=60_000,
            )
            rows = list(unit.run(stream()))
    finally:
        server.stop()
    assert len(rows) == 120
    assert all(row.prediction is not None for row in rows)
    status = [row.status for row in rows]
    assert set(status[:40]) == {"ok"}
    assert set(status[41:60]) == {"fallback"}
    assert "ok" in status[60:]
    for row, frame in zip(rows, itertools.cycle(frames), strict=False):
        action = SHIPPED.actions[row.action]
        told = action if row.status == "ok" else pair(action.exit, action.exit)
        assert row.prediction == runtime.act(frame.image, told)[0]


class Unreliable:
    """An exchanger that fails while `down`, at once."""

    def __init__(self) -> None:
        self.down = True
        self.sent = self.probed = 0

    def infer(
        self,
        payload: np.ndarray,
        exit: int,
        split: int,
        timeout_ms: float,
        encoding: FrameCodec = "raw",
    ) -> Reply:
        self.sent += 1
        if self.down:
            raise ExchangeFailed("unavailable", "down", 0.1)
        return Reply(1, 0.5, 0.0, 1.0, 0.0, 0, payload.nbytes, payload.nbytes, 90, 1.0, 2.0)

    def probe(self, timeout_ms: float, padding_bytes: int = 0) -> float:
        self.probed += 1
        if self.down:
            raise ExchangeFailed("unavailable", "down", 0.1)
        return 1.0


def test_the_breaker_stays_local_until_an_inference_is_answered(
    runtime: SplitRuntime, frames: list[CameraFrame]
) -> None:
    link = Unreliable()
    unit = make_device(
        runtime,
        link,
        StaticPolicy(pair(2, 1)),
        period_ms=20,
        breaker_failures=3,
        breaker_backoff_ms=60,
        max_queue_ms=1000,
    )
    rows = []
    for row in unit.run(frames[:40]):
        rows.append(row)
        if len(rows) == 20:
            link.down = False
            sent_before = link.sent
    reasons = [row.reason for row in rows]
    assert reasons[:3] == ["unavailable"] * 3
    assert set(reasons[3:20]) == {"breaker open"}
    assert sent_before >= 4  # what failed is tried again
    assert link.probed == 0  # a sign of life is no answer
    assert rows[-1].status == "ok"


class Slow(Unreliable):
    """Answers after 50 ms."""

    def infer(
        self,
        payload: np.ndarray,
        exit: int,
        split: int,
        timeout_ms: float,
        encoding: FrameCodec = "raw",
    ) -> Reply:
        time.sleep(0.05)
        self.down = False
        return super().infer(payload, exit, split, timeout_ms)


def test_a_device_that_is_too_slow_skips_and_counts(
    runtime: SplitRuntime, frames: list[CameraFrame]
) -> None:
    unit = make_device(runtime, Slow(), StaticPolicy(pair(2, 1)), period_ms=20, max_queue_ms=60)
    rows = list(unit.run(frames[:30]))
    skipped = [row for row in rows if row.status == "skipped"]
    assert len(rows) == 30
    assert 5 < len(skipped) < 25
    for row in skipped:
        assert row.prediction is None
        assert row.correct is False
        assert row.queue_ms > 60
        assert row.delay_ms == pytest.approx(row.queue_ms)
        assert row.compute_mj == 0
    # Sequential: each frame starts when the one before it is done, or when it is captured.
    free_s = 0.0
    for row in rows:
        start_s = row.captured_s + row.queue_ms / 1e3
        assert start_s >= free_s - 1e-6
        free_s = row.captured_s + row.delay_ms / 1e3


def test_a_frame_is_measured_only_once_the_tail_is_known(
    runtime: SplitRuntime, frames: list[CameraFrame]
) -> None:
    """With a tail longer than the period the modem never sleeps between frames."""
    unit = Device(
        runtime,
        Slow(),
        Sequence([pair(1, 0).index, pair(1, 1).index, pair(1, 1).index]),
        Observer(SETTINGS),
        ModelMeter(power_profile("jetson-nano+5g-nsa-lowband-tail")),
        DeviceConfig(period_ms=100, timeout_ms=1000),
    )
    first, second, third = unit.run(frames[:3])
    start_s = [row.captured_s + row.queue_ms / 1e3 for row in (first, second, third)]
    assert first.radio_mj is not None
    assert second.radio_mj == pytest.approx(797 * (start_s[2] - start_s[1]), rel=0.05)
    assert third.radio_mj == pytest.approx(797 * 0.1, rel=0.05)
    # Radio is on from the first byte on, for the whole rest of the first window.
    on_s = start_s[1] - start_s[0] - first.head_ms / 1e3
    assert first.radio_mj == pytest.approx(797 * on_s, rel=0.1)


def test_tail_overlap_against_brute_force() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        start, end = 0.0, 1.0
        previous = -rng.uniform(0, 0.5)
        cuts = np.sort(rng.uniform(0, 1, 2 * rng.integers(0, 3)))
        exchanges = [(a, b) for a, b in cuts.reshape(-1, 2).tolist()]
        tail_s = rng.uniform(0, 0.6)
        t = np.linspace(start, end, 20_001)
        active = np.zeros_like(t, bool)
        for a, b in exchanges:
            active |= (t >= a) & (t <= b)
        last = np.full_like(t, previous)
        for _, b in exchanges:
            last = np.where(t >= b, b, last)
        in_tail = ~active & (t - last <= tail_s)
        got = tail_overlap_ms(start, end, exchanges, previous, tail_s * 1e3)
        assert got == pytest.approx(in_tail.mean() * 1e3, abs=0.5)


def test_no_exchange_ever_means_no_tail() -> None:
    assert tail_overlap_ms(0.0, 1.0, [], -np.inf, 10_000) == 0


def test_a_meter_that_reads_nothing_says_none(
    runtime: SplitRuntime, frames: list[CameraFrame]
) -> None:
    unit = Device(
        runtime,
        None,
        StaticPolicy(pair(1, 1)),
        Observer(SETTINGS),
        NoMeter(),
        DeviceConfig(),
    )
    (row,) = unit.run(frames[:1])
    assert (row.energy_mj, row.compute_mj, row.energy_source) == (None, None, "none")


def test_wire_overhead_is_what_a_counting_relay_sees(
    server: ServerProcess, bundle: Bundle, runtime: SplitRuntime
) -> None:
    with Relay(server.port) as relay, MecClient(relay.target, bundle.hash) as client:
        client.connect(10)
        for split in (0, 2, 4):
            payload = np.zeros((1, *runtime.wire_shape(split)), np.uint8)
            client.infer(payload, 5, split, 5000)
            time.sleep(0.1)
            before = len(relay.sent)
            for _ in range(10):
                client.infer(payload, 5, split, 5000)
            time.sleep(0.1)
            overhead = (len(relay.sent) - before) / 10 - payload.nbytes
            assert overhead == pytest.approx(WIRE_OVERHEAD_BYTES, abs=12)


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout_ms": 0},
        {"period_ms": -1},
        {"breaker_failures": -1},
        {"frame_encoding": "gif"},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float | str]) -> None:
    with pytest.raises(ConfigError):
        DeviceConfig(**settings)  # type: ignore[arg-type]


def run_cli(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed", "device", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        **more,  # type: ignore[call-overload]
    )


def test_the_command_runs_and_records(server: ServerProcess, tmp_path: Path) -> None:
    out = tmp_path / "run.parquet"
    done = run_cli(
        *("--server", server.target, "--action", "e5s1", "--n-frames", "12", "--fps", "50"),
        *("--pace", "shipped", "--full-local-ms", "15"),
        *("--timeout-ms", "5000", "--max-queue-ms", "5000"),
        *("--out", str(out), "--json"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["frames"] == 12
    assert result["status"] == {"ok": 12}
    assert result["actions"] == {"e5s1": 12}
    records = read_records(out)
    assert len(records) == 12
    assert records.source["emulation"].startswith("paced as ")
    assert "full local 15 ms" in records.source["emulation"]
    assert result["pace"]["sections"] == records.source["pace_sections"] == 24  # blocks, encoder
    assert result["pace"]["valid"] == (result["pace"]["late_share"] <= 0.02)
    assert records.source["bundle_hash"]
    assert np.mean(records.numbers("delay_ms")) == pytest.approx(result["delay_ms"])


def test_an_instruments_log_is_aligned_with_a_run(tmp_path: Path) -> None:
    out, log, aligned = tmp_path / "r.parquet", tmp_path / "log.csv", tmp_path / "a.parquet"
    began = time.time()
    done = run_cli("--local-only", "--action", "e2s2", "--n-frames", "8", "--out", str(out))
    assert done.returncode == 0, done.stderr
    # An instrument that shows 2 W all the time, its clock an hour behind.
    lines = [f"{began - 3600 + i / 10},2.0" for i in range(int((time.time() - began) * 10) + 20)]
    log.write_text("time_s,power_w\n" + "\n".join(lines) + "\n")
    command = [sys.executable, "-m", "testbed", "align", "--records", str(out), "--log", str(log)]
    command += ["--out", str(aligned)]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert failed.returncode == 2
    assert "--offset-s" in failed.stderr
    assert not aligned.exists()
    subprocess.run([*command, "--offset-s", "3600"], check=True, timeout=60, capture_output=True)
    energies = read_records(aligned).numbers("energy_mj")
    # 10 frames a second: 100 ms at 2 W, but for the last, whose end nobody knows.
    np.testing.assert_allclose(energies[:-1], 200, rtol=0.2)
    assert np.isnan(energies[-1])


def test_sigterm_ends_cleanly_with_what_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "run.parquet"
    program = (
        "from testbed.records import record_file; record_file.ROWS_PER_GROUP = 32;"
        "from cnn.common.console import run_app; from testbed.cli.app import app; run_app(app)"
    )
    command = [sys.executable, "-c", program, "device", "--local-only", "--action", "e1s1"]
    process = subprocess.Popen(
        [*command, "--n-frames", "800", "--fps", "25", "--out", str(out), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
    )
    until = time.monotonic() + 90
    # The first row group (here of 32 rows) is written while the device runs, under another name.
    while time.monotonic() < until:
        if any(part.stat().st_size > 4096 for part in tmp_path.glob(".run.*.part.parquet")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    frames = json.loads(stdout.splitlines()[-1])["frames"]
    assert frames >= 32
    assert len(read_records(out)) == frames
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--local-only", "--action", "e5s9"), "split"),
        (("--local-only",), "--policy"),
        (("--action", "e1s1"), "--local-only"),
        (("--local-only", "--action", "e1s1", "--frames", "film:x"), "frame source"),
        (("--local-only", "--action", "e1s1", "--frames", "folder:/nowhere"), "/nowhere"),
        (("--local-only", "--action", "e1s1", "--meter", "scales"), "meter"),
        (("--local-only", "--action", "e1s1", "--bundle", "/nowhere"), "bundle"),
        (("--server", "127.0.0.1:1", "--action", "e1s0"), "127.0.0.1:1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    out = tmp_path / "run.parquet"
    done = run_cli(*arguments, "--n-frames", "1", "--out", str(out))
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DeviceConfig().period_ms = 2  # type: ignore[misc]
