"""Faults on real processes and sockets: no wrong answer, bounded memory, recovery."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from sockets import Relay, free_port
from waiting import wait_until

from cnn.bundle import load_bundle
from cnn.runtime import SplitRuntime
from testbed.wire.client import ExchangeFailed, MecClient
from testbed.wire.protocol import parse_response
from testbed.wire.requests import build_request

pytestmark = pytest.mark.slow(30)

ROOT = Path(__file__).parents[3]
BUNDLE = load_bundle()
RUNTIME = SplitRuntime(BUNDLE)
SERVE = (
    "import typer; from cnn.common.console import run_app;"
    "from testbed.cli.serve_command import serve;"
    "app = typer.Typer(); app.command()(serve); run_app(app)"
)
MEMORY_BOUND = 64 * 2**20
"""What misbehaving peers may add to a server's resident memory, bytes."""


@dataclass
class ServerProcess:
    """`sliproad testbed serve` in a process of its own."""

    process: subprocess.Popen[str]
    port: int
    metrics_port: int

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def rss(self) -> int:
        size: int = psutil.Process(self.process.pid).memory_info().rss
        return size

    def frames_computed(self) -> float:
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=20) as page:
            text = page.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "sliproad_frames_total"
        )


Start = Callable[..., ServerProcess]
TRIES = 500
"""Exchanges, 20 ms or more apart, within which a server that is back must answer one."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers; whatever still runs at the end of the test is killed."""
    running: list[ServerProcess] = []

    def launch(*options: str, port: int = 0) -> ServerProcess:
        port_file = tmp_path / f"port-{len(running)}"
        metrics_port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, "--port", str(port), "--port-file", str(port_file),
             "--metrics-port", str(metrics_port), *options],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith(f"serving {BUNDLE.hash[:12]} on 127.0.0.1:"), line
        server = ServerProcess(process, int(port_file.read_text()), metrics_port)
        running.append(server)
        return server

    yield launch
    for server in running:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGCONT)
            server.process.kill()
        server.process.communicate()


def payload(split: int, seed: int = 0) -> NDArray[np.uint8]:
    size = BUNDLE.config.input_size
    frames = np.random.default_rng(seed).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    return RUNTIME.payload(RUNTIME.forward(frames, 1, split), split)


def check_answers(target: str, n: int = 5) -> None:
    """A well-behaved device is served, and served right."""
    with MecClient(target, BUNDLE.hash) as client:
        client.connect(30)
        for seed in range(n):
            data = payload(4, seed)
            reply = client.infer(data, 5, 4, timeout_ms=20_000)
            assert reply.prediction == RUNTIME.tail(data, 5, 4)[0][0]


def test_a_killed_and_restarted_server_in_mid_stream(start: Start) -> None:
    server = start()
    answered, failed = 0, 0
    reasons: set[str] = set()
    data = [payload(4, seed) for seed in range(10)]
    expected = [RUNTIME.tail(d, 5, 4)[0][0] for d in data]
    with MecClient(server.target, BUNDLE.hash) as client:
        client.connect(30)

        def exchange(k: int) -> bool:
            try:
                reply = client.infer(data[k % 10], 5, 4, timeout_ms=2_000)
            except ExchangeFailed as error:
                reasons.add(error.reason)
                time.sleep(0.02)
                return False
            assert reply.prediction == expected[k % 10]
            return True

        for k in range(20):
            answered += exchange(k)
        killer = threading.Timer(0.05, server.process.kill)
        killer.start()
        wait_until(lambda: not exchange(k))
        assert answered == 20
        for _ in range(10):
            failed += not exchange(k)
        assert failed == 10  # a dead server never answers
        start(port=server.port)
        assert any(exchange(k) for _ in range(TRIES))
        for k in range(20):
            assert exchange(k)
    assert reasons <= {"unavailable", "timeout"}


def test_recovery_after_the_link_was_dead_for_five_seconds(start: Start) -> None:
    server = start()
    data = payload(4)
    expected = RUNTIME.tail(data, 5, 4)[0][0]
    with Relay(server.port) as relay, MecClient(relay.target, BUNDLE.hash) as client:
        client.connect(30)
        assert client.infer(data, 5, 4, timeout_ms=5_000).prediction == expected
        relay.open.clear()  # silence: no reset, nothing arrives
        dead_until = time.monotonic() + 5
        failures = 0
        while time.monotonic() < dead_until:
            with pytest.raises(ExchangeFailed):
                client.infer(data, 5, 4, timeout_ms=100)
            failures += 1
            time.sleep(0.02)
        assert failures >= 10
        relay.open.set()
        for _ in range(TRIES):
            try:
                assert client.infer(data, 5, 4, timeout_ms=500).prediction == expected
                break
            except ExchangeFailed:
                time.sleep(0.02)
        else:
            raise AssertionError("the link is back, and no exchange succeeds")


