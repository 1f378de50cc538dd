"""The gRPC handlers of the MEC server: bytes in, batcher, bytes out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from cnn import __version__
from testbed.server.batching import Batcher
from testbed.server.direct_calls import FAILED, NO_MESSAGE, Send
from testbed.server.jobs import Job, Status
from testbed.server.metrics import ServerMetrics
from testbed.wire.answer_writer import write_answer
from testbed.wire.messages import (
    INPUT_NAME,
    MODEL_NAME,
    OUTPUTS,
    SERVICE,
    Fault,
    InferCall,
    WireError,
    WireSpec,
    check_model,
)
from testbed.wire.request_reader import RequestReader
from testbed.wire.tls import Refusal

FAULT_CODES: Final[dict[Fault, grpc.StatusCode]] = {
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "bundle": grpc.StatusCode.FAILED_PRECONDITION,
    "model": grpc.StatusCode.NOT_FOUND,
}
STATUS_CODES: Final[dict[Status, tuple[grpc.StatusCode, str]]] = {
    "refused": (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the queue is full; expected fewer requests at once; finish the frame on the device",
    ),
    "expired": (grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed; nothing was computed"),
    "cancelled": (grpc.StatusCode.CANCELLED, "cancelled by the client"),
    "failed": (grpc.StatusCode.INTERNAL, "the tail failed; see the server's log"),
}

_log = logging.getLogger(__name__)


class InferenceService:
    """Open Inference Protocol v2 over one `Batcher`.

    Counts the calls in flight, from arrival until gRPC has disposed of the answer, so
    that a server can drain without cutting the last answers.

    Args:
        spec: of the messages.
        batcher: computes.
        metrics: counts outcomes.
        refusal: says of a call's context why the caller may not call
            (`testbed.wire.tls.ServerTls.refusal`); None: all may.
    """

    def __init__(
        self,
        spec: WireSpec,
        batcher: Batcher,
        metrics: ServerMetrics,
        refusal: Callable[[Any], Refusal | None] | None = None,
    ) -> None:
        self._refusal = refusal or (lambda context: None)
        self._spec = spec
        self._reader = RequestReader(spec)
        self._batcher = batcher
        self._metrics = metrics
        self._in_flight = 0
        self._idle = threading.Condition()
        self.ready = True

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a `grpc.server` registers; methods that are absent are UNIMPLEMENTED."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "ServerLive": self._asked(self._server_live, pb.ServerLiveRequest),
                "ServerReady": self._asked(self._server_ready, pb.ServerReadyRequest),
                "ModelReady": self._asked(self._model_ready, pb.ModelReadyRequest),
                "ServerMetadata": self._asked(self._server_metadata, pb.ServerMetadataRequest),
                "ModelMetadata": self._asked(self._model_metadata, pb.ModelMetadataRequest),
                # As a stream of messages, so that a call without any is told so by us.
                "ModelInfer": grpc.stream_unary_rpc_method_handler(self._infer),
            },
        )

    def wait_idle(self, timeout_s: float) -> bool:
        """True once no call of `_infer` is in flight; False after `timeout_s`."""
        with self._idle:
            return self._idle.wait_for(lambda: self._in_flight == 0, timeout_s)

    def _server_live(self, request: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    def _server_ready(self, request: Any) -> Any:
        return pb.ServerReadyResponse(ready=self.ready)

    def _model_ready(self, request: Any) -> Any:
        try:
            check_model(request.name, request.version, self._spec)
        except WireError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self.ready)

    def _server_metadata(self, request: Any) -> Any:
        return pb.ServerMetadataResponse(name=MODEL_NAME, version=__version__)

    def _model_metadata(self, request: Any) -> Any:
        check_model(request.name, request.version, self._spec)
        message = pb.ModelMetadataResponse(
            name=MODEL_NAME, versions=[self._spec.bundle_hash], platform="onnxruntime_onnx"
        )
        message.inputs.add(name=INPUT_NAME, datatype="UINT8", shape=[-1, -1, -1, -1])
        for name, datatype in OUTPUTS.items():
            message.outputs.add(name=name, datatype=datatype, shape=[-1])
        return message

    def begin(self, data: bytes, left_s: float, send: Send, peer: str) -> Callable[[], None]:
        """Take a ``ModelInfer`` message and return; `send` is called once with the answer.

        Args:
            data: the message.
            left_s: seconds until the call's own deadline.
            send: ends the call; called by this thread or by one of the batcher.
            peer: who calls, as `grpc.ServicerContext.peer` says it.

        Returns:
            What to call if the caller is gone: its job then leaves the queue.
        """
        arrived_s = time.monotonic()
        try:
            call = self._reader.read(data)
        except WireError as error:
            self._metrics.outcome(error.fault)
            send(FAULT_CODES[error.fault], str(error).encode())
            return _nothing

        def then(job: Job) -> None:
            self._metrics.outcome("ok" if job.status == "answered" else job.status)
            if job.status == "answered":
                send(grpc.StatusCode.OK, self._answer(call, job, arrived_s))
            else:
                code, details = STATUS_CODES[job.status]
                send(code, details.encode())

        job = _job(call, arrived_s, left_s, then)
        self._batcher.submit(job, peer)
        return lambda: self._batcher.withdraw(job)

    def _infer(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """The same through the public interface: the calling thread waits for the answer."""
        self._enter(context)
        refused = self._refusal(context)
        if refused is not None:
            self._metrics.outcome("denied")
            context.abort(*refused)
        data = next(messages, None)
        if data is None:
            code, answer = NO_MESSAGE
        else:
            try:
                code, answer = self._outcome(data, context)
            except Exception:  # as DirectCalls says it, and not grpcio's UNKNOWN
                _log.exception("a call failed")
                code, answer = FAILED
        if code is not grpc.StatusCode.OK:
            context.abort(code, answer.decode())
        return answer

    def _outcome(self, data: bytes, context: grpc.ServicerContext) -> tuple[grpc.StatusCode, bytes]:
        """Status and answer (or details) of a message, once both are known."""
        arrived_s = time.monotonic()
        try:
            call = self._reader.read(data)
        except WireError as error:
            self._metrics.outcome(error.fault)
            return FAULT_CODES[error.fault], str(error).encode()
        job = _job(call, arrived_s, context.time_remaining())
        if not context.add_callback(lambda: self._batcher.withdraw(job)):
            job.finish("cancelled")  # the caller is gone already
            status = job.status
        else:
            timeout_s = None if call.deadline_ms is None else call.deadline_ms / 1e3
            status = self._batcher.run(job, timeout_s, context.peer())
        if status != "answered":
            self._metrics.outcome(status)
            code, details = STATUS_CODES[status]
            return code, details.encode()
        self._metrics.outcome("ok")
        return grpc.StatusCode.OK, self._answer(call, job, arrived_s)

    def _answer(self, call: InferCall, job: Job, arrived_s: float) -> bytes:
        assert job.predictions is not None
        assert job.confidences is not None
        return write_answer(
            call,
            job.predictions,
            job.confidences,
            server_queue_ms=job.queue_ms,
            server_ms=job.compute_ms + (job.arrived_s - arrived_s) * 1e3,
            server_wait_ms=job.next_wait_ms,
            queue_length=self._batcher.queue_length,
        )

    def _asked(self, answer: Callable[[Any], Any], kind: Any) -> grpc.RpcMethodHandler:
        """A method that answers one message of `kind`, or says what is wrong with it."""

        def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
            refused = self._refusal(context)
            if refused is not None:
                context.abort(*refused)
            try:
                message: bytes = answer(kind.FromString(data)).SerializeToString()
                return message
            except (DecodeError, ValueError):
                # Of a deserialiser gRPC itself would say INTERNAL, not the caller's fault.
                code = FAULT_CODES["invalid"]
                details = f"{len(data)} bytes that are no {kind.DESCRIPTOR.name}"
            except WireError as error:
                code, details = FAULT_CODES[error.fault], str(error)
            context.abort(code, details)
            return b""  # never reached: abort raises

        return grpc.unary_unary_rpc_method_handler(handle)

    def _enter(self, context: grpc.ServicerContext) -> None:
        with self._idle:
            self._in_flight += 1
        if not context.add_callback(self._leave):
            self._leave()

    def _leave(self) -> None:
        with self._idle:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.notify_all()


def _job(
    call: InferCall,
    arrived_s: float,
    left_s: float | None,
    then: Callable[[Job], None] | None = None,
) -> Job:
    """The job of a call whose own deadline comes `left_s` after its arrival (None: never)."""
    if call.deadline_ms is not None:
        asked_s = call.deadline_ms / 1e3
        left_s = asked_s if left_s is None else min(left_s, asked_s)
    return Job(
        call.exit,
        call.split,
        call.payload,
        # An encoded frame's decoding is the server's compute, not a wait.
        arrived_s=arrived_s if call.encoding == "raw" else time.monotonic(),
        deadline_s=None if left_s is None else arrived_s + left_s,
        then=then,
    )


def _nothing() -> None:
    """What is to be done for a call that has its answer."""
