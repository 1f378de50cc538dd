"""The user-space link over real sockets, and its schedule against step-by-step integration.

Real-time assertions are one-sided: a busy machine makes bytes later, never earlier.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cnn.common.errors import ConfigError, DataError, RemoteError, SliproadError
from testbed.link.emulator import LinkEmulator
from testbed.link.link_process import LinkProcess
from testbed.link.transfer import LinkDelivery, LinkRecord
from testbed.traces.trace import Trace, constant_trace, save_trace

pytestmark = pytest.mark.slow(15)

RST = struct.pack("ii", 1, 0)


def make(rates: list[float], rtt_ms: float = 10.0, period_s: float = 0.1) -> Trace:
    up = np.array(rates, dtype=np.float64)
    return Trace(up, np.full(len(up), rtt_ms), period_s, "test", "5G", "generated")


class EchoServer:
    """Sends back what it gets; remembers how many bytes that was."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.got = 0
        self.peers: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.listener.accept()
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.peers.append(peer)
                threading.Thread(target=self._echo, args=(peer,), daemon=True).start()

    def _echo(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := peer.recv(1 << 16):
                self.got += len(data)
                peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.listener.close()
        for peer in self.peers:
            peer.close()


@pytest.fixture
def server() -> Iterator[EchoServer]:
    echo = EchoServer()
    yield echo
    echo.close()


def connect(port: int) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", port), timeout=20)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


def read(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = peer.recv(count - len(data))
        if not more:
            break
        data += more
    return data


# The schedule: no sockets.


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 3.0, 20.0]), min_size=1, max_size=6).filter(max),
    st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 5000)), min_size=1, max_size=8),
)
@example([3.0, 0.5], [(0.2890625, 4251)])  # falls to a sixth while a packet is served
def test_uplink_is_one_queue_at_the_traces_capacity(
    rates: list[float], sends: list[tuple[float, int]]
) -> None:
    trace = make(rates, rtt_ms=10.0)
    schedule = LinkDelivery(trace)
    step_s = 1e-4
    entered, bytes_in, due = 0.0, [], []
    for gap_s, size in sends:
        entered += gap_s
        bytes_in.append((entered, 8.0 * size))
        due.append(schedule.uplink_due_s(entered, size))
    # Serve the same queue in small steps, each of one capacity.
    left: list[float] = []
    step = 0
    while len(left) < len(sends) and step * step_s < 300:
        now, end = step * step_s, (step + 1) * step_s
        rate = trace.uplink_mbps[int((now + end) / 2 / 0.1) % len(rates)] * 1e6
        while len(left) < len(sends) and bytes_in[len(left)][0] < end:
            at, bits = bytes_in[len(left)]
            now = max(now, at)
            if bits > rate * (end - now):
                bytes_in[len(left)] = (at, bits - rate * (end - now))
                break
            now += bits / rate if bits > 0 else 0.0
            left.append(now)
        step += 1
    # A packet may, by a rounding, end before or after an outage.
    outage_s = 0.1 * len(rates)
    for expected, got in zip(left, due, strict=True):
        near = abs(got - 0.005 - expected) <= step_s
        assert near or (0.0 in rates and abs(got - 0.005 - expected) <= outage_s + step_s)
    assert due == sorted(due)


def test_bytes_never_overtake_when_the_round_trip_falls() -> None:
    trace = Trace(np.full(2, 1e3), np.array([1000.0, 10.0]), 0.1, "t", "5G", "generated")
    schedule = LinkDelivery(trace)
    first = schedule.uplink_due_s(0.05, 100)
    second = schedule.uplink_due_s(0.15, 100)
    assert first == pytest.approx(0.55, abs=1e-3)
    assert second == first


def test_downlink_capacity() -> None:
    schedule = LinkDelivery(make([10.0]), downlink_mbps=0.8)
    assert schedule.downlink_due_s(1.0, 1000) == pytest.approx(1.015)
    assert schedule.downlink_due_s(1.0, 1000) == pytest.approx(1.025)
    assert LinkDelivery(make([10.0])).downlink_due_s(1.0, 10**6) == pytest.approx(1.005)
    with pytest.raises(ConfigError):
        LinkDelivery(make([10.0]), downlink_mbps=0.0)


def test_a_modem_connects_first_after_its_tail() -> None:
    """Activity in either direction keeps it connected; an abandoned payload does as well."""
    schedule = LinkDelivery(make([8.0], rtt_ms=0.0), tail_ms=1000.0, promotion_ms=260.0)
    entered = [0.0, 0.1, 1.2, 2.5, 5.0]
    due = [schedule.uplink_due_s(at, 1000) for at in entered[:3]]
    schedule.downlink_due_s(1.6, 1000)
    due += [schedule.uplink_due_s(at, 1000) for at in entered[3:]]
    # A thousand bytes take a millisecond. The second waits for the first's promotion.
    assert due == pytest.approx([0.261, 0.262, 1.201, 2.501, 5.261])
    plain = LinkDelivery(make([8.0], rtt_ms=0.0))
    assert [plain.uplink_due_s(at, 1000) for at in entered] == pytest.approx(
        [at + 1e-3 for at in entered]
    )


