"""Whatever bytes arrive become a typed object or a WireError, and nothing else."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, network_id
from tritonclient.grpc import service_pb2 as pb

from cnn.bundle import load_bundle
from cnn.common.errors import ConfigError, RemoteError
from cnn.frame_codec import FrameCodec, FrameEncoding
from cnn.topology import SHIPPED, Action, Topology
from testbed.wire.protocol import (
    HASH_CHARS,
    Answer,
    InferCall,
    WireError,
    WireSpec,
    build_response,
    check_metadata,
    parse_response,
)
from testbed.wire.requests import build_request, check_request, parse_request

BUNDLE = load_bundle()
SPEC = WireSpec(BUNDLE.hash, BUNDLE.topology, max_batch=4)
SHAPES = BUNDLE.topology.payload_shapes
OFFLOADS = [action for action in SHIPPED.actions if not action.is_local]


def good_request(exit: int = 3, split: int = 1, batch: int = 1) -> Any:
    shape = (batch, *SHAPES[split])
    request = build_request(BUNDLE.hash, exit, split, shape)
    request.raw_input_contents[0] = bytes(k % 251 for k in range(math.prod(shape)))
    return request


def good_response(batch: int = 2) -> bytes:
    call = check_request(good_request(batch=batch), SPEC)
    message = build_response(
        call,
        np.arange(batch, dtype=np.int16),
        np.linspace(0.5, 1.0, batch, dtype=np.float32),
        server_queue_ms=0.25,
        server_ms=1.5,
        server_wait_ms=0.5,
        queue_length=3,
    )
    data: bytes = message.SerializeToString()
    return data


@pytest.mark.parametrize("action", OFFLOADS, ids=lambda action: action.name)
def test_a_request_survives_the_wire(action: Action) -> None:
    request = good_request(action.exit, action.split, batch=2)
    call = parse_request(request.SerializeToString(), SPEC)
    assert (call.exit, call.split) == (action.exit, action.split)
    assert call.payload.shape == (2, *SHAPES[action.split])
    assert call.payload.tobytes() == request.raw_input_contents[0]
    assert call.deadline_ms is None
    assert not call.payload.flags.writeable  # a view of the message, not a copy


@pytest.mark.parametrize("split", range(5))
def test_typed_contents_mean_the_same_as_raw_ones(split: int) -> None:
    """Open Inference Protocol: the elements of a UINT8 tensor are in ``uint_contents``."""
    request = good_request(5, split, batch=2)
    raw = request.raw_input_contents[0]
    _typed(uint_contents=list(raw))(request)
    call = parse_request(request.SerializeToString(), SPEC)
    assert call.typed
    assert call.payload.tobytes() == raw
    assert call.payload.shape == (2, *SHAPES[split])


def test_a_typed_request_gets_a_typed_answer() -> None:
    request = good_request(batch=2)
    _typed(uint_contents=list(request.raw_input_contents[0]))(request)
    call = check_request(request, SPEC)
    response = build_response(
        call,
        np.array([41, -1], np.int16),
        np.array([0.5, 0.25], np.float32),
        server_queue_ms=0.0,
        server_ms=0.0,
        server_wait_ms=0.0,
        queue_length=0,
    )
    assert not response.raw_output_contents
    contents = {tensor.name: tensor.contents for tensor in response.outputs}
    assert list(contents["prediction"].int_contents) == [41, -1]
    assert list(contents["confidence"].fp32_contents) == [0.5, 0.25]


def test_a_response_survives_the_wire() -> None:
    answer = parse_response(good_response(), batch=2)
    assert answer.predictions.tolist() == [0, 1]
    assert answer.confidences.tolist() == [0.5, 1.0]
    assert (answer.server_queue_ms, answer.server_ms, answer.server_wait_ms) == (0.25, 1.5, 0.5)
    assert answer.queue_length == 3


def _parameter(**fields: Any) -> Any:
    def change(request: Any) -> None:
        for name, value in fields.items():
            kind, content = value
            setattr(request.parameters[name], kind, content)

    return change


def _set(name: str, value: Any) -> Any:
    return lambda request: setattr(request, name, value)


def _typed(**contents: Any) -> Any:
    """The request with typed contents instead of raw ones."""

    def change(request: Any) -> None:
        del request.raw_input_contents[:]
        request.inputs[0].contents.SetInParent()
        for name, values in contents.items():
            getattr(request.inputs[0].contents, name).extend(values)

    return change


def _shape(*shape: int) -> Any:
    def change(request: Any) -> None:
        request.inputs[0].shape[:] = shape

    return change


FAULTY = {
    "other model": (_set("model_name", "resnet"), "model"),
    "other bundle": (_parameter(bundle_hash=("string_param", "0" * 64)), "bundle"),
    "other version": (_set("model_version", "f" * 64), "bundle"),
    "hash too short to tell": (
        _parameter(bundle_hash=("string_param", BUNDLE.hash[: HASH_CHARS - 1])),
        "invalid",
    ),
    "hash as a number": (_parameter(bundle_hash=("int64_param", 7)), "invalid"),
    "exit as text": (_parameter(exit=("string_param", "3")), "invalid"),
    "exit as float": (_parameter(exit=("double_param", 3.0)), "invalid"),
    "exit 6": (_parameter(exit=("int64_param", 6)), "invalid"),
    "negative split": (_parameter(split=("int64_param", -1)), "invalid"),
    "local action": (_parameter(split=("int64_param", 3)), "invalid"),
    "huge split": (_parameter(split=("int64_param", 2**63 - 1)), "invalid"),
    "no exit": (lambda r: r.parameters.pop("exit"), "invalid"),
    "unknown parameter": (_parameter(deadline=("int64_param", 5)), "invalid"),
    "deadline 0": (_parameter(deadline_ms=("int64_param", 0)), "invalid"),
    "deadline NaN": (_parameter(deadline_ms=("double_param", math.nan)), "invalid"),
    "deadline infinite": (_parameter(deadline_ms=("double_param", math.inf)), "invalid"),
    "deadline as text": (_parameter(deadline_ms=("string_param", "9")), "invalid"),
    "no input": (lambda r: r.inputs.pop(), "invalid"),
    "two inputs": (lambda r: r.inputs.append(r.inputs[0]), "invalid"),
    "input's name": (lambda r: setattr(r.inputs[0], "name", "image"), "invalid"),
    "input's type": (lambda r: setattr(r.inputs[0], "datatype", "FP32"), "invalid"),
    "typed contents beside raw ones": (
        lambda r: r.inputs[0].contents.uint_contents.append(1),
        "invalid",
    ),
    "too few typed values": (_typed(uint_contents=[1]), "invalid"),
    "empty typed contents": (_typed(), "invalid"),
    "a typed value of 256": (
        _typed(uint_contents=[256] * math.prod(SHAPES[1])),
        "invalid",
    ),
    "typed contents of another type": (
        _typed(int_contents=[1] * math.prod(SHAPES[1])),
        "invalid",
    ),
    "typed contents of two types": (
        _typed(uint_contents=[1] * math.prod(SHAPES[1]), fp32_contents=[1.0]),
        "invalid",
    ),
    "shared memory": (
        lambda r: setattr(
            r.inputs[0].parameters["shared_memory_region"], "string_param", "/etc/passwd"
        ),
        "invalid",
    ),
    "shape of split 2": (_shape(1, *SHAPES[2]), "invalid"),
    "flat shape": (_shape(math.prod(SHAPES[1])), "invalid"),
    "no shape": (_shape(), "invalid"),
    "batch 0": (_shape(0, *SHAPES[1]), "invalid"),
    "batch -1": (_shape(-1, *SHAPES[1]), "invalid"),
    "batch beyond the bound": (_shape(5, *SHAPES[1]), "invalid"),
    "batch of 2^62": (_shape(2**62, *SHAPES[1]), "invalid"),
    "no raw contents": (lambda r: r.raw_input_contents.pop(), "invalid"),
    "one byte short": (
        lambda r: r.raw_input_contents.__setitem__(0, r.raw_input_contents[0][:-1]),
        "invalid",
    ),
    "one byte more": (
        lambda r: r.raw_input_contents.__setitem__(0, r.raw_input_contents[0] + b"x"),
        "invalid",
    ),
    "encoded, but raw": (_parameter(encoding=("string_param", "jpeg")), "invalid"),
    "unknown encoding": (_parameter(encoding=("string_param", "gif")), "invalid"),
    "encoding as a number": (_parameter(encoding=("int64_param", 1)), "invalid"),
    "unknown output": (lambda r: r.outputs.add(name="logits"), "invalid"),
    "output with parameters": (
        lambda r: setattr(
            r.outputs.add(name="prediction").parameters["classification"], "int64_param", 3
        ),
        "invalid",
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_request_is_refused_in_three_parts(name: str) -> None:
    change, fault = FAULTY[name]
    request = good_request()
    change(request)
    with pytest.raises(WireError) as caught:
        parse_request(request.SerializeToString(), SPEC)
    assert caught.value.fault == fault
    assert isinstance(caught.value, RemoteError)
    assert "; expected " in str(caught.value)
    assert caught.value.hint
    assert len(str(caught.value)) < 400  # what came from outside is not echoed at length


def encoded_request(codec: FrameCodec, data: bytes) -> Any:
    request = build_request(BUNDLE.hash, 2, 0, (len(data),), codec)
    request.raw_input_contents[0] = data
    return request


FRAME = np.indices(SHAPES[0]).sum(0).astype(np.uint8)
ENCODED = {codec: FrameEncoding.parse(codec).encode(FRAME) for codec in ("webp", "jpeg")}


def test_an_encoded_frame_survives_the_wire() -> None:
    call = parse_request(encoded_request("webp", ENCODED["webp"]).SerializeToString(), SPEC)
    np.testing.assert_array_equal(call.payload[0], FRAME)
    assert call.encoding == "webp"
    call = check_request(encoded_request("jpeg", ENCODED["jpeg"]), SPEC)
    assert call.payload.shape == (1, *SHAPES[0])
    assert np.abs(call.payload[0].astype(int) - FRAME).mean() < 4


FAULTY_ENCODED = {
    "named another": (encoded_request("webp", ENCODED["jpeg"]), "WebP"),
    "not at split 0": (
        build_request(BUNDLE.hash, 3, 1, (len(ENCODED["webp"]),), "webp"),
        "at split 1",
    ),
    "shape of the frame": (build_request(BUNDLE.hash, 3, 0, (1, *SHAPES[0]), "jpeg"), "n in"),
    "longer than raw": (encoded_request("jpeg", bytes(7000)), "n in 1..6912"),
    "nothing": (encoded_request("jpeg", b""), "n in 1..6912"),
    "a bomb": (
        encoded_request("webp", FrameEncoding("webp").encode(np.zeros((9000, 9000, 3), np.uint8))),
        "48 x 48",
    ),
}


@pytest.mark.parametrize("name", FAULTY_ENCODED)
def test_a_faulty_encoded_frame_is_refused(name: str) -> None:
    request, expected = FAULTY_ENCODED[name]
    with pytest.raises(WireError, match=expected) as caught:
        parse_request(request.SerializeToString(), SPEC)
    assert caught.value.fault == "invalid"


def test_a_length_that_differs_from_the_shape_is_refused() -> None:
    request = encoded_request("jpeg", ENCODED["jpeg"])
    request.raw_input_contents[0] += b"x"
    with pytest.raises(WireError, match="payload bytes"):
        check_request(request, SPEC)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["webp", "jpeg"]), st.binary(min_size=1, max_size=200), st.integers(0, 900))
def test_damaged_encoded_frames_are_sound_or_refused(
    codec: FrameCodec, damage: bytes, where: int
) -> None:
    data = ENCODED[codec][:where] + damage + ENCODED[codec][where + len(damage) :]
    try:
        call = check_request(encoded_request(codec, data), SPEC)
    except WireError:
        return
    assert call.payload.shape == (1, *SHAPES[0])


def test_options_of_a_request() -> None:
    request = good_request()
    request.id = "frame-7"
    request.parameters["deadline_ms"].int64_param = 40
    request.model_version = BUNDLE.hash
    request.parameters["bundle_hash"].string_param = BUNDLE.hash  # whole hash: also right
    request.outputs.add(name="confidence")
    call = check_request(request, SPEC)
    assert (call.deadline_ms, call.request_id, call.outputs) == (40.0, "frame-7", ("confidence",))


def test_every_cut_of_a_request_is_refused() -> None:
    data = good_request(5, 4).SerializeToString()
    for length in range(len(data)):
        with pytest.raises(WireError):
            parse_request(data[:length], SPEC)


def test_every_cut_of_a_response_is_refused() -> None:
    data = good_response()
    for length in range(len(data)):
        with pytest.raises(WireError):
            parse_response(data[:length], batch=2)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_as_request(data: bytes) -> None:
    with pytest.raises(WireError):
        parse_request(data, SPEC)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_as_response(data: bytes) -> None:
    with pytest.raises(WireError):
        parse_response(data, batch=1)


_edits = st.lists(
    st.tuples(st.integers(0, 10_000), st.binary(max_size=4), st.integers(0, 4)),
    min_size=1,
    max_size=6,
)


def _edited(data: bytes, edits: list[tuple[int, bytes, int]]) -> bytes:
    for where, insert, cut in edits:
        at = where % (len(data) + 1)
        data = data[:at] + insert + data[at + cut :]
    return data


@settings(max_examples=250, deadline=None)
@given(_edits)
def test_an_edited_request_is_sound_or_refused(edits: list[tuple[int, bytes, int]]) -> None:
    try:
        call = parse_request(_edited(good_request(5, 4).SerializeToString(), edits), SPEC)
    except WireError:
        return
    assert isinstance(call, InferCall)
    assert 0 <= call.split < call.exit <= 5
    assert call.payload.shape[1:] == SHAPES[call.split]
    assert 1 <= call.payload.shape[0] <= SPEC.max_batch


@pytest.mark.slow(1)
@settings(max_examples=250, deadline=None)
@given(_edits)
def test_an_edited_response_is_sound_or_refused(edits: list[tuple[int, bytes, int]]) -> None:
    try:
        answer = parse_response(_edited(good_response(), edits), batch=2)
    except WireError:
        return
    assert isinstance(answer, Answer)
    assert answer.predictions.shape == answer.confidences.shape == (2,)
    assert (answer.confidences >= 0).all()
    assert (answer.confidences <= 1).all()
    assert 0 <= answer.server_ms < math.inf
    assert answer.queue_length >= 0


_scalar = st.one_of(
    st.tuples(st.just("int64_param"), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("double_param"), st.floats()),
    st.tuples(st.just("string_param"), st.text(max_size=80)),
    st.tuples(st.just("bool_param"), st.booleans()),
)


@pytest.mark.slow(1)
@settings(max_examples=200, deadline=None)
@given(
    parameters=st.dictionaries(
        st.sampled_from(
            ["exit", "split", "bundle_hash", "deadline_ms", "encoding", "priority", ""]
        ),
        _scalar,
    ),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6),
    raw=st.lists(st.binary(max_size=64), max_size=3),
)
def test_a_well_formed_message_with_any_values(
    parameters: dict[str, tuple[str, Any]], shape: list[int], raw: list[bytes]
) -> None:
    request = good_request()
    _parameter(**parameters)(request)
    request.inputs[0].shape[:] = shape
    request.raw_input_contents[:] = raw
    with pytest.raises(WireError):  # no such raw content fits any split's shape
        parse_request(request.SerializeToString(), SPEC)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_an_impossible_confidence_is_refused(value: float) -> None:
    message = pb.ModelInferResponse.FromString(good_response())
    message.raw_output_contents[1] = np.array([0.5, value], "<f4").tobytes()
    with pytest.raises(WireError, match="confidence"):
        parse_response(message.SerializeToString(), batch=2)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_an_impossible_server_time_is_refused(value: float) -> None:
    message = pb.ModelInferResponse.FromString(good_response())
    message.parameters["server_ms"].double_param = value
    with pytest.raises(WireError, match="server_ms"):
        parse_response(message.SerializeToString(), batch=2)


def test_metadata_must_name_the_same_bundle() -> None:
    check_metadata(pb.ModelMetadataResponse(name="sliproad", versions=[BUNDLE.hash]), BUNDLE.hash)
    with pytest.raises(WireError, match="the same bundle"):
        check_metadata(pb.ModelMetadataResponse(name="sliproad", versions=["a" * 64]), BUNDLE.hash)
    with pytest.raises(WireError, match="testbed serve"):
        check_metadata(pb.ModelMetadataResponse(name="resnet", versions=["1"]), BUNDLE.hash)


@pytest.mark.slow(1)
def test_the_message_bound_admits_a_full_batch_and_not_much_more() -> None:
    largest = max(good_request(5, split, batch=SPEC.max_batch).ByteSize() for split in range(5))
    assert largest < SPEC.max_message_bytes < 2**20 + 8192
    # more frames than a batch holds are read, and refused for what they are
    with pytest.raises(WireError, match=r"with B in 1\.\.4"):
        parse_request(good_request(5, 0, batch=100).SerializeToString(), SPEC)
    assert good_request(5, 0, batch=100).ByteSize() < SPEC.max_message_bytes
    many = WireSpec(BUNDLE.hash, BUNDLE.topology, 1000)
    typed = good_request(5, 0, batch=1000)
    typed.inputs[0].contents.uint_contents.extend([255] * math.prod(typed.inputs[0].shape))
    del typed.raw_input_contents[:]
    assert typed.ByteSize() < many.max_message_bytes


def test_a_spec_without_bounds_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_batch 0"):
        WireSpec(BUNDLE.hash, BUNDLE.topology, 0)
    with pytest.raises(ConfigError, match="a hash of 16"):
        WireSpec("ab", BUNDLE.topology, 1)


def test_a_network_that_cannot_be_cut_or_a_batch_beyond_any_message_is_refused() -> None:
    with pytest.raises(ConfigError, match="without a split"):
        WireSpec(BUNDLE.hash, Topology(2, (1, 2), (), ()), 1)
    wide = Topology(1, (1,), (0,), ((2048, 2048, 3),))
    assert WireSpec(BUNDLE.hash, wide, 85).max_message_bytes < 2**31
    with pytest.raises(ConfigError, match="smaller --max-batch"):
        WireSpec(BUNDLE.hash, wide, 86)


@pytest.mark.parametrize("topology", NETWORKS, ids=network_id)
def test_a_server_takes_the_sending_actions_of_its_network_and_no_others(
    topology: Topology,
) -> None:
    spec = WireSpec(BUNDLE.hash, topology, max_batch=2)
    taken = []
    for exit, split in itertools.product(range(-1, topology.n_blocks + 2), repeat=2):
        shape = (
            2,
            *dict(zip(topology.splits, topology.payload_shapes, strict=True)).get(split, ()),
        )
        request = build_request(BUNDLE.hash, exit, split, shape)
        request.raw_input_contents[0] = bytes(math.prod(shape))
        with contextlib.suppress(WireError):
            call = parse_request(request.SerializeToString(), spec)
            assert call.payload.shape == shape
            taken.append((call.exit, call.split))
    assert taken == [(a.exit, a.split) for a in topology.actions if a.split != a.exit]
