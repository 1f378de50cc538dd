"""The gRPC handlers of the MEC server: bytes in, batcher, bytes out."""

from __future__ import annotations

import logging
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Final

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from cnn import __version__
from testbed.server.batching import Batcher
from testbed.server.fair_queue import Job, Status
from testbed.server.places import Places
from testbed.server.server_metrics import ServerMetrics
from testbed.wire.protocol import (
    INPUT_NAME,
    MODEL_NAME,
    OUTPUTS,
    SERVICE,
    Fault,
    InferCall,
    WireError,
    WireSpec,
    build_response,
)
from testbed.wire.requests import check_model, parse_request

FAULT_CODES: Final[dict[Fault, grpc.StatusCode]] = {
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "bundle": grpc.StatusCode.FAILED_PRECONDITION,
    "model": grpc.StatusCode.NOT_FOUND,
}
Ending = tuple[grpc.StatusCode, str]
"""The end of a call without an answer: status and details."""
Outcome = bytes | Ending
"""The end of a call: an answer, or an `Ending`."""
Send = Callable[[Outcome], None]
STATUS_CODES: Final[dict[Status, Ending]] = {
    "refused": (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the queue is full; expected fewer requests at once; finish the frame on the device",
    ),
    "expired": (grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed; nothing was computed"),
    "cancelled": (grpc.StatusCode.CANCELLED, "cancelled by the client"),
    "failed": (grpc.StatusCode.INTERNAL, "the tail failed; see the server's log"),
}
NO_MESSAGE: Final[Ending] = (grpc.StatusCode.INVALID_ARGUMENT, "a call without a message")
TOO_MANY: Final[Ending] = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    "too many calls; expected fewer at once; finish the frame on the device",
)
FAILED: Final[Ending] = (grpc.StatusCode.INTERNAL, "the server failed; see its log")
OWN: Final = "unix"
"""Prefix of the peer of a call that the server makes to itself."""
GONE: Final[Ending] = (grpc.StatusCode.CANCELLED, "no message came")
NOT_FOR_CALLERS: Final[Ending] = (grpc.StatusCode.PERMISSION_DENIED, "not for callers")

SILENT_S: Final = 5.0
"""Time that a call may be open before its message arrives."""
CONTROL_CALLS: Final = 8
"""Places for calls of other methods."""
STREAMS, STREAM_S = 4, 10.0
"""Places for streams of reflection, and the longest duration of one, seconds."""
TOLD_LATER, LATER_S, EACH_S = 128, 0.25, 0.005
"""Refusals that may be delayed at the same time, the longest delay, and the delay for each
running call of the connection, seconds."""
CALL_S: Final = 60.0
"""Deadline of a call that does not state one."""
PROBE: Final = (0, 0)
"""(exit, split) of the jobs that the server sends itself to check that it still answers."""
_NO_FRAME: Final = np.empty((1, 0), np.uint8)

_log = logging.getLogger(__name__)


