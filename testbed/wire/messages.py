"""The wire: Open Inference Protocol v2 messages of a split exchange, without any socket.

One exchange is one unary ``ModelInfer`` call of ``inference.GRPCInferenceService``
(https://github.com/kserve/open-inference-protocol, with the raw tensor fields that
KServe and Triton share; messages from `tritonclient`):

* model name ``sliproad``; request parameters ``exit``, ``split`` (int64), ``bundle_hash``
  (string), optional ``deadline_ms`` (milliseconds the sender will wait);
* one UINT8 input ``payload``, shape ``(B, *wire_shape(split))``, in ``raw_input_contents``, or
  (larger and slower) in ``contents.uint_contents``;
* at split 0 optionally parameter ``encoding`` (string: ``webp``, ``jpeg``; absent or ``raw`` is
  the plain form): the input is then one frame's encoded bytes, shape ``(n,)``, n at most the
  frame's raw bytes;
* outputs ``prediction`` INT16 (B,) and ``confidence`` FP32 (B,), in ``raw_output_contents``, or
  in ``contents`` (``int_contents``, ``fp32_contents``) if the input came so;
* the request's ``id``, which the answer repeats; a device sends one with every request and takes
  no answer without it;
* response parameters ``server_queue_ms``, ``server_ms`` (decoder and tail), ``server_wait_ms``
  (the wait that a new request must expect) and ``queue_length``.

Everything here is a pure function of bytes and messages: whatever arrives becomes a typed
object or a `WireError`, never another exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from testbed.wire.forms import (
    HASH_CHARS,
    INPUT_NAME,
    MAX_QUEUE_LENGTH,
    MAX_WAIT_MS,
    MODEL_NAME,
    OUTPUTS,
    SERVICE,
    Answer,
    Fault,
    HasWireShape,
    InferCall,
    WireError,
    WireSpec,
    is_hash_of,
    parameter_of,
    printable,
)
from testbed.wire.requests import (
    build_request,
    check_model,
    check_request,
    id_field,
    parse_request,
)

__all__ = [
    "HASH_CHARS",
    "INPUT_NAME",
    "MODEL_NAME",
    "OUTPUTS",
    "SERVICE",
    "Answer",
    "Fault",
    "HasWireShape",
    "InferCall",
    "WireError",
    "WireSpec",
    "build_request",
    "build_response",
    "check_live",
    "check_metadata",
    "check_model",
    "check_request",
    "id_field",
    "parse_request",
    "parse_response",
    "probe_message",
]


def build_response(
    call: InferCall,
    predictions: NDArray[np.int16],
    confidences: NDArray[np.float32],
    *,
    server_queue_ms: float,
    server_ms: float,
    server_wait_ms: float,
    queue_length: int,
) -> Any:
    """The ``ModelInferResponse`` message of a call; times in milliseconds."""
    response = pb.ModelInferResponse(model_name=MODEL_NAME, id=call.request_id)
    parameters = response.parameters
    parameters["server_queue_ms"].double_param = server_queue_ms
    parameters["server_ms"].double_param = server_ms
    parameters["server_wait_ms"].double_param = server_wait_ms
    parameters["queue_length"].int64_param = queue_length
    for name in call.outputs:
        values = (
            np.ascontiguousarray(predictions, "<i2")
            if name == "prediction"
            else np.ascontiguousarray(confidences, "<f4")
        )
        tensor = response.outputs.add(name=name, datatype=OUTPUTS[name], shape=values.shape)
        if not call.typed:
            response.raw_output_contents.append(values.tobytes())
        elif name == "prediction":
            tensor.contents.int_contents.extend(values.tolist())
        else:
            tensor.contents.fp32_contents.extend(values.tolist())
    return response


def parse_response(
    data: bytes, batch: int, request_id: str = "", bundle_hash: str | None = None
) -> Answer:
    """Bytes of a ``ModelInferResponse`` to a request of `batch` frames -> a checked answer.

    Args:
        data: the message.
        batch: frames of the request.
        request_id: of the request; the answer must repeat it.
        bundle_hash: of the bundle asked for; if the answer states a version, it must be this
            one's hash or the first `HASH_CHARS` or more digits of it. None takes any.

    Raises:
        WireError: if the answer is malformed, of another model, version or request, or holds
            impossible values.
    """
    response = pb.ModelInferResponse()
    try:
        response.ParseFromString(data)
    except (DecodeError, ValueError) as error:
        raise _bad_answer(f"{len(data)} bytes that are no ModelInferResponse") from error
    _check_origin(response, request_id, bundle_hash)
    raw = _contents(response, batch)
    predictions = np.frombuffer(raw["prediction"], "<i2")
    if predictions.min() < 0:
        raise _bad_answer(f"class {predictions.min()}")
    confidences = np.frombuffer(raw["confidence"], "<f4")
    if not (np.isfinite(confidences).all() and confidences.min() >= 0 and confidences.max() <= 1):
        raise _bad_answer("a confidence outside 0..1")
    parameters = response.parameters
    kind, queue_length = parameter_of(parameters, "queue_length")
    if kind != "int64_param" or not 0 <= queue_length <= MAX_QUEUE_LENGTH:
        raise _bad_answer(f"queue_length {queue_length!r:.40}")
    return Answer(
        predictions,
        confidences,
        server_queue_ms=_milliseconds(parameters, "server_queue_ms"),
        server_ms=_milliseconds(parameters, "server_ms"),
        server_wait_ms=_milliseconds(parameters, "server_wait_ms"),
        queue_length=queue_length,
    )


def _check_origin(response: Any, request_id: str, bundle_hash: str | None) -> None:
    """Is it an answer to this request, of the model and bundle that were asked?"""
    if response.model_name != MODEL_NAME:
        raise _bad_answer(f"an answer of model {response.model_name[:40]!r}")
    version = response.model_version
    if version and bundle_hash is not None and not is_hash_of(version, bundle_hash):
        raise _bad_answer(f"an answer of version {version[:40]!r}")
    if response.id != request_id:
        raise _bad_answer(f"an answer to request {response.id[:40]!r} instead of {request_id!r}")


def _contents(response: Any, batch: int) -> dict[str, bytes]:
    """The bytes of both outputs by name, each as long as `batch` says."""
    outputs = response.outputs
    if len(outputs) != 2 or len(response.raw_output_contents) != 2:
        raise _bad_answer(f"{len(outputs)} outputs")
    raw: dict[str, bytes] = {}
    for tensor, content in zip(outputs, response.raw_output_contents, strict=True):
        if OUTPUTS.get(tensor.name) != tensor.datatype or list(tensor.shape) != [batch]:
            raise _bad_answer(f"output {tensor.name[:40]!r} of another type or shape")
        if tensor.HasField("contents"):
            raise _bad_answer(f"output {tensor.name!r} both raw and typed")
        raw[tensor.name] = content
    if len(raw) != 2 or len(raw["prediction"]) != 2 * batch or len(raw["confidence"]) != 4 * batch:
        raise _bad_answer("outputs of another length")
    return raw


def probe_message(padding_bytes: int) -> bytes:
    """Bytes of a ``ServerLiveRequest`` with padding (0..16383 bytes, and two or three around it):
    a field that the protocol does not define, which every reader skips."""
    if padding_bytes == 0:
        return b""
    field_15_of_bytes = 15 << 3 | 2
    low, high = padding_bytes & 0x7F, padding_bytes >> 7
    length = bytes([low | 0x80, high]) if high else bytes([low])
    return bytes([field_15_of_bytes]) + length + bytes(padding_bytes)


def check_live(data: bytes) -> None:
    """Is this a ``ServerLiveResponse`` that says so?

    Raises:
        WireError: if it is not.
    """
    try:
        live = pb.ServerLiveResponse.FromString(data).live
    except (DecodeError, ValueError) as error:
        raise _bad_answer(f"{len(data)} bytes that are no ServerLiveResponse") from error
    if not live:
        raise _bad_answer("a server that says it is not live")


def check_metadata(message: Any, bundle_hash: str) -> None:
    """Does this ``ModelMetadataResponse`` describe the bundle the device has?

    Raises:
        WireError: if the server has another bundle, or is no sliproad server.
    """
    if message.name != MODEL_NAME or not message.versions:
        raise WireError(
            f"a server of model {message.name[:40]!r}",
            expected=f"a server of {MODEL_NAME!r} that states its bundle hash as version",
            hint="start one with `sliproad testbed serve`",
            fault="model",
        )
    if bundle_hash not in message.versions:
        raise WireError(
            f"the server has bundle {printable(message.versions[0][:12])}",
            expected=f"bundle {bundle_hash[:12]}, as on the device",
            hint="serve and run the same bundle",
            fault="bundle",
        )


def _milliseconds(parameters: Mapping[str, Any], name: str) -> float:
    kind, value = parameter_of(parameters, name)
    if kind != "double_param" or not 0 <= value <= MAX_WAIT_MS:
        raise _bad_answer(f"{name} {value!r:.40}")
    return float(value)


def _bad_answer(given: str) -> WireError:
    return WireError(
        given, expected="a sliproad answer for this request", hint="check what listens there"
    )
