"""Requests of the wire: built by the device, checked by the server before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from cnn.common.errors import ConfigError, DataError
from cnn.frame_codec import FRAME_CODECS, FrameCodec, decode_frame
from cnn.topology import Action, Topology
from testbed.wire.protocol import (
    HASH_CHARS,
    INPUT_NAME,
    MAX_DEADLINE_MS,
    MODEL_NAME,
    OUTPUTS,
    REQUEST_PARAMETERS,
    InferCall,
    WireError,
    WireSpec,
    is_hash_of,
    parameter_of,
)


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


def id_field(request_id: str) -> bytes:
    """Bytes that give a ``ModelInferRequest`` an id, to be put in front of it."""
    data: bytes = pb.ModelInferRequest(id=request_id).SerializeToString()
    return data


def parse_request(data: bytes, spec: WireSpec) -> InferCall:
    """Bytes of a ``ModelInferRequest`` -> a checked call.

    Raises:
        WireError: if anything in it is wrong.
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
    check_model(request.model_name, request.model_version, spec)
    parameters = request.parameters
    unknown = sorted(name for name in parameters if name not in REQUEST_PARAMETERS)
    if unknown:
        raise _invalid(
            f"request parameter {unknown[0][:40]!r}", f"only {sorted(REQUEST_PARAMETERS)}"
        )
    _check_hash(request, spec)
    action = _action(spec.topology, _int(parameters, "exit"), _int(parameters, "split"))
    encoding = _encoding(parameters, action.split)
    payload = _payload(request, action.split, spec, encoding)
    typed = not request.raw_input_contents
    return InferCall(
        action.exit,
        action.split,
        payload,
        _deadline(parameters),
        request.id,
        _outputs(request),
        encoding,
        typed,
    )


def check_model(name: str, version: str, spec: WireSpec) -> None:
    """Check that the server has that model and (unless `version` is empty) that bundle.

    A version is the bundle's hash or its first `HASH_CHARS` or more digits.

    Raises:
        WireError: if it is not; its fault is ``model`` or ``bundle``.
    """
    if name != MODEL_NAME:
        raise WireError(
            f"model {name[:40]!r}",
            expected=f"{MODEL_NAME!r}",
            hint="ask for the model that this server has",
            fault="model",
        )
    if version:
        _check_bundle(version, spec)


def _check_hash(request: Any, spec: WireSpec) -> None:
    kind, stated = parameter_of(request.parameters, "bundle_hash")
    if kind != "string_param" or len(stated) < HASH_CHARS:
        raise _invalid(
            "no usable bundle_hash", f"its first {HASH_CHARS} or more hex digits as a string"
        )
    _check_bundle(stated, spec)


def _check_bundle(stated: str, spec: WireSpec) -> None:
    if not is_hash_of(stated, spec.bundle_hash):
        raise WireError(
            f"a request for bundle {stated[:12]!r}",
            expected=f"bundle {spec.bundle_hash[:12]}",
            hint="serve and run the same bundle",
            fault="bundle",
        )


def _action(topology: Topology, exit: int, split: int) -> Action:
    try:
        action = topology.action(exit, split)
    except ConfigError as error:
        raise WireError(error.given, expected=error.expected, hint=error.hint) from error
    if action.is_local:
        raise _invalid(f"action {action.name}, which is local", "a split below the exit")
    return action


def _encoding(parameters: Mapping[str, Any], split: int) -> FrameCodec:
    if "encoding" not in parameters:
        return "raw"
    kind, value = parameter_of(parameters, "encoding")
    for codec in FRAME_CODECS:
        if kind == "string_param" and value == codec and (codec == "raw" or split == 0):
            return codec
    raise _invalid(
        f"encoding {value!r:.40} at split {split}",
        f"one of {', '.join(FRAME_CODECS)}, and raw at any split but 0",
    )


