"""One request on its way through the server, and the wait that the next must expect."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Status = Literal["queued", "running", "answered", "expired", "cancelled", "refused", "failed"]

WAIT_MEMORY_S = 0.5
"""Time constant of the expected-wait average: a few frames at 10 to 30 frames/s."""

_log = logging.getLogger(__name__)


class Job:
    """One request on its way through the batcher.

    Attributes:
        exit, split: key of the batch it may join.
        payload: uint8 (B, ...).
        frames: B; what it counts for in the queue.
        client: who brought it (see `testbed.server.fair_queue.FairQueue`).
        arrived_s: monotonic time of arrival.
        deadline_s: monotonic time after which nobody wants the answer; None if never.
        at_once: it found the server idle, so it is not held back for company.
        status: where it stands; the result fields are set when it is ``answered``.
        queue_ms: wait until its batch began.
        compute_ms: decoder and tail of its batch.
        next_wait_ms: queue wait that a request arriving at its end must expect.
        then: called once with the job when its status is final, by whichever thread made it
            so; it must not block. Without it `wait` tells. If it raises it is called once more,
            an answered job being ``failed`` then, so that the caller learns of it.
    """

    __slots__ = (
        "_then",
        "arrived_s",
        "at_once",
        "client",
        "compute_ms",
        "confidences",
        "deadline_s",
        "exit",
        "finished",
        "frames",
        "next_wait_ms",
        "payload",
        "predictions",
        "queue_ms",
        "split",
        "status",
    )

    def __init__(
        self,
        exit: int,
        split: int,
        payload: NDArray[np.uint8],
        *,
        arrived_s: float,
        deadline_s: float | None = None,
        then: Callable[[Job], None] | None = None,
    ) -> None:
        self.exit = exit
        self.split = split
        self.payload = payload
        self.frames = max(1, len(payload))
        self.client = ""
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.at_once = False
        self.status: Status = "queued"
        self._then = [then] if then else []
        self.finished = None if then else threading.Event()
        self.predictions: NDArray[np.int16] | None = None
        self.confidences: NDArray[np.float32] | None = None
        self.queue_ms = 0.0
        self.compute_ms = 0.0
        self.next_wait_ms = 0.0

    @property
    def is_open(self) -> bool:
        """True until its final status is set."""
        return self.status in ("queued", "running")

    def finish(self, status: Status) -> None:
        """Set the final status and tell whoever waits."""
        self.status = status
        self.tell()

    def tell(self) -> None:
        """Tell whoever waits that the final status is set; does nothing a second time.

        An exception of `then` (`MemoryError` included) is logged and goes no further: it
        concerns this job only.
        """
        if self.finished is not None:
            self.finished.set()
        try:
            then = self._then.pop()  # one thread gets it; a job and it must not keep each other
        except IndexError:
            return
        try:
            then(self)
        except BaseException as error:
            if self.status == "answered":
                self.status = "failed"
            with contextlib.suppress(Exception):
                then(self)
            if not isinstance(error, Exception):
                raise
            _log.exception("a caller could not be told that its job is %s", self.status)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of a job without `then`; False after `timeout_s`."""
        return self.finished is None or self.finished.wait(timeout_s)

    def expired(self, now_s: float) -> bool:
        """True once its deadline has passed."""
        return self.deadline_s is not None and now_s >= self.deadline_s


class WaitEstimate:
    """Exponentially weighted mean of queue waits that fades while nothing arrives."""

    def __init__(self, memory_s: float = WAIT_MEMORY_S) -> None:
        self._memory_s = memory_s
        self._mean_ms = 0.0
        self._at_s = -math.inf

    def add(self, wait_ms: float, now_s: float) -> None:
        """A batch began after its requests had waited `wait_ms` on average."""
        keep = math.exp(-max(0.0, now_s - self._at_s) / self._memory_s)
        self._mean_ms = keep * self._mean_ms + (1 - keep) * wait_ms
        self._at_s = now_s

    def value_ms(self, now_s: float) -> float:
        """The wait that a request arriving now must expect."""
        return self._mean_ms * math.exp(-max(0.0, now_s - self._at_s) / self._memory_s)
