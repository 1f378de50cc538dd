"""The reader that remembers and the writer of prepared parts mean what protobuf means."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from tritonclient.grpc import service_pb2 as pb

from cnn.bundle import load_bundle
from cnn.runtime import SplitRuntime
from testbed.wire.answer_writer import write_answer
from testbed.wire.messages import (
    InferCall,
    WireError,
    WireSpec,
    build_request,
    build_response,
    id_field,
    parse_request,
)
from testbed.wire.request_reader import MAX_KINDS, RequestReader

BUNDLE = load_bundle()
SPEC = WireSpec.of(BUNDLE.hash, SplitRuntime(BUNDLE), max_batch=4)


def request(
    exit: int = 5, split: int = 4, batch: int = 1, seed: int = 0, deadline_ms: float | None = None
) -> Any:
    shape = (batch, *SPEC.shapes[split])
    message = build_request(BUNDLE.hash, exit, split, shape)
    message.raw_input_contents[0] = np.random.default_rng(seed).bytes(math.prod(shape))
    if deadline_ms is not None:
        message.parameters["deadline_ms"].double_param = deadline_ms
    return message


def outcome(read: Any, *args: Any) -> Any:
    """All that a call says, or how it was refused."""
    try:
        call: InferCall = read(*args)
    except WireError as error:
        return error.fault, str(error)
    return (
        call.exit, call.split, call.payload.shape, call.payload.tobytes(), call.deadline_ms,
        call.request_id, call.outputs, call.encoding, call.typed,
    )  # fmt: skip


FRONTS = [
    id_field("abcd"),
    id_field("a-z_"),
    id_field("x" * 200),
    id_field("ä"),
    b"\x1a\x00",
    id_field("one") + id_field("two"),
    id_field("one") + b"\x1a\x00",
    b"\x1a\x00\x1a\x00",
    b"\x1a\x02\xff\xff",
]
"""Ids in front of a message, as devices send them, twice, empty, and in no UTF-8."""


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 5), st.integers(0, 4), st.integers(1, 5), st.integers(0, 3),
            st.sampled_from([None, 1.0, 250.0, -1.0]), st.sampled_from(["", "", "7"]),
            st.sampled_from([b"", *FRONTS]),
        ),
        min_size=2, max_size=8,
    )
)  # fmt: skip
def test_the_same_call_whether_or_not_its_kind_is_known(plans: list[tuple[Any, ...]]) -> None:
    reader = RequestReader(SPEC)
    for exit, split, batch, seed, deadline_ms, request_id, front in [*plans, *plans]:
        message = request(exit, split, batch, seed, deadline_ms)
        message.id = request_id
        data = front + message.SerializeToString()
        assert outcome(reader.read, data) == outcome(parse_request, data, SPEC)


Edits = list[tuple[int, bytes, int]]
_edits = st.lists(
    st.tuples(st.integers(-40, 700), st.binary(max_size=6), st.integers(0, 6)), max_size=4
)


@settings(max_examples=500, deadline=None)
@given(_edits, _edits)
def test_damage_before_and_after_a_kind_is_known(first: Edits, second: Edits) -> None:
    reader = RequestReader(SPEC)
    good = request().SerializeToString()
    rounds: list[Edits] = [first, [], second, []]
    for edits in rounds:
        data = bytearray(good)
        for at, put, cut in edits:
            data[at : at + cut] = put
        assert outcome(reader.read, bytes(data)) == outcome(parse_request, bytes(data), SPEC)


def test_bytes_that_only_look_like_the_payload_field_are_not_taken_for_it() -> None:
    """An unknown field at the end whose content imitates the payload's field."""
    size = math.prod(SPEC.shapes[4])
    message = request()
    true_payload = message.raw_input_contents[0]
    imitation = pb.ModelInferRequest(raw_input_contents=[true_payload]).SerializeToString()
    tag = bytes([15 << 3 | 2]) + bytes([len(imitation) & 0x7F | 0x80, len(imitation) >> 7])
    data = message.SerializeToString() + tag + imitation
    reader = RequestReader(SPEC)
    assert outcome(reader.read, data) == outcome(parse_request, data, SPEC)
    other = data[:-size] + bytes(size)
    assert outcome(reader.read, other) == outcome(parse_request, other, SPEC)
    assert outcome(reader.read, other)[3] == true_payload


def test_a_payload_is_a_view_of_its_own_message() -> None:
    reader = RequestReader(SPEC)
    calls = [reader.read(request(seed=k).SerializeToString()) for k in range(3)]
    for k, call in enumerate(calls):
        assert call.payload.tobytes() == request(seed=k).raw_input_contents[0]
        assert not call.payload.flags.owndata
        assert not call.payload.flags.writeable


def test_what_is_remembered_is_bounded() -> None:
    reader = RequestReader(SPEC)
    for k in range(2 * MAX_KINDS + 3):
        data = request(deadline_ms=1.0 + k).SerializeToString()
        assert reader.read(data).deadline_ms == 1.0 + k
    assert len(reader._kinds) <= MAX_KINDS
    assert len(reader._header_bytes) <= MAX_KINDS
    reader._kinds.clear()
    message = request()
    message.model_version = BUNDLE.hash
    message.id = "x" * 5000
    reader.read(message.SerializeToString())
    assert not reader._kinds  # an id is new each time
    for k in range(50):
        assert (
            reader.read(id_field(f"{k:04}") + request().SerializeToString()).request_id == f"{k:04}"
        )
    assert len(reader._kinds) == 1  # and no part of the kind


@pytest.mark.parametrize("outputs", [(), ("confidence",), ("confidence", "prediction")])
@pytest.mark.parametrize("request_id", ["", "some id"])
@pytest.mark.parametrize("queue_length", [0, 127, 128, 4096])
@pytest.mark.parametrize("typed", [False, True])
def test_a_written_answer_is_the_built_message(
    outputs: tuple[str, ...], request_id: str, queue_length: int, typed: bool
) -> None:
    message = request(batch=3)
    if typed:
        message.inputs[0].contents.uint_contents.extend(message.raw_input_contents.pop())
    message.id = request_id
    for name in outputs:
        message.outputs.add(name=name)
    call = parse_request(message.SerializeToString(), SPEC)
    predictions = np.array([3, -1, 300], np.int16)
    confidences = np.array([0.25, 0.5, 1.0], np.float32)
    numbers: dict[str, Any] = {
        "server_queue_ms": 0.0,
        "server_ms": 1.5,
        "server_wait_ms": 1e-9,
        "queue_length": queue_length,
    }
    data = write_answer(call, predictions, confidences, **numbers)
    assert pb.ModelInferResponse.FromString(data) == build_response(
        call, predictions, confidences, **numbers
    )
    assert_array_equal(predictions, [3, -1, 300])
