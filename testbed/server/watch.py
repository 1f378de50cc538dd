"""Detects that a server has stopped answering, for any reason.

A thread can die, a place or a wake-up can get lost, and a library can silently stop accepting
calls. So the watch checks for no particular cause: while calls are answered the server is fine.
When none is answered, the watch calls the server itself, through gRPC, the queue and a thread
that computes, and expects an answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import grpc

from testbed.server.inference_service import InferenceService
from testbed.wire.protocol import SERVICE

LOOK_S: Final = 0.5
PROBE_S: Final = 1.0
"""Time limit for the answer to a probe."""
DEAF_S, DEAF_PROBES = 10.0, 3
"""Time without any answer, and unanswered probes in a row, that count as a failure. After a machine
slept or was suspended much time has passed, but not several probes."""
FAILING_S: Final = 5.0
"""Time during which every call may fail."""

_log = logging.getLogger(__name__)


class Watch(threading.Thread):
    """Watches one server until it fails or `stop` is called.

    Args:
        service: of the server.
        fail: called once with the reason why the server cannot go on.
    """

    def __init__(self, service: InferenceService, fail: Callable[[str], None]) -> None:
        super().__init__(name="watch", daemon=True)
        self._service = service
        self._fail = fail
        self._stopped = threading.Event()
        self._unanswered = 0
        self._channel: grpc.Channel | None = None
        if service.own_address is not None:
            self._channel = grpc.insecure_channel(
                service.own_address, [("grpc.use_local_subchannel_pool", 1)]
            )
            self._probe = self._channel.unary_unary(f"/{SERVICE}/ModelInfer")

    def run(self) -> None:
        """Check repeatedly."""
        answered, well_s = self._service.answered, time.monotonic()
        why: str | None = None
        while why is None and not self._stopped.is_set():
            try:
                self._service.tend()
                if self._service.answered != answered or self._answers():
                    answered, well_s = self._service.answered, time.monotonic()
                    self._unanswered = 0
                    self._stopped.wait(LOOK_S)
                why = self._trouble(time.monotonic() - well_s)
            except Exception:  # it will be checked again
                _log.exception("the watch could not look")
                self._stopped.wait(LOOK_S)
        if why is not None and not self._stopped.is_set():
            self._fail(why)
        self._stopped.wait()

    def stop(self) -> None:
        """End it."""
        self._stopped.set()
        self.join(2 * PROBE_S)
        if self._channel is not None:
            self._channel.close()

    def _answers(self) -> bool:
        if self._channel is not None:
            self._unanswered += 1
            try:
                self._probe(self._service.probe, timeout=PROBE_S)
            except grpc.RpcError:
                self._stopped.wait(0.1)  # it may have been refused at once
                return False
        return True

    def _trouble(self, deaf_s: float) -> str | None:
        if deaf_s > DEAF_S and self._unanswered >= DEAF_PROBES:
            return f"it has answered nothing for {deaf_s:.1f} s"
        failing = self._service.failing
        if failing is not None and failing[1] - failing[0] > FAILING_S:
            return "every request fails"
        return None
