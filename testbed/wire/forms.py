"""What the messages of the wire are made of: names, the typed request and answer, the error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError, RemoteError
from cnn.frame_codec import FrameCodec
from cnn.topology import N_EXITS

MODEL_NAME: Final = "sliproad"
SERVICE: Final = "inference.GRPCInferenceService"
INPUT_NAME: Final = "payload"
OUTPUTS: Final = {"prediction": "INT16", "confidence": "FP32"}
REQUEST_PARAMETERS: Final = frozenset({"exit", "split", "bundle_hash", "deadline_ms", "encoding"})
HASH_CHARS: Final = 16
"""Hex digits of the bundle hash that travel with each request: 64 bits tell bundles apart
and save 48 bytes of every frame's uplink. A server takes any longer prefix too."""
MAX_DEADLINE_MS: Final = 3_600_000.0
MAX_WAIT_MS: Final = 600_000.0
"""Longest wait that an answer may speak of: no device waits longer for one."""
MAX_QUEUE_LENGTH: Final = 1_000_000
CLOCK_TOLERANCE_MS: Final = 1.0
"""By so much a server's times may exceed the exchange that they are part of: both ends round
their clocks, and no two run equally fast."""
READ_BYTES: Final = 2**20
"""Length up to which a message is read whatever the batch: 151 frames of 48 x 48 pixels."""

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
                hint="build it with WireSpec.of",
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
        """Largest message a server reads: a full batch of the largest payload in typed contents
        (up to two bytes a value) and 4 KiB for everything else, but no less than 1 MiB, so that
        a batch beyond `max_batch` is read and told so. gRPC refuses longer ones from their
        length prefix, before a byte of them is stored, with the status of a full server."""
        full_bytes = 2 * self.max_batch * max(map(math.prod, self.shapes))
        return max(full_bytes, READ_BYTES) + 4096


class InferCall(NamedTuple):
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
        typed: the payload came in typed contents, and so must the answer.

    A tuple, which is made in a quarter of the time: a server makes one for every request.
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


def is_hash_of(stated: str, bundle_hash: str) -> bool:
    """Whether `stated` is a bundle's hash, or its first `HASH_CHARS` or more digits."""
    return len(stated) >= HASH_CHARS and bundle_hash.startswith(stated)


def printable(text: str) -> str:
    """Text of the other end in one line: whatever would move a terminal's cursor becomes ``?``."""
    return "".join(c if c.isprintable() else "?" for c in text)


def parameter_of(parameters: Mapping[str, Any], name: str) -> tuple[str | None, Any]:
    # Reading a missing key of a protobuf map would insert it.
    if name not in parameters:
        return None, None
    parameter = parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    return kind, getattr(parameter, kind) if kind else None
