"""The wire: Open Inference Protocol v2 messages of a split exchange, without sockets.

One exchange is one unary ``ModelInfer`` call of ``inference.GRPCInferenceService``
(https://github.com/kserve/open-inference-protocol, with the raw tensor fields that
KServe and Triton share; messages from `tritonclient`):

* model name ``sliproad``; request parameters ``exit``, ``split`` (int64), ``bundle_hash``
  (string), optional ``deadline_ms`` (milliseconds that the sender will wait);
* one UINT8 input ``payload``, shape ``(B, *topology.payload_shape(split))``, in
  ``raw_input_contents``, or (larger and slower) in ``contents.uint_contents``;
* at split 0 optionally parameter ``encoding`` (string: ``webp``, ``jpeg``; absent or ``raw`` is
  the plain form): the input then holds the encoded bytes of one frame, shape ``(n,)``, n at most
  the frame's raw bytes;
* outputs ``prediction`` INT16 (B,) and ``confidence`` FP32 (B,), in ``raw_output_contents``, or
  in ``contents`` (``int_contents``, ``fp32_contents``) if the input came in ``contents``;
* the request's ``id``, repeated in the answer; a device sends one with every request and refuses
  an answer without it;
* response parameters ``server_queue_ms``, ``server_ms`` (decoder and tail), ``server_wait_ms``
  (the expected wait of a new request) and ``queue_length``.

Names, typed messages, answers and probes are here, requests in `testbed.wire.requests`. All of it
is a pure function of bytes and messages: any input becomes a typed object or a `WireError`,
never another exception.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from cnn.common.errors import ConfigError, RemoteError
from cnn.frame_codec import FrameCodec
from cnn.topology import Topology

MODEL_NAME: Final = "sliproad"
SERVICE: Final = "inference.GRPCInferenceService"
INPUT_NAME: Final = "payload"
OUTPUTS: Final = {"prediction": "INT16", "confidence": "FP32"}
REQUEST_PARAMETERS: Final = frozenset({"exit", "split", "bundle_hash", "deadline_ms", "encoding"})
HASH_CHARS: Final = 16
"""Hex digits of the bundle hash in each request: 64 bits tell bundles apart and save 48 bytes of
every frame's uplink. A server also accepts any longer prefix."""
MAX_DEADLINE_MS: Final = 3_600_000.0
MAX_WAIT_MS: Final = 600_000.0
"""Longest wait that an answer may report: no device waits longer for one."""
MAX_QUEUE_LENGTH: Final = 1_000_000
CLOCK_TOLERANCE_MS: Final = 1.0
"""Tolerance by which a server's times may exceed the whole exchange: both ends round their clocks,
and no two clocks run equally fast."""
READ_BYTES: Final = 2**20
"""Length up to which a message is always read: 151 frames of 48 x 48 pixels."""
MAX_MESSAGE_BYTES: Final = 2**31 - 1
"""gRPC's own limit."""
WIRE_OVERHEAD_BYTES: Final = 161
"""Bytes of the TCP stream on the uplink beside a payload: 103 of the request message
(id, parameters, shape) and 58 of gRPC and HTTP/2 framing. Measured with a counting proxy on a
warm connection, the same for every split of the shipped network
(`tests/testbed/device/test_device_loop.py`); of another payload it is a few bytes more or less.
TCP and IP headers are not included; the user-space link does not see them either."""
ENCODING_OVERHEAD_BYTES: Final = 18
"""Additional bytes of an encoded frame: the request parameter for the encoding, less the
shorter shape (counted on the messages in `tests/testbed/device/test_device_loop.py`)."""

Fault = Literal["invalid", "bundle", "model"]


class WireError(RemoteError):
    """A message from the other end that cannot be used.

    Attributes:
        fault: ``invalid`` (malformed or out of range), ``bundle`` (made for another
            bundle) or ``model`` (another model's name).
    """

    def __init__(self, given: str, *, expected: str, hint: str, fault: Fault = "invalid") -> None:
        super().__init__(given, expected=expected, hint=hint)
        self.fault: Fault = fault


