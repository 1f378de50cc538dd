"""One unary method served straight from gRPC's completion queue, without grpcio's thread pool.

`grpc.server` gives every call a thread of its pool, which sleeps twice: until the message
arrives, and until its batch is computed (``docs/testbed.md`` has the figures). Here one thread
accepts calls and messages, and the thread that finishes a job sends its answer; no thread waits
for a call.

The method is registered on the core server underneath a `grpc.Server`, which still serves all
other methods. That layer of grpcio, ``grpc._cython.cygrpc``, is not a public interface:
`DirectCalls.attach` returns None for a release of grpcio that was not tested, or if the layer
differs from the expected one; the caller then serves the method through the public interface.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import grpc

from testbed.server.inference_service import (
    CALL_S,
    FAILED,
    GONE,
    NO_MESSAGE,
    NOT_FOR_CALLERS,
    OWN,
    TOO_MANY,
    Ending,
    InferenceService,
    Outcome,
)
from testbed.server.places import Place

GIVEN_UP: Final[Ending] = (grpc.StatusCode.RESOURCE_EXHAUSTED, "no message came with the call")
LONGEST_S: Final = CALL_S + 10.0
"""Time after which a call counts as over, even if its end was not seen."""

OUTSTANDING: Final = 16
"""Calls that the core may hand over before the thread checks again."""

TESTED: Final = ("1.85.",)
"""Releases of grpcio that the tests have run with (``constraints.txt`` pins one of them)."""

_log = logging.getLogger(__name__)


class DirectCalls:
    """Serves the calls of one method; made by `attach` before the server starts.

    Args:
        core: the core server.
        cygrpc: grpcio's core module.
        method: full name, ``/service/method``.
        service: handles the messages.
        pause: held by other threads while this thread should not look for calls.
    """

    def __init__(
        self,
        core: Any,
        cygrpc: Any,
        method: str,
        service: InferenceService,
        pause: threading.Lock,
    ) -> None:
        self.cygrpc = cygrpc
        self.service = service
        self._core = core
        self._method = method
        self._pause = pause
        self._queue = cygrpc.CompletionQueue()
        self._thread = threading.Thread(target=self._serve, name="calls", daemon=True)
        core.register_completion_queue(self._queue)
        core.register_method(method)

    @classmethod
    def attach(
        cls, server: grpc.Server, method: str, service: InferenceService, pause: threading.Lock
    ) -> DirectCalls | None:
        """Register `method` on a server that has not started; None if grpcio does not allow it."""
        if not grpc.__version__.startswith(TESTED):
            _log.warning("grpcio %s is not tested with direct calls", grpc.__version__)
            return None
        try:
            from grpc._cython import cygrpc

            core = server._state.server
            for name in ("register_completion_queue", "register_method", "request_registered_call"):
                getattr(core, name)
            for name in ("ReceiveCloseOnServerOperation", "SendStatusFromServerOperation"):
                getattr(cygrpc, name)
            return cls(core, cygrpc, method, service, pause)
        except (ImportError, AttributeError, TypeError) as error:
            _log.warning("grpcio %s has no direct calls: %s", grpc.__version__, error)
            return None

    def start(self) -> None:
        """Accept calls from now on; the server has started."""
        for _ in range(OUTSTANDING):
            self._request()
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """End the thread; the server has stopped."""
        if self._thread.is_alive():
            self._queue.shutdown()
            self._thread.join(timeout_s)

    def _request(self) -> None:
        with contextlib.suppress(ValueError):  # the server is stopping: no more calls
            self._core.request_registered_call(self._queue, self._queue, self._method, None)

    def _serve(self) -> None:
        shutdown = self.cygrpc.CompletionType.queue_shutdown
        while True:
            with self._pause:
                pass
            event = self._queue.poll(None)
            if event.tag is None and not event.success and event.completion_type == shutdown:
                return
            try:
                if event.tag is not None:
                    event.tag(event)
                elif event.success:
                    try:
                        self._arrived(event)
                    finally:
                        self._request()
            except Exception:  # this thread must survive any error of a call
                with contextlib.suppress(Exception):
                    _log.exception("a call failed")
            event = None  # it refers to its call, which must not be kept here

    def _arrived(self, event: Any) -> None:
        call = _Call(self, event)
        if not call.own:  # the server's own calls need no place
            call.place = self.service.places.enter(call)
        if call.own or call.place is not None:
            call.receive()
        else:
            call.send(TOO_MANY)


class _Call:
    """One call from arrival until its answer and its end are known.

    `Places` and `refused` use it like a `grpc.ServicerContext`.
    """

    def __init__(self, server: DirectCalls, event: Any) -> None:
        self._server = server
        self._call = event.call
        self._deadline_s: float = event.call_details.deadline  # of time.time()
        self._since_s = time.monotonic()
        self._peer: str = self._call.peer().decode()
        self.own = self._peer.startswith(OWN)
        self.place: Place | None = None
        self._gone: Callable[[], None] | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._open = 2  # the caller's side and ours
        self._unsent = [True]
        operation = server.cygrpc.ReceiveCloseOnServerOperation(0)
        self._call.start_server_batch((operation,), self._closed)

    def peer(self) -> str:
        """The connection, as gRPC names it."""
        return self._peer

    def auth_context(self) -> dict[str, Any]:
        """TLS data of the caller, as in `grpc.ServicerContext`."""
        found = self._server.cygrpc.auth_context(self._call)
        return {key.decode(): value for key, value in found.items()}

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call this once the call is over."""
        self._callbacks.append(callback)
        return True

    def is_active(self) -> bool:
        """Whether it may still be running."""
        return time.monotonic() - self._since_s < LONGEST_S

    def cancel(self) -> None:
        """End it without waiting for its message."""
        self.send(GIVEN_UP)

    def receive(self) -> None:
        """Request the message."""
        operation = self._server.cygrpc.ReceiveMessageOperation(0)
        self._call.start_server_batch((operation,), self._received)

    def send(self, outcome: Outcome) -> None:
        """End it; only the first time counts, and nothing is sent if the caller is gone."""
        if not self._unsent:
            return
        cygrpc = self._server.cygrpc
        first = cygrpc.SendInitialMetadataOperation(None, 0)
        if isinstance(outcome, bytes):
            answer = cygrpc.SendMessageOperation(outcome, 0)
            last = cygrpc.SendStatusFromServerOperation(None, cygrpc.StatusCode.ok, b"", 0)
            operations: tuple[Any, ...] = (first, answer, last)
        else:
            code, details = outcome
            last = cygrpc.SendStatusFromServerOperation(None, code.value[0], details.encode(), 0)
            operations = (first, last)
        try:
            self._unsent.pop()
        except IndexError:  # taken by another thread meanwhile
            return
        self._call.start_server_batch(operations, self._sent)

    def _received(self, event: Any) -> None:
        try:
            data: bytes | None = event.batch_operations[0].message()
            outcome = self._begun(data)
        except Exception:
            self.send(FAILED)
            raise
        if outcome is not None:
            self.send(outcome)
        if self._open == 1:
            self._cancelled()

    def _begun(self, data: bytes | None) -> Ending | None:
        """Begin to compute; returns the ending if it cannot."""
        service = self._server.service
        if self.place is not None and not service.places.heard(self.place):
            return GONE
        if data is None:
            return NO_MESSAGE
        if self.own:
            refused = None if data == service.probe else NOT_FOR_CALLERS
        else:
            refused = service.refused(self)
        if refused is None and self._unsent:
            left_s = max(0.0, self._deadline_s - time.time())
            self._gone = service.begin(data, left_s, self._peer, self.send)
        return refused

    def _closed(self, event: Any) -> None:
        try:
            if event.batch_operations[0].cancelled():
                self._cancelled()
        finally:
            self._leave()

    def _cancelled(self) -> None:
        gone, self._gone = self._gone, None
        if gone is not None:
            gone()

    def _sent(self, event: Any) -> None:
        self._gone = None
        self._leave()

    def _leave(self) -> None:
        self._open -= 1  # by the one thread that sees events
        if self._open == 0:
            for callback in self._callbacks:
                callback()
            self._callbacks = []