def test_garbage_on_the_port_does_no_harm(start: Start) -> None:
    server = start()
    check_answers(server.target)
    before = server.rss
    rng = np.random.default_rng(0)
    greetings = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),  # start of TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff\xff\xff\x00" + bytes(100),  # 16 MiB frame
        *(rng.bytes(int(n)) for n in rng.integers(1, 5000, 60)),
    ]
    for greeting in greetings:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as end:
            end.sendall(greeting)
    check_answers(server.target)
    assert server.rss - before < MEMORY_BOUND


def test_a_stream_cut_or_corrupted_anywhere_does_no_harm(start: Start) -> None:
    server = start()
    with Relay(server.port) as relay, MecClient(relay.target, BUNDLE.hash) as client:
        client.connect(30)
        client.infer(payload(4), 5, 4, timeout_ms=20_000)
    stream = bytes(relay.sent)
    assert len(stream) > 432
    before = server.rss
    rng = np.random.default_rng(1)
    for cut in range(0, len(stream), 7):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as end:
            end.sendall(stream[:cut])
    for _ in range(150):
        broken = bytearray(stream)
        for at in rng.integers(24, len(stream), 3):
            broken[at] ^= int(rng.integers(1, 256))
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as end:
            end.sendall(broken)
    check_answers(server.target)
    assert server.process.poll() is None
    assert server.rss - before < MEMORY_BOUND


def test_oversize_messages_are_refused_and_not_stored(start: Start) -> None:
    server = start()
    check_answers(server.target)
    before = server.rss
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(8):
            with pytest.raises(grpc.RpcError) as caught:
                call(bytes(8 * 2**20), timeout=20)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    check_answers(server.target)
    assert server.rss - before < MEMORY_BOUND


def test_expired_requests_are_not_computed(start: Start) -> None:
    server = start()
    check_answers(server.target, n=3)
    with MecClient(server.target, BUNDLE.hash) as client:
        client.connect(30)
        before = server.frames_computed()
        server.process.send_signal(signal.SIGSTOP)  # a server too busy to look at its socket
        # Its threads answer until one of them has taken the signal: wait for that.
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED)
        for _ in range(5):
            with pytest.raises(ExchangeFailed) as caught:
                client.infer(payload(4), 5, 4, timeout_ms=100)
            assert caught.value.reason == "timeout"
        assert connections_to(server.port)
    # A call ends here before gRPC has written its cancellation: closed, all are at the server.
    wait_until(lambda: not connections_to(server.port))
    server.process.send_signal(signal.SIGCONT)
    with MecClient(server.target, BUNDLE.hash) as client:
        client.connect(30)
        assert server.frames_computed() == before
        client.infer(payload(4), 5, 4, timeout_ms=20_000)
        assert server.frames_computed() == before + 1


def connections_to(port: int) -> list[Any]:
    """This process's open TCP connections to a port."""
    mine = psutil.Process().net_connections("tcp")
    return [connection for connection in mine if connection.raddr[1:] == (port,)]


