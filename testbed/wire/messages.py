"""The wire: Open Inference Protocol v2 messages of a split exchange, without any socket.

One exchange is one unary ``ModelInfer`` call of ``inference.GRPCInferenceService``
(https://github.com/kserve/open-inference-protocol, with the raw tensor fields that
KServe and Triton share; messages from `tritonclient`):

* model name ``sliproad``; request parameters ``exit``, ``split`` (int64), ``bundle_hash``
  (string), optional ``deadline_ms`` (milliseconds the sender will wait);
* one UINT8 input ``payload``, shape ``(B, *wire_shape(split))``, in ``raw_input_contents``;
* at split 0 optionally parameter ``encoding`` (string: ``webp``, ``jpeg``; absent or ``raw`` is
  the plain form): the input is then one frame's encoded bytes, shape ``(n,)``, n at most the
  frame's raw bytes;
* outputs ``prediction`` INT16 (B,) and ``confidence`` FP32 (B,), in ``raw_output_contents``;
* response parameters ``server_queue_ms``, ``server_ms`` (decoder and tail), ``server_wait_ms``
  (the wait that a new request must expect) and ``queue_length``.

Everything here is a pure function of bytes and messages: whatever arrives becomes a typed
object or a `WireError`, never another exception.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from cnn.action import N_EXITS, Action
from cnn.errors import ConfigError, DataError, RemoteError
from cnn.frame_codec import FRAME_CODECS, FrameCodec, decode_frame

MODEL_NAME: Final = "sliproad"
SERVICE: Final = "inference.GRPCInferenceService"
INPUT_NAME: Final = "payload"
OUTPUTS: Final = {"prediction": "INT16", "confidence": "FP32"}
REQUEST_PARAMETERS: Final = frozenset({"exit", "split", "bundle_hash", "deadline_ms", "encoding"})
HASH_CHARS: Final = 16
"""Hex digits of the bundle hash that travel with each request: 64 bits tell bundles apart
and save 48 bytes of every frame's uplink. A server takes any longer prefix too."""
MAX_DEADLINE_MS: Final = 3_600_000.0

Fault = Literal["invalid", "bundle", "model"]


class WireError(RemoteError):
    """A message from the other end that cannot be used.

    Attributes:
        fault: ``invalid`` (malformed or out of range), ``bundle`` (made for another
            bundle) or ``model`` (another model's name).
    """

    def __init__(self, given: str, *, expected: str, mend: str, fault: Fault = "invalid") -> None:
        super().__init__(given, expected=expected, mend=mend)
        self.fault: Fault = fault


class HasWireShape(Protocol):
    """Whatever knows the payload shapes: a `cnn.runtime.SplitRuntime`."""

    def wire_shape(self, split: int) -> tuple[int, int, int]:
        """Shape of one frame's payload at `split` (0..4), without the batch."""
        ...


@dataclass(frozen=True, slots=True)
class WireSpec:
    """What a server accepts.

    Attributes:
        bundle_hash: full content hash of the bundle, hex.
        shapes: payload shape of one frame at splits 0..4.
        max_batch: most frames in one request.
    """

    bundle_hash: str
    shapes: tuple[tuple[int, int, int], ...]
    max_batch: int

    def __post_init__(self) -> None:
        if len(self.shapes) != N_EXITS or len(self.bundle_hash) < HASH_CHARS or self.max_batch < 1:
            raise ConfigError(
                f"{len(self.shapes)} payload shapes, bundle hash {self.bundle_hash!r}, "
                f"max_batch {self.max_batch}",
                expected=f"{N_EXITS} shapes, a hash of {HASH_CHARS} or more digits, a batch >= 1",
                mend="build it with WireSpec.of",
            )

    @classmethod
    def of(cls, bundle_hash: str, shapes: HasWireShape, max_batch: int) -> WireSpec:
        """Spec of a runtime's bundle."""
        return cls(bundle_hash, tuple(shapes.wire_shape(s) for s in range(N_EXITS)), max_batch)

    def frame_bytes(self, split: int) -> int:
        """Payload bytes of one frame at `split`."""
        return math.prod(self.shapes[split])

    @property
    def max_message_bytes(self) -> int:
        """Largest message a server needs to read: a full batch of the largest payload and
        4 KiB for everything else. gRPC refuses longer ones from their length prefix, before
        a byte of them is stored."""
        return self.max_batch * max(map(math.prod, self.shapes)) + 4096


