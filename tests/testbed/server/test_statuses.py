"""One status for one mistake: whatever the split, the method, and the way a call is served."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from cnn.bundle import load_bundle
from cnn.runtime import SplitRuntime
from testbed.server.mec_server import MecServer, ServerConfig
from testbed.wire.requests import build_request

BUNDLE = load_bundle()
RUNTIME = SplitRuntime(BUNDLE)
SERVICE = "/inference.GRPCInferenceService/"
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module", params=[True, False], ids=["direct", "pool"])
def server(request: pytest.FixtureRequest) -> Iterator[MecServer]:
    with MecServer(BUNDLE, ServerConfig(max_batch=4, direct_calls=request.param)) as server:
        yield server


@pytest.fixture
def channel(server: MecServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def good(split: int, batch: int = 1) -> Any:
    shape = (batch, *RUNTIME.wire_shape(split))
    request = build_request(BUNDLE.hash, 5, split, shape)
    request.raw_input_contents[0] = bytes(math.prod(shape))
    return request


def refusal(call: Any, message: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=20)
    return caught.value.code(), caught.value.details()


def _no_raw(request: Any) -> None:
    del request.raw_input_contents[:]


def _typed_as_fp32(request: Any) -> None:
    values = request.raw_input_contents.pop()
    request.inputs[0].contents.fp32_contents.extend(map(float, values))


MISTAKES: dict[str, tuple[Callable[[Any], Any], grpc.StatusCode]] = {
    "model": (lambda r: setattr(r, "model_name", "resnet"), grpc.StatusCode.NOT_FOUND),
    "version": (
        lambda r: setattr(r, "model_version", "2"),
        grpc.StatusCode.FAILED_PRECONDITION,
    ),
    "bundle": (
        lambda r: setattr(r.parameters["bundle_hash"], "string_param", "0" * 64),
        grpc.StatusCode.FAILED_PRECONDITION,
    ),
    "no input": (lambda r: r.inputs.pop(), INVALID),
    "input's name": (lambda r: setattr(r.inputs[0], "name", "image"), INVALID),
    "datatype": (lambda r: setattr(r.inputs[0], "datatype", "FP32"), INVALID),
    "rank": (lambda r: r.inputs[0].shape.pop(), INVALID),
    "no content": (_no_raw, INVALID),
    "short content": (lambda r: r.raw_input_contents.__setitem__(0, b"x"), INVALID),
    "typed as another type": (_typed_as_fp32, INVALID),
    "output": (lambda r: r.outputs.add(name="logits"), INVALID),
    "action": (lambda r: setattr(r.parameters["exit"], "int64_param", 6), INVALID),
    "no action": (lambda r: r.parameters.pop("exit"), INVALID),
    "parameter": (lambda r: setattr(r.parameters["priority"], "int64_param", 1), INVALID),
    "deadline": (lambda r: setattr(r.parameters["deadline_ms"], "int64_param", -1), INVALID),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_at_every_split(channel: grpc.Channel, mistake: str) -> None:
    change, code = MISTAKES[mistake]
    call = channel.unary_unary(f"{SERVICE}ModelInfer")
    for split in range(5):
        request = good(split)
        change(request)
        found, details = refusal(call, request.SerializeToString())
        assert found is code
        assert "; expected " in details


@pytest.mark.parametrize("batch", [5, 8, 64, 150])
def test_more_frames_than_a_batch(channel: grpc.Channel, batch: int) -> None:
    """RESOURCE_EXHAUSTED would mean: the server is full, try later."""
    call = channel.unary_unary(f"{SERVICE}ModelInfer")
    for split in range(5):
        code, details = refusal(call, good(split, batch).SerializeToString())
        assert code is INVALID
        assert "with B in 1..4" in details


@pytest.mark.parametrize(
    "method",
    ["ModelInfer", "ModelMetadata", "ModelReady", "ServerLive", "ServerReady", "ServerMetadata"],
)
def test_bytes_that_are_no_message(channel: grpc.Channel, method: str) -> None:
    code, details = refusal(channel.unary_unary(SERVICE + method), b"\xff" * 100)
    assert code is INVALID
    assert "100 bytes that are no" in details


def test_no_message(channel: grpc.Channel) -> None:
    call = channel.stream_unary(f"{SERVICE}ModelInfer")
    assert refusal(call, iter(())) == (INVALID, "a call without a message")


def test_a_method_that_is_not_served(channel: grpc.Channel) -> None:
    code, _ = refusal(channel.unary_unary(f"{SERVICE}RepositoryIndex"), b"")
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_metadata_and_readiness_know_a_version_as_inference_does(channel: grpc.Channel) -> None:
    metadata = channel.unary_unary(f"{SERVICE}ModelMetadata")
    ready = channel.unary_unary(f"{SERVICE}ModelReady")
    infer = channel.unary_unary(f"{SERVICE}ModelInfer")
    for version in ("", BUNDLE.hash, BUNDLE.hash[:16]):
        asked = {"name": "sliproad", "version": version}
        assert metadata(pb.ModelMetadataRequest(**asked).SerializeToString(), timeout=20)
        answer = ready(pb.ModelReadyRequest(**asked).SerializeToString(), timeout=20)
        assert pb.ModelReadyResponse.FromString(answer).ready
        request = good(4)
        request.model_version = version
        assert infer(request.SerializeToString(), timeout=20)
    for name, version in (("resnet", ""), ("sliproad", "2"), ("sliproad", BUNDLE.hash[:15])):
        request = good(4)
        request.model_name, request.model_version = name, version
        asked = pb.ModelMetadataRequest(name=name, version=version)
        assert refusal(metadata, asked.SerializeToString()) == refusal(
            infer, request.SerializeToString()
        )
        unready = pb.ModelReadyRequest(name=name, version=version).SerializeToString()
        assert not pb.ModelReadyResponse.FromString(ready(unready, timeout=20)).ready


def test_a_deadline_that_has_passed(server: MecServer, channel: grpc.Channel) -> None:
    request = good(0)
    request.parameters["deadline_ms"].double_param = 1e-6
    call = channel.unary_unary(f"{SERVICE}ModelInfer")
    code, _ = refusal(call, request.SerializeToString())
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_typed_contents_get_the_same_answer_as_raw_ones(channel: grpc.Channel) -> None:
    call = channel.unary_unary(f"{SERVICE}ModelInfer")
    data = np.random.default_rng(5).integers(0, 256, (3, *RUNTIME.wire_shape(2)), dtype=np.uint8)
    request = build_request(BUNDLE.hash, 4, 2, data.shape)
    del request.raw_input_contents[:]
    request.inputs[0].contents.uint_contents.extend(data.ravel().tolist())
    response = pb.ModelInferResponse.FromString(call(request.SerializeToString(), timeout=20))
    answers = {tensor.name: tensor.contents for tensor in response.outputs}
    predictions, confidences = RUNTIME.tail(data, 4, 2)
    assert list(answers["prediction"].int_contents) == predictions.tolist()
    np.testing.assert_allclose(answers["confidence"].fp32_contents, confidences, rtol=1e-5)


def _burst(server: MecServer, n: int) -> Counter[str]:
    """So many calls at once on one connection of Triton's asyncio client; their statuses."""
    parameters = {"exit": 5, "split": 0, "bundle_hash": BUNDLE.hash}
    tensor = triton.InferInput("payload", [1, *RUNTIME.wire_shape(0)], "UINT8")
    tensor.set_data_from_numpy(np.zeros((1, *RUNTIME.wire_shape(0)), np.uint8))

    async def send() -> Counter[str]:
        async with triton_aio.InferenceServerClient(server.address) as client:

            async def one() -> str:
                try:
                    await client.infer("sliproad", [tensor], parameters=parameters)
                except InferenceServerException as error:
                    return str(error.status())
                return "ok"

            await one()
            return Counter(await asyncio.gather(*(one() for _ in range(n))))

    return asyncio.run(send())


def test_a_queue_with_room_takes_every_call_of_one_connection(server: MecServer) -> None:
    assert server.config.queue >= 120
    assert _burst(server, 120) == {"ok": 120}


@pytest.mark.slow(4)
def test_beyond_the_queue_calls_are_refused_as_by_a_full_server(server: MecServer) -> None:
    seen = _burst(server, 1000)
    assert set(seen) <= {"ok", "StatusCode.RESOURCE_EXHAUSTED"}
    assert seen["ok"] > server.config.queue / 2