def _payload(request: Any, split: int, spec: WireSpec, encoding: FrameCodec) -> NDArray[np.uint8]:
    names = [tensor.name for tensor in request.inputs]
    if names != [INPUT_NAME]:
        shown = ", ".join(repr(name[:40]) for name in names[:3]) or "none"
        raise _invalid(f"{len(names)} inputs ({shown})", f"one input named {INPUT_NAME!r}")
    tensor = request.inputs[0]
    if tensor.datatype != "UINT8":
        raise _invalid(f"input of type {tensor.datatype[:20]!r}", "UINT8")
    if tensor.parameters:
        raise _invalid("an input with parameters", "none of its own (no shared memory)")
    shape, of_frame = tuple(tensor.shape), spec.topology.payload_shape(split)
    if encoding != "raw":
        return _decoded(request, shape, of_frame, encoding)
    if shape[1:] != of_frame or not 1 <= shape[0] <= spec.max_batch:
        raise _invalid(
            f"payload shape {shape[:5]} at split {split}",
            f"(B, {', '.join(map(str, of_frame))}) with B in 1..{spec.max_batch}",
        )
    return np.frombuffer(_content(request, shape), np.uint8).reshape(shape)


def _content(request: Any, shape: tuple[int, ...]) -> bytes:
    """The input's bytes, as many as `shape` requires, from its raw or its typed contents."""
    tensor, size = request.inputs[0], math.prod(shape)
    if not request.raw_input_contents and tensor.HasField("contents"):
        return _typed_content(tensor.contents, size)
    if len(request.raw_input_contents) != 1 or tensor.HasField("contents"):
        raise _invalid(
            f"{len(request.raw_input_contents)} raw inputs"
            f"{' and typed contents' if tensor.HasField('contents') else ''}",
            "the input once, in raw_input_contents or in contents.uint_contents",
        )
    raw: bytes = request.raw_input_contents[0]
    if len(raw) != size:
        raise _invalid(f"{len(raw)} payload bytes", f"{size} for shape {shape}")
    return raw


def _typed_content(contents: Any, size: int) -> bytes:
    """Typed contents of a UINT8 tensor, in the protocol's field ``uint_contents``."""
    others = [field.name for field, _ in contents.ListFields() if field.name != "uint_contents"]
    if others:
        raise _invalid(f"typed contents in {others[0]}", "uint_contents, those of a UINT8 input")
    values = contents.uint_contents
    if len(values) != size:
        raise _invalid(f"{len(values)} values in uint_contents", f"{size}, as the shape says")
    if max(values) > 255:
        raise _invalid(f"{max(values)} in uint_contents", "UINT8 values, 0..255")
    return bytes(values)


def _decoded(
    request: Any, shape: tuple[int, ...], frame: tuple[int, int, int], encoding: FrameCodec
) -> NDArray[np.uint8]:
    """One encoded frame -> uint8 (1, H, W, 3). Its length is checked before its header, and its
    header before anything is decoded."""
    most = math.prod(frame)
    if len(shape) != 1 or not 1 <= shape[0] <= most:
        raise _invalid(
            f"{encoding} payload of shape {shape[:5]}", f"shape (n,) with n in 1..{most}"
        )
    try:
        return decode_frame(_content(request, shape), encoding, frame[0])[np.newaxis]
    except DataError as error:
        raise WireError(error.given, expected=error.expected, hint=error.hint) from error


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
    kind, value = parameter_of(parameters, "deadline_ms")
    if kind not in ("int64_param", "double_param") or not 0 < value <= MAX_DEADLINE_MS:
        raise _invalid(f"deadline_ms {value!r:.40}", f"a number in (0, {MAX_DEADLINE_MS:.0f}]")
    return float(value)


def _int(parameters: Mapping[str, Any], name: str) -> int:
    kind, value = parameter_of(parameters, name)
    if kind != "int64_param":
        raise _invalid(f"parameter {name} {value!r:.40}", "an int64 parameter")
    return int(value)


def _invalid(given: str, expected: str) -> WireError:
    return WireError(given, expected=expected, hint="correct the request")