# Real sockets.


def test_bytes_arrive_unchanged_and_not_before_the_trace_allows(server: EchoServer) -> None:
    data = np.random.default_rng(0).bytes(300_000)
    with LinkEmulator(make([8.0], rtt_ms=40.0), ("127.0.0.1", server.port)) as link:
        with connect(link.port) as peer:
            begin = time.monotonic()
            threading.Thread(target=peer.sendall, args=(data,)).start()
            assert read(peer, len(data)) == data
            took_s = time.monotonic() - begin
        assert took_s >= 8 * len(data) / 8e6 + 0.040 - 0.001
        stats = link.stats()
        assert stats["uplink_bytes"] == stats["downlink_bytes"] == len(data)
        assert link.start_time is not None


def test_a_modem_that_slept_holds_the_first_bytes_only(server: EchoServer) -> None:
    """The second ones arrive long before an exchange that connects could."""
    modem = {"tail_ms": 60_000.0, "promotion_ms": 300.0}
    with (
        LinkProcess(make([20.0], 2.0), ("127.0.0.1", server.port), **modem) as link,
        connect(link.port) as peer,
    ):
        took_s = []
        for _ in range(5):
            begin = time.monotonic()
            peer.sendall(b"hello")
            assert read(peer, 5) == b"hello"
            took_s.append(time.monotonic() - begin)
    assert took_s[0] >= 0.300
    assert min(took_s[1:]) < took_s[0]


def test_outage_holds_bytes_until_it_ends(server: EchoServer) -> None:
    trace = make([0.0, 50.0], rtt_ms=2.0, period_s=0.4)
    with LinkEmulator(trace, ("127.0.0.1", server.port)) as link:
        link.start()
        assert link.start_time is not None
        with connect(link.port) as peer:
            peer.sendall(b"held")
            assert read(peer, 4) == b"held"
        arrived_s = time.monotonic() - link.start_time
        assert arrived_s >= 0.4
        assert link.state_at(link.start_time + 0.1) == (0.0, 2.0)
        assert link.state_at(link.start_time + 0.9) == (0.0, 2.0)  # the trace repeats
        assert link.state_at(link.start_time + 0.5) == (50.0, 2.0)


def test_half_close_passes_through_behind_the_bytes(server: EchoServer) -> None:
    with (
        LinkEmulator(make([20.0]), ("127.0.0.1", server.port)) as link,
        connect(link.port) as peer,
    ):
        peer.sendall(b"x" * 50_000)
        peer.shutdown(socket.SHUT_WR)
        assert read(peer, 60_000) == b"x" * 50_000
        assert peer.recv(1) == b""


def test_many_connections_share_one_radio(server: EchoServer) -> None:
    size, count, rate = 20_000, 16, 10.0
    with LinkEmulator(make([rate], rtt_ms=0.0), ("127.0.0.1", server.port)) as link:
        peers = [connect(link.port) for _ in range(count)]
        begin = time.monotonic()
        for n, peer in enumerate(peers):
            peer.sendall(bytes([n]) * size)
        for n, peer in enumerate(peers):
            assert read(peer, size) == bytes([n]) * size
        assert time.monotonic() - begin >= 8 * size * count / (rate * 1e6) - 0.001
        for peer in peers:
            peer.close()


def test_refused_upstream_closes_the_device_side_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with LinkEmulator(make([1.0]), ("127.0.0.1", port)) as link:
        with contextlib.suppress(ConnectionResetError), connect(link.port) as peer:
            assert peer.recv(1) == b""
        assert link.stats()["refused"] == 1