@dataclass(frozen=True, slots=True, eq=False)
class InferCall:
    """A request that passed every check.

    Attributes:
        exit: exit asked for, 1..5.
        split: blocks that the device has run, 0..4, less than `exit`.
        payload: uint8 (B, ...), a read-only view of the message (nothing is copied), or the
            decoded frame.
        deadline_ms: how long the sender will wait from now; None if it did not say.
        request_id: the sender's id, echoed in the answer.
        outputs: names of the outputs asked for, in the order of the answer.
        encoding: how the frame came; ``raw`` at every split but 0.
    """

    exit: int
    split: int
    payload: NDArray[np.uint8]
    deadline_ms: float | None
    request_id: str
    outputs: tuple[str, ...]
    encoding: FrameCodec = "raw"


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A response that passed every check.

    Attributes:
        predictions: int16 (B,), classes.
        confidences: float32 (B,), calibrated, in [0, 1].
        server_queue_ms: this request's wait at the server.
        server_ms: decoder and tail at the server.
        server_wait_ms: wait that a new request must expect there.
        queue_length: requests waiting there when it answered.
    """

    predictions: NDArray[np.int16]
    confidences: NDArray[np.float32]
    server_queue_ms: float
    server_ms: float
    server_wait_ms: float
    queue_length: int


def build_request(
    spec_hash: str,
    exit: int,
    split: int,
    shape: tuple[int, ...],
    encoding: FrameCodec = "raw",
) -> Any:
    """A reusable ``ModelInferRequest`` whose ``raw_input_contents[0]`` is still empty.

    Args:
        spec_hash: bundle hash of the device.
        exit: exit wanted.
        split: blocks run on the device.
        shape: payload shape with the batch; (n,) for an encoded frame of n bytes.
        encoding: of the frame at split 0.
    """
    request = pb.ModelInferRequest(model_name=MODEL_NAME)
    request.parameters["exit"].int64_param = exit
    request.parameters["split"].int64_param = split
    request.parameters["bundle_hash"].string_param = spec_hash[:HASH_CHARS]
    if encoding != "raw":
        request.parameters["encoding"].string_param = encoding
    request.inputs.add(name=INPUT_NAME, datatype="UINT8", shape=shape)
    request.raw_input_contents.append(b"")
    return request


def parse_request(data: bytes, spec: WireSpec) -> InferCall:
    """Bytes of a ``ModelInferRequest`` -> a checked call.

    Raises:
        WireError: whatever is wrong with it.
    """
    request = pb.ModelInferRequest()
    try:
        request.ParseFromString(data)
    except (DecodeError, ValueError) as error:
        raise _invalid(
            f"{len(data)} bytes that are no ModelInferRequest", "an Open Inference Protocol message"
        ) from error
    return check_request(request, spec)


def check_request(request: Any, spec: WireSpec) -> InferCall:
    """A ``ModelInferRequest`` message -> a checked call; raises `WireError`."""
    if request.model_name != MODEL_NAME:
        raise WireError(
            f"model {request.model_name[:40]!r}",
            expected=f"{MODEL_NAME!r}",
            mend="ask for the model that this server has",
            fault="model",
        )
    parameters = request.parameters
    unknown = sorted(name for name in parameters if name not in REQUEST_PARAMETERS)
    if unknown:
        raise _invalid(
            f"request parameter {unknown[0][:40]!r}", f"only {sorted(REQUEST_PARAMETERS)}"
        )
    _check_hash(request, spec)
    action = _action(_int(parameters, "exit"), _int(parameters, "split"))
    encoding = _encoding(parameters, action.split)
    payload = _payload(request, action.split, spec, encoding)
    return InferCall(
        action.exit,
        action.split,
        payload,
        _deadline(parameters),
        request.id,
        _outputs(request),
        encoding,
    )


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
        response.outputs.add(name=name, datatype=OUTPUTS[name], shape=values.shape)
        response.raw_output_contents.append(values.tobytes())
    return response


def parse_response(data: bytes, batch: int) -> Answer:
    """Bytes of a ``ModelInferResponse`` to a request of `batch` frames -> a checked answer.

    Raises:
        WireError: if the answer is malformed, of another model, or holds impossible values.
    """
    response = pb.ModelInferResponse()
    try:
        response.ParseFromString(data)
    except (DecodeError, ValueError) as error:
        raise _bad_answer(f"{len(data)} bytes that are no ModelInferResponse") from error
    if response.model_name != MODEL_NAME:
        raise _bad_answer(f"an answer of model {response.model_name[:40]!r}")
    outputs = response.outputs
    if len(outputs) != 2 or len(response.raw_output_contents) != 2:
        raise _bad_answer(f"{len(outputs)} outputs")
    raw: dict[str, bytes] = {}
    for tensor, content in zip(outputs, response.raw_output_contents, strict=True):
        if OUTPUTS.get(tensor.name) != tensor.datatype or list(tensor.shape) != [batch]:
            raise _bad_answer(f"output {tensor.name[:40]!r} of another type or shape")
        raw[tensor.name] = content
    if len(raw) != 2 or len(raw["prediction"]) != 2 * batch or len(raw["confidence"]) != 4 * batch:
        raise _bad_answer("outputs of another length")
    confidences = np.frombuffer(raw["confidence"], "<f4")
    if not (np.isfinite(confidences).all() and confidences.min() >= 0 and confidences.max() <= 1):
        raise _bad_answer("a confidence outside 0..1")
    parameters = response.parameters
    _, queue_length = _parameter(parameters, "queue_length")
    if not isinstance(queue_length, int) or queue_length < 0:
        raise _bad_answer(f"queue_length {queue_length!r:.40}")
    return Answer(
        np.frombuffer(raw["prediction"], "<i2"),
        confidences,
        server_queue_ms=_milliseconds(parameters, "server_queue_ms"),
        server_ms=_milliseconds(parameters, "server_ms"),
        server_wait_ms=_milliseconds(parameters, "server_wait_ms"),
        queue_length=queue_length,
    )


def probe_message(padding_bytes: int) -> bytes:
    """Bytes of a ``ServerLiveRequest`` with padding (0..16383 bytes, and two or three around it):
    a field that the protocol does not define, which every reader skips."""
    if padding_bytes == 0:
        return b""
    field_15_of_bytes = 15 << 3 | 2
    low, high = padding_bytes & 0x7F, padding_bytes >> 7
    length = bytes([low | 0x80, high]) if high else bytes([low])
    return bytes([field_15_of_bytes]) + length + bytes(padding_bytes)


def check_metadata(message: Any, bundle_hash: str) -> None:
    """Does this ``ModelMetadataResponse`` describe the bundle the device has?

    Raises:
        WireError: if the server has another bundle, or is no sliproad server.
    """
    if message.name != MODEL_NAME or not message.versions:
        raise WireError(
            f"a server of model {message.name[:40]!r}",
            expected=f"a server of {MODEL_NAME!r} that states its bundle hash as version",
            mend="start one with `sliproad testbed serve`",
            fault="model",
        )
    if bundle_hash not in message.versions:
        raise WireError(
            f"the server has bundle {message.versions[0][:12]}",
            expected=f"bundle {bundle_hash[:12]}, as on the device",
            mend="serve and run the same bundle",
            fault="bundle",
        )


def _check_hash(request: Any, spec: WireSpec) -> None:
    kind, stated = _parameter(request.parameters, "bundle_hash")
    versions = [request.model_version] if request.model_version else []
    if kind != "string_param" or len(stated) < HASH_CHARS:
        raise _invalid(
            "no usable bundle_hash", f"its first {HASH_CHARS} or more hex digits as a string"
        )
    for text in [stated, *versions]:
        if not spec.bundle_hash.startswith(text) or len(text) < HASH_CHARS:
            raise WireError(
                f"a request for bundle {text[:12]!r}",
                expected=f"bundle {spec.bundle_hash[:12]}",
                mend="serve and run the same bundle",
                fault="bundle",
            )


def _action(exit: int, split: int) -> Action:
    try:
        action = Action(exit, split)
    except ConfigError as error:
        raise WireError(error.given, expected=error.expected, mend=error.mend) from error
    if action.is_local:
        raise _invalid(f"action {action.name}, which is local", "a split below the exit")
    return action


def _encoding(parameters: Mapping[str, Any], split: int) -> FrameCodec:
    if "encoding" not in parameters:
        return "raw"
    kind, value = _parameter(parameters, "encoding")
    for codec in FRAME_CODECS:
        if kind == "string_param" and value == codec and (codec == "raw" or split == 0):
            return codec
    raise _invalid(
        f"encoding {value!r:.40} at split {split}",
        f"one of {', '.join(FRAME_CODECS)}, and raw at any split but 0",
    )


def _payload(request: Any, split: int, spec: WireSpec, encoding: FrameCodec) -> NDArray[np.uint8]:
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT_NAME:
        raise _invalid(f"{len(request.inputs)} inputs", f"one input named {INPUT_NAME!r}")
    tensor = request.inputs[0]
    if tensor.datatype != "UINT8" or tensor.parameters or tensor.HasField("contents"):
        raise _invalid(
            f"input of type {tensor.datatype[:20]!r} or with parameters or typed contents",
            "UINT8 in raw_input_contents",
        )
    shape = tuple(tensor.shape)
    if encoding != "raw":
        return _decoded(request, shape, spec.shapes[split], encoding)
    if shape[1:] != spec.shapes[split] or not 1 <= shape[0] <= spec.max_batch:
        raise _invalid(
            f"payload shape {shape[:5]} at split {split}",
            f"(B, {', '.join(map(str, spec.shapes[split]))}) with B in 1..{spec.max_batch}",
        )
    if len(request.raw_input_contents) != 1:
        raise _invalid(f"{len(request.raw_input_contents)} raw inputs", "one")
    raw = request.raw_input_contents[0]
    if len(raw) != math.prod(shape):
        raise _invalid(f"{len(raw)} payload bytes", f"{math.prod(shape)} for shape {shape}")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def _decoded(
    request: Any, shape: tuple[int, ...], frame: tuple[int, int, int], encoding: FrameCodec
) -> NDArray[np.uint8]:
    """One encoded frame -> uint8 (1, H, W, 3). Its length is checked before its header, and its
    header before anything is decoded."""
    most = math.prod(frame)
    if len(shape) != 1 or not 1 <= shape[0] <= most or len(request.raw_input_contents) != 1:
        raise _invalid(
            f"{encoding} payload of shape {shape[:5]}", f"shape (n,) with n in 1..{most}"
        )
    raw = request.raw_input_contents[0]
    if len(raw) != shape[0]:
        raise _invalid(f"{len(raw)} payload bytes", f"{shape[0]} for shape {shape}")
    try:
        return decode_frame(raw, encoding, frame[0])[np.newaxis]
    except DataError as error:
        raise WireError(error.given, expected=error.expected, mend=error.mend) from error


def _outputs(request: Any) -> tuple[str, ...]:
    asked = request.outputs
    if not asked:
        return tuple(OUTPUTS)
    names = tuple(dict.fromkeys(output.name for output in asked))
    if any(name not in OUTPUTS for name in names) or any(output.parameters for output in asked):
        raise _invalid(
            f"outputs {[name[:40] for name in names[:3]]}", f"plain outputs among {list(OUTPUTS)}"
        )
    return names


def _deadline(parameters: Mapping[str, Any]) -> float | None:
    if "deadline_ms" not in parameters:
        return None
    kind, value = _parameter(parameters, "deadline_ms")
    if kind not in ("int64_param", "double_param") or not 0 < value <= MAX_DEADLINE_MS:
        raise _invalid(f"deadline_ms {value!r:.40}", f"a number in (0, {MAX_DEADLINE_MS:.0f}]")
    return float(value)


def _int(parameters: Mapping[str, Any], name: str) -> int:
    kind, value = _parameter(parameters, name)
    if kind != "int64_param":
        raise _invalid(f"parameter {name} {value!r:.40}", "an int64 parameter")
    return int(value)


def _parameter(parameters: Mapping[str, Any], name: str) -> tuple[str | None, Any]:
    # Reading a missing key of a protobuf map would insert it.
    if name not in parameters:
        return None, None
    parameter = parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    return kind, getattr(parameter, kind) if kind else None


def _milliseconds(parameters: Mapping[str, Any], name: str) -> float:
    kind, value = _parameter(parameters, name)
    if kind != "double_param" or not 0 <= value <= MAX_DEADLINE_MS:
        raise _bad_answer(f"{name} {value!r:.40}")
    return float(value)


def _invalid(given: str, expected: str) -> WireError:
    return WireError(given, expected=expected, mend="correct the request")


def _bad_answer(given: str) -> WireError:
    return WireError(
        given, expected="a sliproad answer for this request", mend="check what listens there"
    )
