"""Bytes of an answer, put together from parts that protobuf wrote once.

Protobuf reads parts that follow one another as one message, so only the numbers of an answer
are new: three times, the queue's length and the outputs' contents. The result is what
`build_response` gives, field by field (a test compares them).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from testbed.wire.messages import MODEL_NAME, OUTPUTS, InferCall, build_response

_TIME_NAMES: Final = ("server_queue_ms", "server_ms", "server_wait_ms")


def write_answer(
    call: InferCall,
    predictions: NDArray[np.int16],
    confidences: NDArray[np.float32],
    *,
    server_queue_ms: float,
    server_ms: float,
    server_wait_ms: float,
    queue_length: int,
) -> bytes:
    """``build_response(...).SerializeToString()``, its fields in another order."""
    if call.typed:  # rare
        data: bytes = build_response(
            call,
            predictions,
            confidences,
            server_queue_ms=server_queue_ms,
            server_ms=server_ms,
            server_wait_ms=server_wait_ms,
            queue_length=queue_length,
        ).SerializeToString()
        return data
    n = len(predictions)
    queue, compute, wait = _TIME_PARTS
    parts = [
        _head(n, call.outputs),
        _TIMES.pack(queue, server_queue_ms, compute, server_ms, wait, server_wait_ms),
        _queue_length(queue_length),
    ]
    if call.request_id:
        parts.append(pb.ModelInferResponse(id=call.request_id).SerializeToString())
    for name in call.outputs:
        if name == "prediction":
            parts += (_content(2 * n), predictions.astype("<i2", copy=False).tobytes())
        else:
            parts += (_content(4 * n), confidences.astype("<f4", copy=False).tobytes())
    return b"".join(parts)


def _time_part(name: str) -> bytes:
    """A parameter's entry up to its eight bytes of value, which come last."""
    message = pb.ModelInferResponse()
    message.parameters[name].double_param = 1.0
    data: bytes = message.SerializeToString()
    return data[:-8]


_TIME_PARTS: Final = tuple(map(_time_part, _TIME_NAMES))
_TIMES: Final = struct.Struct("<" + "".join(f"{len(part)}sd" for part in _TIME_PARTS))


@lru_cache(256)
def _queue_length(value: int) -> bytes:
    message = pb.ModelInferResponse()
    message.parameters["queue_length"].int64_param = value
    data: bytes = message.SerializeToString()
    return data


@lru_cache(256)
def _head(n: int, outputs: tuple[str, ...]) -> bytes:
    message = pb.ModelInferResponse(model_name=MODEL_NAME)
    for name in outputs:
        message.outputs.add(name=name, datatype=OUTPUTS[name], shape=[n])
    data: bytes = message.SerializeToString()
    return data


@lru_cache(256)
def _content(size: int) -> bytes:
    """The tag and length before `size` bytes of an output."""
    data: bytes = pb.ModelInferResponse(raw_output_contents=[bytes(size)]).SerializeToString()
    return data[:-size]