def test_reset_by_the_server_reaches_the_device(server: EchoServer) -> None:
    with (
        LinkEmulator(make([20.0]), ("127.0.0.1", server.port)) as link,
        connect(link.port) as peer,
    ):
        peer.sendall(b"a")
        assert read(peer, 1) == b"a"
        server.peers[0].shutdown(socket.SHUT_RD)
        server.peers[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        server.peers[0].close()
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(1) == b""


def test_backpressure_bounds_the_bytes_inside(server: EchoServer) -> None:
    trace = make([0.1, 0.0], period_s=30.0)
    limit = 32 * 1024
    with (
        LinkEmulator(trace, ("127.0.0.1", server.port), buffer_bytes=limit) as link,
        connect(link.port) as peer,
    ):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        peer.settimeout(0.5)
        with pytest.raises(TimeoutError):
            peer.sendall(bytes(10_000_000))
        assert link.stats()["uplink_bytes"] <= limit + server.got + 65536


def test_connection_that_the_server_never_reads_does_not_stop_others(server: EchoServer) -> None:
    with LinkEmulator(make([500.0], 0.0), ("127.0.0.1", server.port)) as link:
        stuck = connect(link.port)
        stuck.sendall(b"a")
        assert read(stuck, 1) == b"a"
        # It sends without reading the echo: both kernels fill up, then the link's buffers do.
        stuck.settimeout(0.3)
        with pytest.raises(TimeoutError):
            stuck.sendall(bytes(80_000_000))
        with connect(link.port) as other:
            other.sendall(b"ok")
            assert read(other, 2) == b"ok"
        stuck.close()


def test_cut_holds_and_drop_resets(server: EchoServer) -> None:
    with LinkEmulator(make([50.0], 2.0), ("127.0.0.1", server.port)) as link:
        peer = connect(link.port)
        peer.sendall(b"a")
        assert read(peer, 1) == b"a"
        begin = time.monotonic()
        link.cut(0.4)
        time.sleep(0.05)
        assert link.state_at(time.monotonic())[0] == 0.0
        peer.sendall(b"b")
        assert read(peer, 1) == b"b"
        assert time.monotonic() - begin >= 0.4
        link.cut(0.3, drop=True)
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(1) == b""
        peer.close()
        with pytest.raises(ConfigError):
            link.cut(-1.0)
        assert len(link.record().cuts) == 2
        time.sleep(0.4)
        with connect(link.port) as again:
            again.sendall(b"c")
            assert read(again, 1) == b"c"


def test_errors_say_what_to_mend(server: EchoServer) -> None:
    trace = make([1.0])
    with pytest.raises(SliproadError, match="in use"):
        LinkEmulator(trace, ("127.0.0.1", 9), listen=("127.0.0.1", server.port))
    with pytest.raises(RemoteError, match="correct --server"):
        LinkEmulator(trace, ("no-such-host.invalid", 9))
    with pytest.raises(ConfigError):
        LinkEmulator(trace, ("127.0.0.1", 9), start_offset_s=-1.0)


# Records and the link's own process.


def test_record_states_truth_and_survives_its_file(tmp_path: Path) -> None:
    trace = Trace(
        np.array([10.0, 0.0, 30.0]), np.array([20.0, 40.0, 60.0]), 1.0, "t", "5G", "generated"
    )
    record = LinkRecord(trace, 1000.0, 0.5, None, ((1002.0, 1002.25),), "user-space")
    assert record.state_at(1000.2) == (10.0, 20.0)
    assert record.state_at(1000.7) == (0.0, 40.0)
    assert record.state_at(1002.1) == (0.0, 60.0)  # cut
    assert record.state_at(1002.5 + 3) == (10.0, 20.0)  # repeated
    assert record.mean_uplink_mbps(1000.0, 1001.0) == pytest.approx(5.0)
    assert record.mean_uplink_mbps(1001.5, 1002.5) == pytest.approx(0.75 * 30)
    assert record.truth(1000.0, 1001.0) == (pytest.approx(5.0), 20.0)
    record.save(tmp_path / "link.json")
    loaded = LinkRecord.load(tmp_path / "link.json")
    assert loaded.cuts == record.cuts
    assert loaded.start_time == record.start_time
    assert np.array_equal(loaded.trace.uplink_mbps, trace.uplink_mbps)
    (tmp_path / "bad.json").write_text('{"trace": 3}')
    with pytest.raises(DataError):
        LinkRecord.load(tmp_path / "bad.json")


def test_link_in_its_own_process(server: EchoServer) -> None:
    with LinkProcess(make([20.0], 30.0), ("127.0.0.1", server.port)) as link:
        before = time.monotonic()
        link.start(before)
        assert link.start_time == pytest.approx(before)
        with connect(link.port) as peer:
            begin = time.monotonic()
            peer.sendall(b"hello")
            assert read(peer, 5) == b"hello"
            assert time.monotonic() - begin >= 0.030
        assert link.stats()["connections"] == 1
        link.cut(0.1)
        assert link.state_at(before + 1000.0) == (20.0, 30.0)
        with pytest.raises(RemoteError, match="one start"):
            link.start()
        child = link._child
    assert child.poll() is not None
    with pytest.raises(SliproadError, match="in use"):
        LinkProcess(make([1.0]), ("127.0.0.1", 9), listen=("127.0.0.1", server.port))


def test_command_runs_alone_and_reports(server: EchoServer, tmp_path: Path) -> None:
    save_trace(constant_trace(20.0, 10.0), tmp_path / "trace.json")
    program = "import typer; from testbed.cli.link_command import link; typer.run(link)"
    words = ["--server", f"127.0.0.1:{server.port}", "--trace", str(tmp_path / "trace.json")]
    words += ["--port-file", str(tmp_path / "port"), "--record", str(tmp_path / "link.json")]
    words += ["--power", "jetson-nano+lte-rrc"]
    child = subprocess.Popen(
        [sys.executable, "-c", program, *words, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        for _ in range(600):
            if (tmp_path / "port").exists():
                break
            time.sleep(0.05)
        with connect(int((tmp_path / "port").read_text())) as peer:
            begin = time.monotonic()
            peer.sendall(b"hi")
            assert read(peer, 2) == b"hi"
            assert time.monotonic() - begin >= 0.260 + 0.010
    finally:
        child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    assert json.loads(out.splitlines()[-1])["uplink_bytes"] == 2
    assert LinkRecord.load(tmp_path / "link.json").start_time is not None
