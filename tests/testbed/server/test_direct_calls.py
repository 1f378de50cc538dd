"""Inference calls without grpcio's thread pool, and through it: the same answers and bounds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest

from cnn.bundle import load_bundle
from cnn.runtime import SplitRuntime
from testbed.server.direct_calls import TESTED, DirectCalls, Send
from testbed.server.mec_server import MecServer, ServerConfig
from testbed.wire.client import ExchangeFailed, MecClient
from testbed.wire.messages import build_request, parse_response

METHOD = "/test.Echo/Say"
INFER = "/inference.GRPCInferenceService/ModelInfer"
BUNDLE = load_bundle()


class Echo:
    """Answers a message with itself, or keeps it until it is told to answer."""

    def __init__(self) -> None:
        self.kept: list[tuple[bytes, Send]] = []
        self.left_s: list[float] = []
        self.cancelled: list[bytes] = []
        self.lock = threading.Lock()

    def begin(self, data: bytes, left_s: float, send: Send, peer: str) -> object:
        self.left_s.append(left_s)
        if data == b"raise":
            raise RuntimeError("an error of ours")
        if data == b"refuse":
            send(grpc.StatusCode.FAILED_PRECONDITION, b"nay")
        elif data.startswith(b"keep"):
            with self.lock:
                self.kept.append((data, send))
        else:
            send(grpc.StatusCode.OK, data)
        return lambda: self.cancelled.append(data)


@pytest.fixture
def echo() -> Iterator[tuple[Echo, DirectCalls, grpc.Channel, grpc.Server]]:
    handler = Echo()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    direct = DirectCalls.attach(server, METHOD, handler.begin, 4, threading.Lock())  # type: ignore[arg-type]
    assert direct is not None
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    direct.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield handler, direct, channel, server
    server.stop(0).wait(20)
    assert direct.wait_idle(20)
    direct.close(20)
    assert not direct._thread.is_alive()


def wait_until(condition: object, limit_s: float = 20.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "condition never came true"
        time.sleep(0.001)


Parts = tuple[Echo, DirectCalls, grpc.Channel, grpc.Server]


def test_answers_statuses_and_deadlines(echo: Parts) -> None:
    handler, direct, channel, _ = echo
    call = channel.unary_unary(METHOD)
    assert call(b"hello", timeout=20) == b"hello"
    assert 0 < handler.left_s[-1] <= 20
    assert call(b"") == b""
    assert handler.left_s[-1] > 1e6  # no deadline
    for message, code, details in (
        (b"refuse", grpc.StatusCode.FAILED_PRECONDITION, "nay"),
        (b"raise", grpc.StatusCode.INTERNAL, "the server failed; see its log"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(message, timeout=20)
        assert caught.value.code() is code
        assert caught.value.details() == details
    assert call(b"still here", timeout=20) == b"still here"
    assert direct.wait_idle(20)


def test_a_call_without_a_message_is_the_callers_fault(echo: Parts) -> None:
    _, direct, channel, _ = echo
    with pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(METHOD)(iter(()), timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert direct.wait_idle(20)


def test_calls_beyond_the_bound_are_refused_and_the_others_answered(echo: Parts) -> None:
    handler, direct, channel, _ = echo
    call = channel.unary_unary(METHOD)
    kept = [call.future(b"keep%d" % k) for k in range(4)]
    wait_until(lambda: len(handler.kept) == 4)
    with pytest.raises(grpc.RpcError) as caught:
        call(b"one more", timeout=20)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not direct.wait_idle(0)
    for data, send in handler.kept:
        threading.Thread(target=send, args=(grpc.StatusCode.OK, data[::-1])).start()
    assert [f.result(20) for f in kept] == [(b"keep%d" % k)[::-1] for k in range(4)]
    assert direct.wait_idle(20)
    assert call(b"room again", timeout=20) == b"room again"


def test_who_is_gone_is_told_of_and_a_late_answer_does_no_harm(echo: Parts) -> None:
    handler, direct, channel, _ = echo
    call = channel.unary_unary(METHOD)
    waiting = call.future(b"keep this")
    wait_until(lambda: handler.kept)
    waiting.cancel()
    wait_until(lambda: handler.cancelled == [b"keep this"])
    with pytest.raises(grpc.RpcError):
        call(b"keep that", timeout=0.05)  # its deadline ends it at the server too
    wait_until(lambda: handler.cancelled == [b"keep this", b"keep that"])
    for data, send in handler.kept:
        send(grpc.StatusCode.OK, data)
    assert direct.wait_idle(20)
    assert call(b"well", timeout=20) == b"well"


def test_a_stopping_server_lets_calls_finish(echo: Parts) -> None:
    handler, direct, channel, server = echo
    waiting = channel.unary_unary(METHOD).future(b"keep me")
    wait_until(lambda: handler.kept)
    stopped = server.stop(30)
    assert not direct.wait_idle(0.01)
    data, send = handler.kept[0]
    send(grpc.StatusCode.OK, data)
    assert waiting.result(20) == b"keep me"
    assert stopped.wait(20)


def test_a_grpcio_without_that_layer_is_served_through_the_public_one() -> None:
    assert DirectCalls.attach(object(), METHOD, Echo().begin, 1, threading.Lock()) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "pool"])
def test_both_ways_give_the_runtimes_answers_and_refusals(direct: bool) -> None:
    runtime = SplitRuntime(BUNDLE)
    shape = (1, *runtime.wire_shape(4))
    data = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    expected, confidences = runtime.tail(data, 5, 4)
    with (
        MecServer(BUNDLE, ServerConfig(direct_calls=direct)) as server,
        MecClient(server.address, BUNDLE.hash) as client,
    ):
        client.connect(20)
        for _ in range(5):
            reply = client.infer(data, 5, 4, timeout_ms=20_000)
            assert reply.prediction == expected[0]
            assert reply.confidence == pytest.approx(confidences[0], rel=1e-5)
        with pytest.raises(ExchangeFailed) as caught:
            client.infer(data, 5, 3, timeout_ms=20_000)
        assert caught.value.reason == "rejected"
        assert server.metrics.value("sliproad_requests_total", outcome="ok") == 5
        assert server.metrics.value("sliproad_requests_total", outcome="invalid") == 1


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "pool"])
def test_cancelled_requests_are_not_computed(direct: bool) -> None:
    request = build_request(BUNDLE.hash, 5, 0, (1, 48, 48, 3))
    request.raw_input_contents[0] = bytes(48 * 48 * 3)
    config = ServerConfig(max_batch=1, direct_calls=direct)
    with MecServer(BUNDLE, config) as server, grpc.insecure_channel(server.address) as channel:
        batcher = server._batcher
        assert batcher is not None
        tail, opened = batcher._compute, threading.Event()

        def held(*given: Any) -> Any:
            assert opened.wait(20)
            return tail(*given)

        batcher._compute = held
        call = channel.unary_unary(INFER)
        calls = [call.future(request.SerializeToString(), timeout=60)]
        wait_until(lambda: batcher._busy == 1 and not batcher.queue_length)
        calls += [call.future(request.SerializeToString(), timeout=60) for _ in range(39)]
        wait_until(lambda: batcher.queue_length == 39)
        for one in calls[10:]:
            one.cancel()
        wait_until(lambda: batcher.queue_length == 9)
        opened.set()
        for one in calls[:10]:
            parse_response(one.result(), 1)

        def count(outcome: str) -> float:
            return server.metrics.value("sliproad_requests_total", outcome=outcome)

        wait_until(lambda: count("cancelled") == 30)
        assert count("ok") == 10
        assert server.metrics.value("sliproad_frames_total", exit="5", split="0") == 10


def test_another_release_of_grpcio_is_served_by_the_public_interface(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grpc, "__version__", "1.99.0")
    server = grpc.server(futures.ThreadPoolExecutor(1))
    lock = threading.Lock()
    assert DirectCalls.attach(server, "/s/m", lambda *_: lambda: None, 1, lock) is None
    server.stop(0).wait()


def test_the_pinned_grpcio_is_one_that_is_tested() -> None:
    assert grpc.__version__.startswith(TESTED)