class InferenceService:
    """Open Inference Protocol v2 over one `Batcher`.

    Args:
        spec: the accepted inputs.
        batcher: computes the tails.
        metrics: counts requests.
        places: maximum number of running inference calls.
        refusal: returns, for a call's context, why the call is refused
            (`testbed.wire.tls.ServerTls.refusal`); None: all calls are allowed.

    Attributes:
        places: of inference calls.
        stream_places: of streams of reflection.
        ready: the answer of ``ServerReady`` and ``ModelReady``.
        probe: message that checks whether inference still works. It passes through everything but
            the network itself, is not counted, and only the server knows it.
        own_address: address for the server's calls to itself, regardless of TLS; None if the
            system has no such addresses (it is not Linux).
        answered: inference calls answered so far, or refused for a reason.
        failing: monotonic times of the first and the newest failure in a row without an answer
            after them; None without one.
    """

    def __init__(
        self,
        spec: WireSpec,
        batcher: Batcher,
        metrics: ServerMetrics,
        places: int,
        refusal: Callable[[Any], Ending | None] | None = None,
    ) -> None:
        self._refusal = refusal or (lambda context: None)
        self._spec = spec
        self._batcher = batcher
        self._metrics = metrics
        self.places = Places(places, SILENT_S)
        self._control_places = Places(CONTROL_CALLS, SILENT_S)
        self.stream_places = Places(STREAMS, STREAM_S)
        self.probe = secrets.token_bytes(32)
        own = f"unix-abstract:sliproad-{secrets.token_hex(16)}"
        self._told_later = threading.BoundedSemaphore(TOLD_LATER)
        self.own_address = own if sys.platform == "linux" else None
        self.ready = True
        self.answered = 0
        self.failing: tuple[float, float] | None = None

    def handlers(self) -> grpc.GenericRpcHandler:
        """The handlers for a `grpc.server`; absent methods are UNIMPLEMENTED."""
        asked = {
            "ServerLive": self.asked(self._server_live, pb.ServerLiveRequest),
            "ServerReady": self.asked(self._server_ready, pb.ServerReadyRequest),
            "ModelReady": self.asked(self._model_ready, pb.ModelReadyRequest),
            "ServerMetadata": self.asked(self._server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": self.asked(self._model_metadata, pb.ModelMetadataRequest),
            "ModelInfer": grpc.stream_unary_rpc_method_handler(self._infer),
        }
        return grpc.method_handlers_generic_handler(SERVICE, asked)

    def asked(
        self,
        answer: Callable[[Any, grpc.ServicerContext], Any],
        kind: Any,
        guarded: bool = True,
    ) -> grpc.RpcMethodHandler:
        """A method that answers one message of `kind`, or reports what is wrong with it.

        If `guarded`, only allowed callers get an answer.

        It is registered as a method with a stream of messages, which is the same on the wire:
        so a call is known from its arrival on, and its wait for the message can be limited.
        """

        def handle(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            data = self._message(messages, context, self._control_places)
            if isinstance(data, bytes) and guarded:
                data = self._refusal(context) or data
            if isinstance(data, bytes):
                try:
                    message: bytes = answer(kind.FromString(data), context).SerializeToString()
                    return message
                except (DecodeError, ValueError):
                    # With a deserialiser gRPC would report INTERNAL: not the caller's fault.
                    data = (
                        FAULT_CODES["invalid"],
                        f"{len(data)} bytes that are no {kind.DESCRIPTOR.name}",
                    )
                except WireError as error:
                    data = FAULT_CODES[error.fault], str(error)
            return _told(data, context)

        return grpc.stream_unary_rpc_method_handler(handle)

    def tend(self) -> None:
        """End calls that have taken too long; called at intervals."""
        for places in (self.places, self._control_places, self.stream_places):
            places.tend()

    def wait_idle(self, timeout_s: float) -> bool:
        """End silent calls; True once no inference call is running, False after `timeout_s`."""
        until_s = time.monotonic() + timeout_s
        while self.places:
            self.places.end_silent(0.0)
            if time.monotonic() > until_s:
                return False
            time.sleep(0.01)
        return True

    def begin(
        self, data: bytes, left_s: float | None, client: str, send: Send
    ) -> Callable[[], None]:
        """Accept a ``ModelInfer`` message and return; `send` is called once with its outcome.

        Args:
            data: the message.
            left_s: seconds until the call's own deadline; None if it has none.
            client: the connection, in the form of a gRPC peer.
            send: ends the call; called by this thread or by one of the batcher. Must not block.

        Returns:
            A function to call if the caller is gone: its job then leaves the queue.
        """
        arrived_s = time.monotonic()
        if data == self.probe:
            job = Job(*PROBE, _NO_FRAME, arrived_s=arrived_s, then=lambda job: send(_end(job)))
        else:
            try:
                call = parse_request(data, self._spec)
            except WireError as error:
                self._metrics.outcome(error.fault)
                send((FAULT_CODES[error.fault], str(error)))
                return _nothing
            job = _job(
                call,
                arrived_s,
                CALL_S if left_s is None else min(left_s, CALL_S),
                lambda job: send(self._outcome(call, job, arrived_s)),
            )
        self._batcher.submit(job, client)
        return lambda: self._batcher.withdraw(job)

    def _outcome(self, call: InferCall, job: Job, arrived_s: float) -> Outcome:
        """The outcome of an ended job for its caller; never raises."""
        try:
            self._metrics.outcome("ok" if job.status == "answered" else job.status)
            if job.status == "failed":
                now = time.monotonic()
                self.failing = (self.failing[0] if self.failing else now), now
            if job.status != "answered":
                return _end(job)
            assert job.predictions is not None
            assert job.confidences is not None
            answer: bytes = build_response(
                call,
                job.predictions,
                job.confidences,
                server_queue_ms=job.queue_ms,
                server_ms=job.compute_ms + (job.arrived_s - arrived_s) * 1e3,
                server_wait_ms=job.next_wait_ms,
                queue_length=self._batcher.queue_length,
            ).SerializeToString()
        except Exception:
            _log.exception("an answer failed")
            return FAILED
        self.answered += 1
        self.failing = None
        return answer

    def _infer(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        try:
            outcome = self._message(messages, context, self.places)
            if isinstance(outcome, bytes) and outcome != self.probe:
                outcome = self.refused(context) or outcome
            if isinstance(outcome, bytes):
                outcome = self._waited(outcome, context)
        except Exception:  # the status of `begin`, not grpcio's UNKNOWN
            _log.exception("a call failed")
            outcome = FAILED
        if outcome in (TOO_MANY, STATUS_CODES["refused"]):
            self._hold_back(context)
        return _told(outcome, context)

    def _hold_back(self, context: grpc.ServicerContext) -> None:
        """Delay a client's refusal for lack of room in proportion to its running calls.

        A client that retries at once, with many calls, would take others' time for refusals.
        """
        if self._told_later.acquire(blocking=False):
            try:
                time.sleep(min(LATER_S, EACH_S * self.places.held(context.peer())))
            finally:
                self._told_later.release()

    def _message(
        self, messages: Iterator[bytes], context: grpc.ServicerContext, places: Places
    ) -> Outcome:
        """The message of a call that has just arrived, or its ending without one."""
        if context.peer().startswith(OWN):  # needs no place
            data = next(messages, None)
            return data if data == self.probe else NOT_FOR_CALLERS
        place = places.enter(context)
        if place is None:
            return TOO_MANY
        try:
            data = next(messages, None)
        except grpc.RpcError:  # the caller is gone, or the call was cancelled
            return GONE
        if not places.heard(place):
            return GONE
        return NO_MESSAGE if data is None else data

    def refused(self, context: Any) -> Ending | None:
        """The refusal of an inference call, counted; None if it is allowed.

        Args:
            context: a `grpc.ServicerContext`, or an object with its ``auth_context()``.
        """
        ending = self._refusal(context)
        if ending is not None:
            self._metrics.outcome("denied")
        return ending

    def _waited(self, data: bytes, context: grpc.ServicerContext) -> Outcome:
        """Wait for the outcome of a message and return it."""
        left_s = context.time_remaining()
        outcomes: SimpleQueue[Outcome] = SimpleQueue()
        gone = self.begin(data, left_s, context.peer(), outcomes.put)
        if not context.add_callback(gone):
            gone()
        # Every ended job is notified; without that this thread would never return.
        return outcomes.get(timeout=(CALL_S if left_s is None else min(left_s, CALL_S)) + 10)

    def _server_live(self, request: Any, _: grpc.ServicerContext) -> Any:
        return pb.ServerLiveResponse(live=True)

    def _server_ready(self, request: Any, _: grpc.ServicerContext) -> Any:
        return pb.ServerReadyResponse(ready=self.ready)

    def _model_ready(self, request: Any, _: grpc.ServicerContext) -> Any:
        try:
            check_model(request.name, request.version, self._spec)
        except WireError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self.ready)

    def _server_metadata(self, request: Any, _: grpc.ServicerContext) -> Any:
        return pb.ServerMetadataResponse(name=MODEL_NAME, version=__version__)

    def _model_metadata(self, request: Any, _: grpc.ServicerContext) -> Any:
        check_model(request.name, request.version, self._spec)
        message = pb.ModelMetadataResponse(
            name=MODEL_NAME, versions=[self._spec.bundle_hash], platform="onnxruntime_onnx"
        )
        message.inputs.add(name=INPUT_NAME, datatype="UINT8", shape=[-1, -1, -1, -1])
        for name, datatype in OUTPUTS.items():
            message.outputs.add(name=name, datatype=datatype, shape=[-1])
        return message


def _told(outcome: Outcome, context: grpc.ServicerContext) -> bytes:
    """The answer, for gRPC to send; another outcome ends the call here."""
    if not isinstance(outcome, bytes):
        context.abort(*outcome)
        raise AssertionError  # abort raises
    return outcome


def _end(job: Job) -> Outcome:
    return b"" if job.status == "answered" else STATUS_CODES[job.status]


def _job(call: InferCall, arrived_s: float, left_s: float, then: Callable[[Job], None]) -> Job:
    """The job of a call whose own deadline is `left_s` after its arrival."""
    if call.deadline_ms is not None:
        left_s = min(left_s, call.deadline_ms / 1e3)
    return Job(
        call.exit,
        call.split,
        call.payload,
        # An encoded frame's decoding is the server's compute, not a wait.
        arrived_s=arrived_s if call.encoding == "raw" else time.monotonic(),
        deadline_s=arrived_s + left_s,
        then=then,
    )


def _nothing() -> None:
    """The action for a call that already has its answer: none."""