@dataclass(frozen=True, slots=True)
class WireSpec:
    """The inputs that a server accepts.

    Attributes:
        bundle_hash: full content hash of the bundle, hex.
        topology: of the bundle: its actions that send, and the payload's shape at each split.
        max_batch: most frames in one request.

    Raises:
        ConfigError: if the network cannot be cut, or a full batch is too long for a message.
    """

    bundle_hash: str
    topology: Topology
    max_batch: int

    def __post_init__(self) -> None:
        if not self.topology.splits:
            raise ConfigError(
                f"bundle {self.bundle_hash[:12]} of {self.topology}, without a split",
                expected="a network that can be cut, so that a device can send something",
                hint="run it on the device alone, or serve another bundle",
            )
        if len(self.bundle_hash) < HASH_CHARS or self.max_batch < 1:
            raise ConfigError(
                f"bundle hash {self.bundle_hash!r}, max_batch {self.max_batch}",
                expected=f"a hash of {HASH_CHARS} or more digits, a batch >= 1",
                hint="give a bundle's hash, and correct the batch",
            )
        if self.max_message_bytes > MAX_MESSAGE_BYTES:
            raise ConfigError(
                f"max_batch {self.max_batch}: messages of {self.max_message_bytes} bytes",
                expected=f"at most {MAX_MESSAGE_BYTES}, as gRPC allows",
                hint="choose a smaller --max-batch",
            )

    @property
    def max_message_bytes(self) -> int:
        """Largest message that a server reads: a full batch of the largest payload in typed
        contents (up to two bytes a value) and 4 KiB for everything else, but at least 1 MiB, so
        that a batch beyond `max_batch` is read and answered with that error. gRPC refuses longer
        messages from their length prefix, before storing any of them, with the status of a full
        server."""
        full_bytes = 2 * self.max_batch * max(map(math.prod, self.topology.payload_shapes))
        return max(full_bytes, READ_BYTES) + 4096


class InferCall(NamedTuple):
    """A request that passed every check.

    Attributes:
        exit: exit asked for.
        split: blocks that the device has run, less than `exit`.
        payload: uint8 (B, ...), a read-only view of the message (nothing is copied), or the
            decoded frame.
        deadline_ms: how long the sender will wait from now; None if not given.
        request_id: the sender's id, echoed in the answer.
        outputs: names of the outputs asked for, in the order of the answer.
        encoding: encoding of the frame; ``raw`` at every split but 0.
        typed: the payload came in typed contents, so the answer must use them too.

    A tuple, because it is created in a quarter of the time: a server needs one for every request.
    """

    exit: int
    split: int
    payload: NDArray[np.uint8]
    deadline_ms: float | None
    request_id: str
    outputs: tuple[str, ...]
    encoding: FrameCodec = "raw"
    typed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A response that passed every check.

    Attributes:
        predictions: int16 (B,), classes.
        confidences: float32 (B,), calibrated, in [0, 1].
        server_queue_ms: wait of this request at the server.
        server_ms: decoder and tail at the server.
        server_wait_ms: expected wait of a new request there.
        queue_length: requests waiting there when it answered.
    """

    predictions: NDArray[np.int16]
    confidences: NDArray[np.float32]
    server_queue_ms: float
    server_ms: float
    server_wait_ms: float
    queue_length: int


def is_hash_of(stated: str, bundle_hash: str) -> bool:
    """Whether `stated` is a bundle's hash, or its first `HASH_CHARS` or more digits."""
    return len(stated) >= HASH_CHARS and bundle_hash.startswith(stated)


def printable(text: str) -> str:
    """Text of the other end in one line: characters that move a terminal's cursor become ``?``."""
    return "".join(c if c.isprintable() else "?" for c in text)


def parameter_of(parameters: Mapping[str, Any], name: str) -> tuple[str | None, Any]:
    # Reading a missing key of a protobuf map would insert it.
    if name not in parameters:
        return None, None
    parameter = parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    return kind, getattr(parameter, kind) if kind else None


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
        bundle_hash: of the requested bundle; if the answer states a version, it must be this
            hash or its first `HASH_CHARS` or more digits. None accepts any.

    Raises:
        WireError: if the answer is malformed, of another model, version or request, or has
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
    """Check that it answers this request, with the requested model and bundle."""
    if response.model_name != MODEL_NAME:
        raise _bad_answer(f"an answer of model {response.model_name[:40]!r}")
    version = response.model_version
    if version and bundle_hash is not None and not is_hash_of(version, bundle_hash):
        raise _bad_answer(f"an answer of version {version[:40]!r}")
    if response.id != request_id:
        raise _bad_answer(f"an answer to request {response.id[:40]!r} instead of {request_id!r}")


def _contents(response: Any, batch: int) -> dict[str, bytes]:
    """The bytes of both outputs by name, each of the length for `batch`."""
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
    a field that the protocol does not define, so every reader skips it."""
    if padding_bytes == 0:
        return b""
    field_15_of_bytes = 15 << 3 | 2
    low, high = padding_bytes & 0x7F, padding_bytes >> 7
    length = bytes([low | 0x80, high]) if high else bytes([low])
    return bytes([field_15_of_bytes]) + length + bytes(padding_bytes)


def check_live(data: bytes) -> None:
    """Check that this is a ``ServerLiveResponse`` with a live server.

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
    """Check that this ``ModelMetadataResponse`` describes the device's bundle.

    Raises:
        WireError: if the server has another bundle, or is not a sliproad server.
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
