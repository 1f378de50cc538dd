"""One unary method served straight from gRPC's completion queue, without grpcio's thread pool.

`grpc.server` gives every call a thread of its pool, which sleeps twice: until the message is
there, and until its batch is computed. For a tail of half a millisecond these hand-overs cost
half as much again (``docs/testbed.md`` has the figures). Here one thread takes calls and
messages, and whichever thread finishes a job sends its answer; no thread waits for a call.

The method is registered on the core server underneath a `grpc.Server`, which keeps serving
every other method (health, reflection, metadata). That layer of grpcio,
``grpc._cython.cygrpc``, is not a public interface: `DirectCalls.attach` returns None for a release
of grpcio that the tests have not run with, or where it is not as expected, and the caller serves
the method through the public one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import grpc

Send = Callable[[grpc.StatusCode, bytes], None]
"""(status, message if it is OK and else the details): ends a call."""

Begin = Callable[[bytes, float, Send, str], Callable[[], None]]
"""(message, seconds until its deadline, how to answer, peer) -> what to do if the caller cancels.

The peer is named as `grpc.ServicerContext.peer` does, such as ``ipv4:10.0.0.7:50312``."""

NO_MESSAGE: Final = (grpc.StatusCode.INVALID_ARGUMENT, b"a call without a message")
TOO_MANY: Final = b"too many calls; expected fewer at once; finish the frame on the device"
FAILED: Final = (grpc.StatusCode.INTERNAL, b"the server failed; see its log")

OUTSTANDING: Final = 16
"""Calls that the core may hand over before the thread looks again."""

TESTED: Final = ("1.85.",)
"""Releases of grpcio that the tests have run with (``constraints.txt`` pins one of them)."""

_log = logging.getLogger(__name__)


class DirectCalls:
    """Takes the calls of one method; made by `attach` before the server starts.

    Args:
        core: the core server.
        cygrpc: grpcio's core module.
        method: full name, ``/service/method``.
        begin: called with each message; must not block, and must answer exactly once, now or
            later, from any thread.
        most: calls in progress; more are refused with RESOURCE_EXHAUSTED.
        pause: held by others while this thread had better not look for calls.
    """

    def __init__(
        self,
        core: Any,
        cygrpc: Any,
        method: str,
        begin: Begin,
        most: int,
        pause: threading.Lock,
    ) -> None:
        self.cygrpc = cygrpc
        self.begin = begin
        self._core = core
        self._method = method
        self._most = most
        self._pause = pause
        self._queue = cygrpc.CompletionQueue()
        self._in_flight = 0
        self._idle = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="calls", daemon=True)
        core.register_completion_queue(self._queue)
        core.register_method(method)

    @classmethod
    def attach(
        cls, server: grpc.Server, method: str, begin: Begin, most: int, pause: threading.Lock
    ) -> DirectCalls | None:
        """Register `method` on a server that has not started; None if this grpcio cannot."""
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
            return cls(core, cygrpc, method, begin, most, pause)
        except (ImportError, AttributeError, TypeError) as error:
            _log.warning("grpcio %s has no direct calls: %s", grpc.__version__, error)
            return None

    def start(self) -> None:
        """Take calls from now on; the server has started."""
        for _ in range(OUTSTANDING):
            self._request()
        self._thread.start()

    def wait_idle(self, timeout_s: float) -> bool:
        """True once no call is in progress; False after `timeout_s`."""
        with self._idle:
            return self._idle.wait_for(lambda: self._in_flight == 0, timeout_s)

    def close(self, timeout_s: float) -> None:
        """End the thread; the server has stopped. With calls in progress it is left to them."""
        if self._thread.is_alive() and self.wait_idle(timeout_s):
            self._queue.shutdown()
            self._thread.join(timeout_s)

    def left(self) -> None:
        """A call is over (as arrivals, seen by the one thread that looks for events)."""
        self._in_flight -= 1
        if self._in_flight == 0:
            with self._idle:
                self._idle.notify_all()

    def _request(self) -> None:
        with contextlib.suppress(ValueError):  # the server stops: no more calls
            self._core.request_registered_call(self._queue, self._queue, self._method, None)

    def _serve(self) -> None:
        shutdown = self.cygrpc.CompletionType.queue_shutdown
        while True:
            with self._pause:
                pass
            event = self._queue.poll(None)
            if event.tag is not None:
                event.tag(event)
            elif event.success:
                self._request()
                self._arrived(event)
            elif event.completion_type == shutdown:
                return
            event = None  # it refers to its call, which must not outlive it here

    def _arrived(self, event: Any) -> None:
        self._in_flight += 1
        call = _Call(self, event)
        if self._in_flight > self._most:
            call.send(grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY)
        else:
            call.receive()


class _Call:
    """One call from arrival until its answer and its end are known."""

    __slots__ = ("_call", "_cancel", "_deadline_s", "_open", "_server")

    def __init__(self, server: DirectCalls, event: Any) -> None:
        self._server = server
        self._call = event.call
        self._deadline_s: float = event.call_details.deadline  # of time.time()
        self._cancel: Callable[[], None] | None = None
        self._open = 2  # the caller's end and ours
        operation = server.cygrpc.ReceiveCloseOnServerOperation(0)
        self._call.start_server_batch((operation,), self._closed)

    def receive(self) -> None:
        """Ask for the message."""
        operation = self._server.cygrpc.ReceiveMessageOperation(0)
        self._call.start_server_batch((operation,), self._received)

    def send(self, code: grpc.StatusCode, data: bytes) -> None:
        """Answer; of a call that was cancelled nothing is sent, and it ends all the same."""
        cygrpc = self._server.cygrpc
        first = cygrpc.SendInitialMetadataOperation(None, 0)
        if code is grpc.StatusCode.OK:
            answer = cygrpc.SendMessageOperation(data, 0)
            last = cygrpc.SendStatusFromServerOperation(None, cygrpc.StatusCode.ok, b"", 0)
            self._call.start_server_batch((first, answer, last), self._sent)
        else:
            last = cygrpc.SendStatusFromServerOperation(None, code.value[0], data, 0)
            self._call.start_server_batch((first, last), self._sent)

    def _received(self, event: Any) -> None:
        data: bytes | None = event.batch_operations[0].message()
        if data is None:
            self.send(*NO_MESSAGE)
            return
        try:
            left_s = max(0.0, self._deadline_s - time.time())
            peer = self._call.peer().decode("utf-8", "replace")
            self._cancel = self._server.begin(data, left_s, self.send, peer)
        except Exception:  # this thread must outlive whatever one message does
            _log.exception("a call failed")
            self.send(*FAILED)
        if self._open == 1:
            self._cancelled()

    def _closed(self, event: Any) -> None:
        if event.batch_operations[0].cancelled():
            self._cancelled()
        self._leave()

    def _cancelled(self) -> None:
        if self._cancel is not None:
            self._cancel()
            self._cancel = None

    def _sent(self, event: Any) -> None:
        self._cancel = None
        self._leave()

    def _leave(self) -> None:
        self._open -= 1  # by the one thread that sees events
        if self._open == 0:
            self._server.left()
