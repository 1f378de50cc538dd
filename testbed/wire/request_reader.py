"""Requests of one kind differ in their payload alone, so all else is read and checked once.

A ``ModelInferRequest`` ends with its payload. If the bytes before that field form a message
without a payload, then protobuf reads the whole as that message with that payload (messages
put one after the other are merged), whatever the payload's bytes are. So a message that begins
with the same bytes, and is as long, means the same call with its own payload. An id of a few
characters in front of all, as devices send it, is read apart and is no part of the kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from testbed.wire.messages import InferCall, WireSpec, parse_request

MAX_KINDS: Final = 256
"""Kinds remembered: more than all actions and batch sizes of one bundle's devices."""
MAX_HEADER_BYTES: Final = 1024
_PAYLOAD_TAG: Final = 7 << 3 | 2
"""raw_input_contents, length-delimited."""
_ID_TAG: Final = 3 << 3 | 2
"""id, length-delimited."""
_SOME_ID: Final = bytes([_ID_TAG, 1]) + b"x"
_MAX_ID_CHARS: Final = 127
"""Longest id that is read apart: its length is one byte."""
_NO_BYTES: Final = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class _Kind:
    call: InferCall
    shape: tuple[int, ...]
    message_bytes: int


class RequestReader:
    """`parse_request` that remembers; for one thread or several.

    Args:
        spec: what the server accepts.
    """

    def __init__(self, spec: WireSpec) -> None:
        self._spec = spec
        self._header_bytes: dict[int, int] = {}
        self._kinds: dict[bytes, _Kind] = {}

    def read(self, data: bytes) -> InferCall:
        """Bytes of a ``ModelInferRequest`` -> a checked call; raises `WireError`."""
        start, request_id = _leading_id(data)
        size = self._header_bytes.get(len(data) - start)
        if size is not None:
            kind = self._kinds.get(data[start : start + size])
            if kind is not None and kind.message_bytes == len(data) - start:
                exit, split, _, deadline_ms, _, outputs, _, _ = kind.call
                payload = np.frombuffer(data, np.uint8, offset=start + size).reshape(kind.shape)
                return InferCall(exit, split, payload, deadline_ms, request_id, outputs)
        call = parse_request(data, self._spec)
        if call.request_id == request_id:
            self._remember(data[start:] if start else data, call)
        return call

    def _remember(self, data: bytes, call: InferCall) -> None:
        # Encoded frames' lengths and typed contents change with every request.
        if call.encoding != "raw" or call.typed:
            return
        size = len(data) - call.payload.size
        field = bytes([_PAYLOAD_TAG]) + _varint(call.payload.size)
        if size > MAX_HEADER_BYTES or not data[:size].endswith(field):
            return
        before = pb.ModelInferRequest()
        try:
            before.ParseFromString(_SOME_ID + data[: size - len(field)])
        except (DecodeError, ValueError):
            return
        if before.raw_input_contents or before.id != "x":  # an id of its own would win
            return
        if len(self._kinds) >= MAX_KINDS:
            self._kinds, self._header_bytes = {}, {}
        # The payload itself refers to the whole message and is not kept.
        kept = InferCall(call.exit, call.split, _NO_BYTES, call.deadline_ms, "", call.outputs)
        self._kinds[data[:size]] = _Kind(kept, call.payload.shape, len(data))
        self._header_bytes[len(data)] = size


def _leading_id(data: bytes) -> tuple[int, str]:
    """Where the rest of a message begins, and the short id in front of it; 0 and "" without."""
    if len(data) > 2 and data[0] == _ID_TAG and data[1] <= _MAX_ID_CHARS:
        end = 2 + data[1]
        if end < len(data) and data[2:end].isascii():
            return end, data[2:end].decode("ascii")
    return 0, ""


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