HOARDER = """
import os, signal, sys, grpc
message = open(sys.argv[2], "rb").read()
channels = [grpc.insecure_channel(sys.argv[1], [("grpc.use_local_subchannel_pool", 1)])
            for _ in range(8)]
calls = []
for k in range(600):
    call = channels[k % 8].unary_unary("/inference.GRPCInferenceService/ModelInfer")
    calls.append(call.future(message, timeout=600))
    if k == 300:
        calls[0].exception()  # it is over: answered, or refused by a full queue
print("sent", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_client_that_never_reads(start: Start, tmp_path: Path) -> None:
    server = start()
    check_answers(server.target)
    before = server.rss
    request = build_request(BUNDLE.hash, 5, 4, (1, *RUNTIME.wire_shape(4)))
    request.raw_input_contents[0] = payload(4).tobytes()
    message = tmp_path / "message"
    message.write_bytes(request.SerializeToString())
    hoarders = [
        subprocess.Popen(
            [sys.executable, "-c", HOARDER, server.target, str(message)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for hoarder in hoarders:
            assert hoarder.stdout is not None
            assert hoarder.stdout.readline() == "sent\n"
        check_answers_despite_refusals(server.target)
        assert server.rss - before < MEMORY_BOUND
    finally:
        for hoarder in hoarders:
            hoarder.kill()
            hoarder.communicate()
    check_answers(server.target)


def check_answers_despite_refusals(target: str, n: int = 5) -> None:
    """Served right within 30 s, where a full queue may turn us away meanwhile."""
    until = time.monotonic() + 30
    good = 0
    with MecClient(target, BUNDLE.hash) as client:
        while good < n:
            assert time.monotonic() < until
            data = payload(4, good)
            try:
                reply = client.infer(data, 5, 4, timeout_ms=20_000)
            except ExchangeFailed as error:
                if error.reason != "refused":
                    raise
                time.sleep(0.05)
                continue
            assert reply.prediction == RUNTIME.tail(data, 5, 4)[0][0]
            good += 1


def test_a_peer_that_floods_pings_and_never_reads(start: Start) -> None:
    server = start()
    check_answers(server.target)
    before = server.rss
    ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + bytes(8)
    with socket.create_connection(("127.0.0.1", server.port), timeout=2) as end:
        end.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        try:
            for _ in range(200):
                end.sendall(ping * 1000)
        except OSError:
            pass  # cut off, or no longer read from: both are bounds
        check_answers(server.target)
    assert server.rss - before < MEMORY_BOUND


def test_half_open_calls_do_not_take_the_server_away(start: Start) -> None:
    """Connections that open a call and never send its message, as many as threads."""
    server = start("--queue", "8")
    check_answers(server.target)
    release = threading.Event()

    def never() -> Iterator[bytes]:
        release.wait(60)
        yield from ()

    with grpc.insecure_channel(server.target) as channel:
        calls = [
            channel.stream_unary("/inference.GRPCInferenceService/ModelInfer").future(
                never(), timeout=3
            )
            for _ in range(100)
        ]
        codes = {call.code() for call in calls}
        release.set()
    assert codes <= {
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAVAILABLE,  # streams beyond the connection's bound: REFUSED_STREAM
    }
    check_answers(server.target)  # all places are free again


def test_64_clients_at_once_are_all_answered_right(start: Start) -> None:
    server = start()
    data = [payload(split, split) for split in range(5)]
    expected = [int(RUNTIME.tail(data[s], 5, s)[0][0]) for s in range(5)]
    wrong: list[object] = []
    done: list[int] = []
    together = threading.Barrier(64)

    def device(k: int) -> None:
        with MecClient(server.target, BUNDLE.hash) as client:
            client.connect(60)
            together.wait(60)
            for n in range(5):
                split = (k + n) % 5
                try:
                    reply = client.infer(data[split], 5, split, timeout_ms=60_000)
                except ExchangeFailed as error:
                    wrong.append(str(error))
                    return
                if reply.prediction != expected[split]:
                    wrong.append((split, reply))
            done.append(k)

    threads = [threading.Thread(target=device, args=(k,)) for k in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    assert sorted(done) == list(range(64))
    assert server.frames_computed() == 320


def test_sigterm_finishes_accepted_work_and_exits_with_0(start: Start) -> None:
    server = start("--max-batch", "1", "--drain-s", "60")
    data = payload(1)
    expected = RUNTIME.tail(data, 5, 1)[0].tolist()
    request = build_request(BUNDLE.hash, 5, 1, data.shape)
    request.raw_input_contents[0] = data.tobytes()
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        calls = [call.future(request.SerializeToString(), timeout=60) for _ in range(40)]
        calls[0].result()
        server.process.terminate()
        codes = [call.code() for call in calls]
        answers = [
            parse_response(call.result(), 1)
            for call, code in zip(calls, codes, strict=True)
            if code is grpc.StatusCode.OK
        ]
    assert set(codes) <= {
        grpc.StatusCode.OK,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
    }
    assert all(answer.predictions.tolist() == expected for answer in answers)
    assert server.process.wait(30) == 0
    assert server.process.stderr is not None
    assert server.process.stderr.read() == "drained\n"


def test_a_taken_port_exits_with_2_and_one_line(start: Start) -> None:
    server = start()
    done = subprocess.run(
        [sys.executable, "-c", SERVE, "--port", str(server.port)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "in use" in done.stderr


def test_a_missing_bundle_exits_with_2_and_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVE, "--port", "0", "--bundle", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_certificate_that_has_expired_is_named_at_start(
    tmp_path: Path, new_pki: Callable[..., Any]
) -> None:
    pki, now, day = new_pki(tmp_path), datetime.now(UTC), timedelta(days=1)
    cert, key = pki.make("old", now - 2 * day, now - day)
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, "--port", "0", "--tls-cert", cert, "--tls-key", key],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        first, second = process.stderr.readline(), process.stderr.readline()
        process.kill()
    assert first.startswith(f"warning: TLS certificate {cert}: expired on")
    assert second.startswith("serving ")


@pytest.mark.parametrize("cert", ["absent.pem", "junk.pem"])
def test_unusable_tls_files_exit_with_2_and_one_line(tmp_path: Path, cert: str) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    options = ["--tls-cert", str(tmp_path / cert), "--tls-key", str(tmp_path / "junk.pem")]
    done = subprocess.run(
        [sys.executable, "-c", SERVE, "--port", "0", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
