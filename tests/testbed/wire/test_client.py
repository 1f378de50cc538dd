"""The device's client against real servers and real broken peers."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import numpy as np
import psutil
import pytest
from sockets import free_port
from tritonclient.grpc import service_pb2 as pb

from cnn.bundle import load_bundle
from cnn.common.errors import RemoteError
from cnn.frame_codec import FrameCodec, FrameEncoding, decode_frame
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED, Action
from testbed.server.mec_server import MecServer, ServerConfig
from testbed.wire.client import ExchangeFailed, MecClient
from testbed.wire.protocol import WireSpec, build_response
from testbed.wire.requests import build_request, check_request, id_field

BUNDLE = load_bundle()
OFFLOADS = [action for action in SHIPPED.actions if not action.is_local]


@pytest.fixture(scope="module")
def runtime() -> SplitRuntime:
    return SplitRuntime(BUNDLE)


@pytest.fixture(scope="module")
def server() -> Iterator[MecServer]:
    with MecServer(BUNDLE) as server:
        yield server


@pytest.fixture
def client(server: MecServer) -> Iterator[MecClient]:
    with MecClient(server.address, BUNDLE.hash) as client:
        client.connect(20)
        yield client


def frame(seed: int = 0) -> np.ndarray:
    size = BUNDLE.config.input_size
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


@contextmanager
def foreign_server(
    answer: bytes | None = None, *, delay_s: float = 0.0, model: str = "sliproad"
) -> Iterator[str]:
    """Another server of the same protocol that says whatever it is told to."""

    def infer(request: bytes, context: object) -> bytes:
        time.sleep(delay_s)
        if answer is None:
            raise RuntimeError("broken")
        # Messages put one after the other are merged: the answer names the request it is for.
        asked = pb.ModelInferRequest.FromString(request).id
        return id_field(asked) + answer

    def metadata(request: bytes, context: object) -> bytes:
        data: bytes = pb.ModelMetadataResponse(name=model, versions=["1"]).SerializeToString()
        return data

    handlers = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(infer),
        "ModelMetadata": grpc.unary_unary_rpc_method_handler(metadata),
    }
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait(10)


@pytest.mark.parametrize("action", OFFLOADS, ids=lambda action: action.name)
def test_split_over_the_wire_equals_the_same_action_in_one_process(
    client: MecClient, runtime: SplitRuntime, action: Action
) -> None:
    image = frame(action.index)
    expected = runtime.act(image, action)
    x = runtime.forward(runtime.start(image), 1, action.split)
    data = runtime.payload(x, action.split)
    reply = client.infer(data, action.exit, action.split, timeout_ms=20_000)
    assert reply.prediction == expected[0]
    assert reply.confidence == pytest.approx(expected[1], rel=1e-5)
    assert reply.uplink_bytes == BUNDLE.config.payload_bytes(action.exit, action.split)
    assert reply.uplink_bytes < reply.message_bytes < reply.uplink_bytes + 128
    assert 0 < reply.downlink_bytes < 256
    assert reply.server_ms > 0
    assert reply.transfer_ms == pytest.approx(
        reply.total_ms - reply.server_queue_ms - reply.server_ms
    )
    assert reply.transfer_ms > 0


@pytest.mark.parametrize("codec", ["webp", "jpeg"])
def test_an_encoded_frame_gets_the_answer_of_its_decoded_self(
    client: MecClient, runtime: SplitRuntime, codec: FrameCodec
) -> None:
    y, x = np.mgrid[:48, :48]
    image = np.stack([4 * x, 4 * y, 2 * (x + y)], 2).astype(np.uint8)
    data = FrameEncoding(codec).encode(image)
    expected = runtime.act(decode_frame(data, codec, 48), SHIPPED.action(4, 0))
    reply = client.infer(np.frombuffer(data, np.uint8), 4, 0, 20_000, codec)
    assert reply.prediction == expected[0]
    assert reply.confidence == pytest.approx(expected[1], rel=1e-5)
    assert reply.uplink_bytes == len(data)
    plain = client.infer(image[None], 4, 0, 20_000)  # the next raw one is none the wiser
    assert plain.prediction == runtime.act(image, SHIPPED.action(4, 0))[0]


BOMB = FrameEncoding("webp").encode(np.zeros((8000, 8000, 3), np.uint8))


@pytest.mark.parametrize(
    ("data", "split"),
    [(b"garbage", 0), (BOMB, 0), (bytes(7000), 0), (b"garbage", 2)],
    ids=["garbage", "bomb", "longer than raw", "not at split 0"],
)
def test_an_encoded_frame_that_is_none_is_rejected(
    client: MecClient, data: bytes, split: int
) -> None:
    with pytest.raises(ExchangeFailed) as caught:
        client.infer(np.frombuffer(data, np.uint8), 4, split, 20_000, "webp")
    assert caught.value.reason == "rejected"
    assert isinstance(caught.value.__cause__, grpc.Call)
    assert caught.value.__cause__.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_probe_is_a_round_trip(client: MecClient) -> None:
    assert 0 < client.probe(timeout_ms=20_000) < 20_000


def test_an_absent_server_is_one_clear_line() -> None:
    port = free_port()
    with (
        MecClient(f"127.0.0.1:{port}", BUNDLE.hash) as client,
        pytest.raises(RemoteError, match=r"MEC server 127.0.0.1:\d+: .*refused.*testbed serve"),
    ):
        client.connect(0.3)


def test_connect_waits_for_a_server_that_starts_late() -> None:
    port = free_port()
    late = MecServer(BUNDLE, ServerConfig(port=port))
    with MecClient(f"127.0.0.1:{port}", BUNDLE.hash) as client:
        starter = threading.Timer(0.5, late.start)
        starter.start()
        try:
            client.connect(30)
        finally:
            starter.join()
            late.stop()


def test_a_server_of_another_bundle_is_refused_at_connect(server: MecServer) -> None:
    with (
        MecClient(server.address, "0" * 64) as client,
        pytest.raises(RemoteError, match=f"has bundle {BUNDLE.hash[:12]}; expected bundle 0000"),
    ):
        client.connect(20)


def test_another_models_server_is_refused_at_connect() -> None:
    with (
        foreign_server(b"", model="resnet") as target,
        MecClient(target, BUNDLE.hash) as client,
        pytest.raises(RemoteError, match="a server of model 'resnet'"),
    ):
        client.connect(20)


def test_a_wrong_bundle_in_mid_run_is_rejected(server: MecServer, runtime: SplitRuntime) -> None:
    with MecClient(server.address, "0" * 64) as client, pytest.raises(ExchangeFailed) as caught:
        client.infer(runtime.payload(runtime.start(frame()), 0), 1, 0, timeout_ms=20_000)
    assert caught.value.reason == "rejected"


def test_no_server_is_unavailable_and_known_at_once() -> None:
    with MecClient(f"127.0.0.1:{free_port()}", BUNDLE.hash) as client:
        data = np.zeros((1, *SplitRuntime(BUNDLE).wire_shape(4)), np.uint8)
        with pytest.raises(ExchangeFailed) as caught:
            client.infer(data, 5, 4, timeout_ms=60_000)
        assert caught.value.reason == "unavailable"
        assert caught.value.elapsed_ms < 30_000  # not the time-out: the refusal itself
        with pytest.raises(ExchangeFailed):
            client.probe(timeout_ms=60_000)


def test_a_server_that_accepts_and_says_nothing_is_a_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        with MecClient(f"127.0.0.1:{silent.getsockname()[1]}", BUNDLE.hash) as client:
            data = np.zeros((1, *SplitRuntime(BUNDLE).wire_shape(4)), np.uint8)
            with pytest.raises(ExchangeFailed) as caught:
                client.infer(data, 5, 4, timeout_ms=100)
    assert caught.value.reason == "timeout"
    assert caught.value.elapsed_ms >= 100


def good_answer(runtime: SplitRuntime, prediction: int) -> bytes:
    shape = (1, *runtime.wire_shape(4))
    request = build_request(BUNDLE.hash, 5, 4, shape)
    request.raw_input_contents[0] = bytes(math.prod(shape))
    message = build_response(
        check_request(request, WireSpec(BUNDLE.hash, BUNDLE.topology, 1)),
        np.array([prediction], np.int16),
        np.array([0.75], np.float32),
        server_queue_ms=0.0,
        server_ms=1.0,
        server_wait_ms=0.0,
        queue_length=0,
    )
    data: bytes = message.SerializeToString()
    return data


def test_a_late_answer_is_never_used(runtime: SplitRuntime) -> None:
    data = np.zeros((1, *runtime.wire_shape(4)), np.uint8)
    with (
        foreign_server(good_answer(runtime, 41), delay_s=0.3) as target,
        MecClient(target, BUNDLE.hash) as client,
    ):
        for _ in range(3):  # the answer to one exchange must not come out of the next
            with pytest.raises(ExchangeFailed) as caught:
                client.infer(data, 5, 4, timeout_ms=50)
            assert caught.value.reason == "timeout"
        assert client.infer(data, 5, 4, timeout_ms=20_000).prediction == 41


@pytest.mark.parametrize("kind", ["broken", "garbage", "truncated", "oversize"])
def test_a_useless_answer_is_a_failure(runtime: SplitRuntime, kind: str) -> None:
    answer = {
        "broken": None,
        "garbage": b"\xff" * 50,
        "truncated": good_answer(runtime, 1)[:-3],
        "oversize": bytes(1_000_000),
    }[kind]
    data = np.zeros((1, *runtime.wire_shape(4)), np.uint8)
    with (
        foreign_server(answer) as target,
        MecClient(target, BUNDLE.hash) as client,
        pytest.raises(ExchangeFailed) as caught,
    ):
        client.infer(data, 5, 4, timeout_ms=20_000)
    # gRPC reports an answer beyond the bound with the status of a full server
    reasons = {"broken": "rejected", "oversize": "refused"}
    assert caught.value.reason == reasons.get(kind, "bad answer")


def test_a_full_server_refuses(runtime: SplitRuntime) -> None:
    data = np.zeros((1, *runtime.wire_shape(1)), np.uint8)
    reasons: list[str] = []
    with MecServer(BUNDLE, ServerConfig(queue=1, max_batch=1)) as server:

        def send() -> None:
            with MecClient(server.address, BUNDLE.hash) as client:
                for _ in range(5):
                    try:
                        client.infer(data, 5, 1, timeout_ms=60_000)
                        reasons.append("")
                    except ExchangeFailed as error:
                        reasons.append(error.reason)

        threads = [threading.Thread(target=send) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(reasons) == 40
    assert set(reasons) == {"", "refused"}


def test_a_closed_server_is_noticed_and_a_new_one_found(runtime: SplitRuntime) -> None:
    data = np.zeros((1, *runtime.wire_shape(4)), np.uint8)
    first = MecServer(BUNDLE).start()
    with MecClient(first.address, BUNDLE.hash) as client:
        client.connect(20)
        expected = client.infer(data, 5, 4, timeout_ms=20_000).prediction
        first.stop()
        with pytest.raises(ExchangeFailed) as caught:
            client.infer(data, 5, 4, timeout_ms=60_000)
        assert caught.value.reason == "unavailable"
        with MecServer(BUNDLE, ServerConfig(port=first.port)):
            until = time.monotonic() + 20
            while True:
                try:
                    assert client.infer(data, 5, 4, timeout_ms=5_000).prediction == expected
                    break
                except ExchangeFailed:
                    assert time.monotonic() < until
                    time.sleep(0.02)


def test_no_thread_is_made_per_call(client: MecClient, runtime: SplitRuntime) -> None:
    data = np.zeros((1, *runtime.wire_shape(4)), np.uint8)
    client.infer(data, 5, 4, timeout_ms=20_000)
    names = {thread.ident for thread in threading.enumerate() if thread.name[:3] != "rpc"}
    for _ in range(20):
        client.infer(data, 5, 4, timeout_ms=20_000)
    after = {thread.ident for thread in threading.enumerate() if thread.name[:3] != "rpc"}
    assert after <= names


def test_prepared_requests_keep_no_payload() -> None:
    """A device sends for days: 3,000 payloads of 10 kB must not stay in memory."""
    process = psutil.Process()
    payload = bytes(10_000)
    with MecClient("127.0.0.1:1", "0" * 64) as client:
        client._message((1, 10_000), payload, 2, 1, "raw", "abcd")
        before = process.memory_info().rss
        for _ in range(3000):
            client._message((1, 10_000), payload, 2, 1, "raw", "abcd")
        assert process.memory_info().rss - before < 10_000_000
