"""A connection is there when called, and silent in between."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import numpy as np
import pytest
from sockets import Relay, free_port
from tritonclient.grpc import service_pb2 as pb

from cnn.bundle import load_bundle
from cnn.runtime import SplitRuntime
from testbed.server.mec_server import MecServer
from testbed.wire import connection
from testbed.wire.client import ExchangeFailed, MecClient
from testbed.wire.connection import Connection

pytestmark = pytest.mark.slow(20)

BUNDLE = load_bundle()
PAST_EVERY_TIMER_S = 11.0
"""Longer than the keep-alives of client (1 s) and server (10 s)."""


class Listener:
    """A TCP port that notes when somebody connects, and what it does with them."""

    def __init__(self, accepted: Callable[[socket.socket], None] = lambda end: None) -> None:
        self._accepted = accepted
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.connects = 0
        self.ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def run(self, target: Callable[..., None], *args: object) -> None:
        """In a thread that `close` waits for."""
        self._threads.append(threading.Thread(target=target, args=args))
        self._threads[-1].start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                end, _ = self._socket.accept()
                self.ends.append(end)
                self.connects += 1
                self._accepted(end)

    def close(self) -> None:
        for each in (self._socket, *self.ends):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        for each in (self._socket, *self.ends):
            each.close()


def test_between_calls_no_byte_crosses() -> None:
    with (
        MecServer(BUNDLE) as server,
        Relay(server.port) as relay,
        MecClient(relay.target, BUNDLE.hash) as client,
    ):
        client.connect(20)
        data = np.zeros((1, *SplitRuntime(BUNDLE).wire_shape(0)), np.uint8)
        client.infer(data, 5, 0, timeout_ms=20_000)
        client.probe(20_000)
        moved = relay.moved
        time.sleep(PAST_EVERY_TIMER_S)
        assert relay.moved == moved
        client.infer(data, 5, 0, timeout_ms=20_000)  # and it is still there
        assert relay.connects == 1


def reset(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


def test_after_a_refusal_nobody_connects_until_the_next_call() -> None:
    listener = Listener(reset)
    with MecClient(listener.target, BUNDLE.hash) as client:
        for calls in (1, 2):
            with pytest.raises(ExchangeFailed) as caught:
                client.probe(20_000)
            assert caught.value.reason == "unavailable"
            time.sleep(0.8)  # gRPC by itself would have tried three times
            assert listener.connects == calls
    listener.close()


def test_calls_in_quick_succession_share_an_attempt() -> None:
    listener = Listener(reset)
    with MecClient(listener.target, BUNDLE.hash) as client:
        began = time.monotonic()
        details = set()
        while time.monotonic() - began < connection.RECONNECT_S:
            with pytest.raises(ExchangeFailed) as caught:
                client.probe(20_000)
            details.add(caught.value.reason)
        assert details == {"unavailable"}
        assert listener.connects <= 2
    listener.close()


@pytest.fixture
def soon_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "QUIET_S", 0.2)


@pytest.mark.usefixtures("soon_quiet")
def test_after_a_timeout_of_a_silent_peer_nobody_connects_until_the_next_call() -> None:
    listener = Listener()
    with MecClient(listener.target, BUNDLE.hash) as client:
        for calls, wait_s in ((1, 2.7), (2, 0.0)):
            with pytest.raises(ExchangeFailed) as caught:
                client.probe(100)
            assert caught.value.reason == "timeout"
            time.sleep(wait_s)  # an attempt of gRPC ends after 2 s, and the next one begins
            assert listener.connects == calls
    listener.close()


@pytest.fixture
def slow_server() -> Iterator[tuple[str, threading.Event]]:
    answers = threading.Event()

    def live(request: bytes, context: object) -> bytes:
        answers.wait(20)
        return bytes(pb.ServerLiveResponse(live=True).SerializeToString())

    handlers = {"ServerLive": grpc.unary_unary_rpc_method_handler(live)}
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", answers
    answers.set()
    server.stop(0).wait(10)


@pytest.mark.usefixtures("soon_quiet")
def test_a_connection_to_a_slow_server_is_kept(slow_server: tuple[str, threading.Event]) -> None:
    target, answers = slow_server
    port = int(target.rpartition(":")[2])
    with Relay(port) as relay, MecClient(relay.target, BUNDLE.hash) as client:
        for _ in range(2):
            with pytest.raises(ExchangeFailed) as caught:
                client.probe(300)
            assert caught.value.reason == "timeout"
            time.sleep(1.0)
        answers.set()
        assert client.probe(20_000) > 0
        assert relay.connects == 1


def test_a_server_that_comes_later_is_found() -> None:
    port = free_port()
    with MecClient(f"127.0.0.1:{port}", BUNDLE.hash) as client:
        with pytest.raises(ExchangeFailed):
            client.probe(20_000)
        listener = socket.create_server(("127.0.0.1", port))
        time.sleep(connection.RECONNECT_S)
        with pytest.raises(ExchangeFailed) as caught:
            client.probe(200)
        assert caught.value.reason == "timeout"  # connected, and not answered
        listener.close()


def test_several_threads_call_and_close_without_harm() -> None:
    with MecServer(BUNDLE) as server:
        line = Connection(server.address, None)
        live = "/inference.GRPCInferenceService/ServerLive"
        failed: list[object] = []

        def call() -> None:
            for _ in range(50):
                try:
                    line.call(live, b"", 20)
                except grpc.RpcError as error:
                    failed.append(error)
                except ValueError:
                    return  # closed

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        line.close()
        line.close()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        with pytest.raises(ValueError, match="closed"):
            line.call(live, b"", 1)
        codes = {error.code() for error in failed if isinstance(error, grpc.Call)}
        assert codes <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
