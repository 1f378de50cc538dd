"""The server in this process: real gRPC, real tails, other people's clients."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from cnn.bundle import load_bundle
from cnn.common.errors import ConfigError
from cnn.frame_codec import FrameEncoding
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED, Action
from testbed.server.mec_server import MecServer, ServerConfig
from testbed.wire.address import PortInUseError
from testbed.wire.client import MecClient
from testbed.wire.protocol import parse_response
from testbed.wire.requests import build_request

BUNDLE = load_bundle()
OFFLOADS = [action for action in SHIPPED.actions if not action.is_local]


@pytest.fixture(scope="module")
def runtime() -> SplitRuntime:
    return SplitRuntime(BUNDLE)


@pytest.fixture(scope="module")
def server() -> Iterator[MecServer]:
    with MecServer(BUNDLE, ServerConfig(metrics_port=0, max_batch=4)) as server:
        yield server


@pytest.fixture
def stub(server: MecServer) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def payload(runtime: SplitRuntime, split: int, batch: int = 1, seed: int = 0) -> NDArray[np.uint8]:
    """What a device would send for random frames."""
    size = BUNDLE.config.input_size
    frames = np.random.default_rng(seed).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    return runtime.payload(runtime.forward(frames, 1, split), split)


def infer_inputs(data: NDArray[np.uint8]) -> list[triton.InferInput]:
    tensor = triton.InferInput("payload", list(data.shape), "UINT8")
    tensor.set_data_from_numpy(data)
    return [tensor]


def scraped(server: MecServer) -> dict[str, float]:
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as page:
        text = page.read().decode()
    return {
        sample.name + "".join(f"|{v}" for _, v in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("action", OFFLOADS, ids=lambda action: action.name)
def test_tritons_own_client_gets_the_runtimes_answers(
    server: MecServer, runtime: SplitRuntime, action: Action
) -> None:
    data = payload(runtime, action.split, batch=3, seed=action.index)
    predictions, confidences = runtime.tail(data, action.exit, action.split)
    with triton.InferenceServerClient(server.address) as client:
        result = client.infer(
            "sliproad",
            infer_inputs(data),
            request_id="7",
            client_timeout=20,
            parameters={"exit": action.exit, "split": action.split, "bundle_hash": BUNDLE.hash},
        )
    answer = result.as_numpy("prediction")
    assert answer.dtype == np.int16
    assert answer.tolist() == predictions.tolist()
    np.testing.assert_allclose(result.as_numpy("confidence"), confidences, rtol=1e-5)
    response = result.get_response()
    assert response.id == "7"
    assert response.parameters["server_ms"].double_param > 0
    assert response.parameters["server_queue_ms"].double_param >= 0
    assert response.parameters["server_wait_ms"].double_param >= 0
    assert response.parameters["queue_length"].int64_param >= 0


def test_tritons_own_client_may_send_an_encoded_frame(
    server: MecServer, runtime: SplitRuntime
) -> None:
    image = np.indices((48, 48, 3)).sum(0).astype(np.uint8)
    data = np.frombuffer(FrameEncoding("webp").encode(image), np.uint8)
    parameters = {"exit": 2, "split": 0, "bundle_hash": BUNDLE.hash, "encoding": "webp"}
    with triton.InferenceServerClient(server.address) as client:
        result = client.infer("sliproad", infer_inputs(data), parameters=parameters)
    prediction, confidence = runtime.act(image, SHIPPED.action(2, 0))
    assert result.as_numpy("prediction").tolist() == [prediction]
    np.testing.assert_allclose(result.as_numpy("confidence"), [confidence], rtol=1e-5)


def test_tritons_own_client_reads_state_and_metadata(server: MecServer) -> None:
    with triton.InferenceServerClient(server.address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("sliproad")
        assert client.is_model_ready("sliproad", BUNDLE.hash)
        assert not client.is_model_ready("resnet")
        assert not client.is_model_ready("sliproad", "1")
        assert client.get_server_metadata().name == "sliproad"
        metadata = client.get_model_metadata("sliproad")
        assert list(metadata.versions) == [BUNDLE.hash]
        assert [(t.name, t.datatype) for t in metadata.inputs] == [("payload", "UINT8")]
        assert {(t.name, t.datatype) for t in metadata.outputs} == {
            ("prediction", "INT16"),
            ("confidence", "FP32"),
        }
        with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
            client.get_model_repository_index()
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            client.get_model_metadata("resnet")


def test_only_the_outputs_asked_for_come_back(server: MecServer, runtime: SplitRuntime) -> None:
    data = payload(runtime, 4)
    with triton.InferenceServerClient(server.address) as client:
        result = client.infer(
            "sliproad",
            infer_inputs(data),
            outputs=[triton.InferRequestedOutput("confidence")],
            parameters={"exit": 5, "split": 4, "bundle_hash": BUNDLE.hash},
        )
    assert result.as_numpy("prediction") is None
    assert result.as_numpy("confidence").shape == (1,)


def test_health_and_reflection(server: MecServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService", "sliproad"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert "inference.GRPCInferenceService" in services
    assert "grpc.health.v1.Health" in services


def _send(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, request: object, timeout: float = 20
) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=timeout)
    return caught.value


def test_faults_have_their_own_status(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, runtime: SplitRuntime
) -> None:
    def request(
        bundle_hash: str = BUNDLE.hash, exit: int = 5, split: int = 4
    ) -> pb.ModelInferRequest:
        shape = (1, *runtime.wire_shape(4))
        message = build_request(bundle_hash, exit, split, shape)
        message.raw_input_contents[0] = bytes(int(np.prod(shape)))
        return message

    assert stub.ModelInfer(request(), timeout=20).model_name == "sliproad"
    other_bundle = _send(stub, request("0" * 64))
    assert other_bundle.code() is grpc.StatusCode.FAILED_PRECONDITION
    other_split = _send(stub, request(split=2))
    assert other_split.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "; expected (B, " in other_split.details()
    other_model = request()
    other_model.model_name = "resnet"
    assert _send(stub, other_model).code() is grpc.StatusCode.NOT_FOUND


def test_bytes_that_are_no_message_are_the_callers_fault(server: MecServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff" * 100, timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_oversize_message_is_refused_before_it_is_read(
    server: MecServer, runtime: SplitRuntime
) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes(server.spec.max_message_bytes + 1), timeout=20)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # the largest legal message passes
    data = payload(runtime, 0, batch=4)
    with triton.InferenceServerClient(server.address) as client:
        result = client.infer(
            "sliproad",
            infer_inputs(data),
            parameters={"exit": 1, "split": 0, "bundle_hash": BUNDLE.hash},
        )
    assert result.as_numpy("prediction").shape == (4,)


def test_waiting_requests_of_several_connections_are_computed_together(
    runtime: SplitRuntime,
) -> None:
    data = payload(runtime, 1)
    expected = runtime.tail(data, 5, 1)
    with MecServer(BUNDLE, ServerConfig(metrics_port=0, max_batch=8)) as server:
        before = scraped(server)
        answers = _burst(server, data, clients=8, each=4)
        after = scraped(server)
    assert len(answers) == 32
    for answer in answers:
        assert answer.predictions.tolist() == expected[0].tolist()
        np.testing.assert_allclose(answer.confidences, expected[1], rtol=1e-4)
    assert after["sliproad_frames_total|5|1"] - before.get("sliproad_frames_total|5|1", 0) == 32
    assert after["sliproad_requests_total|ok"] == 32
    assert after["sliproad_batch_frames_count"] < 32  # fewer batches than requests
    assert after["sliproad_batch_frames_sum"] == 32


def _burst(server: MecServer, data: NDArray[np.uint8], clients: int, each: int) -> list:
    """`each` requests at once on each of `clients` connections; the answers, or codes."""
    request = build_request(BUNDLE.hash, 5, 1, data.shape)
    request.raw_input_contents[0] = data.tobytes()
    message = request.SerializeToString()
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(server.address, options) for _ in range(clients)]
    calls = [
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(
            message, timeout=60
        )
        for channel in channels
        for _ in range(each)
    ]
    out = []
    for call in calls:
        code = call.code()
        out.append(parse_response(call.result(), 1) if code is grpc.StatusCode.OK else code)
    for channel in channels:
        channel.close()
    return out


@pytest.mark.slow(1)
def test_beyond_the_queue_requests_are_refused_and_the_others_right(
    runtime: SplitRuntime,
) -> None:
    data = payload(runtime, 1)
    expected = runtime.tail(data, 5, 1)[0].tolist()
    with MecServer(BUNDLE, ServerConfig(metrics_port=0, max_batch=1, queue=2)) as server:
        answers = _burst(server, data, clients=4, each=16)
        metrics = scraped(server)
    refused = [a for a in answers if a is grpc.StatusCode.RESOURCE_EXHAUSTED]
    answered = [a for a in answers if not isinstance(a, grpc.StatusCode)]
    assert len(refused) + len(answered) == 64
    assert refused
    assert answered
    assert all(a.predictions.tolist() == expected for a in answered)
    # a call may also be refused by gRPC itself, before the server's own queue
    assert 0 < metrics.get("sliproad_requests_total|refused", 0) <= len(refused)
    assert metrics["sliproad_frames_total|5|1"] == len(answered)


def test_stop_finishes_accepted_requests(runtime: SplitRuntime) -> None:
    data = payload(runtime, 1)
    server = MecServer(BUNDLE, ServerConfig(max_batch=1)).start()
    answers: list = []
    sender = threading.Thread(target=lambda: answers.extend(_burst(server, data, 2, 8)))
    sender.start()
    while not server.metrics.value("sliproad_requests_total", outcome="ok"):
        assert sender.is_alive()
    assert server.stop(30)
    sender.join(30)
    turned_away = {answer for answer in answers if isinstance(answer, grpc.StatusCode)}
    assert turned_away <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    # every answer that the server made reached its client
    answered = [answer for answer in answers if not isinstance(answer, grpc.StatusCode)]
    assert len(answered) == server.metrics.value("sliproad_requests_total", outcome="ok")
    assert len(answers) == 16
    assert server.stop()  # twice is harmless


def test_stop_does_not_wait_for_health_watchers() -> None:
    server = MecServer(BUNDLE).start()
    with grpc.insecure_channel(server.address) as channel:
        seen = []
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        seen.append(next(watch).status)
        stopper = threading.Thread(target=server.stop, args=(600,))
        stopper.start()
        seen.append(next(watch).status)
        stopper.join(60)
        assert not stopper.is_alive()
    assert seen == [
        health_pb2.HealthCheckResponse.SERVING,
        health_pb2.HealthCheckResponse.NOT_SERVING,
    ]


def test_a_taken_port_is_an_error_at_once(server: MecServer) -> None:
    with pytest.raises(PortInUseError, match=rf":{server.port}: in use; expected a free port"):
        MecServer(BUNDLE, ServerConfig(port=server.port)).start()
    with pytest.raises(PortInUseError, match="metrics address"):
        MecServer(BUNDLE, ServerConfig(metrics_port=server.metrics_port)).start()
    with socket.socket() as other:  # bound by something that is no gRPC server
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        with pytest.raises(PortInUseError):
            MecServer(BUNDLE, ServerConfig(port=other.getsockname()[1])).start()


def test_a_port_is_free_again_after_stop() -> None:
    first = MecServer(BUNDLE).start()
    port = first.port
    with MecClient(first.address, BUNDLE.hash) as client:
        client.connect(20)
        first.stop()
    with MecServer(BUNDLE, ServerConfig(port=port)) as second:
        assert second.port == port


def test_an_address_that_is_not_ours_is_an_error() -> None:
    with pytest.raises(PortInUseError, match="expected a free port on an address of this machine"):
        MecServer(BUNDLE, ServerConfig(host="192.0.2.1")).start()


@pytest.mark.parametrize(
    "options",
    [{"threads": 0}, {"workers": 0}, {"max_batch": 0}, {"queue": 0}, {"max_wait_ms": -1}],
)
def test_nonsense_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        ServerConfig(**options)  # type: ignore[arg-type]
