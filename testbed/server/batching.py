"""Dynamic batching across clients: a bounded queue in front of the tails, no socket here.

Requests of equal (exit, split) that wait together are computed together. A request that
finds the server idle is computed at once; nothing ever waits for company while a slot is
idle unless `max_wait_ms` says so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cnn.errors import ConfigError
from testbed.server.jobs import Job, Status, WaitEstimate

Compute = Callable[[NDArray[np.uint8], int, int], tuple[NDArray[np.int16], NDArray[np.float32]]]
"""(payloads, exit, split) -> (predictions, confidences), as `SplitRuntime.tail`."""

_log = logging.getLogger(__name__)


class Batcher:
    """A bounded queue and the slots that empty it.

    Args:
        compute: the tails; called by at most `workers` threads at a time.
        workers: batches computed at once.
        max_batch: most frames in one batch.
        max_wait_ms: how long the oldest waiting request may be held back for company when
            a slot is idle; 0 never holds one back.
        queue_limit: most requests waiting; one more is refused.
        on_batch: told (exit, split, requests' mean wait in ms, compute ms, frames) of each.

    Attributes:
        finishing: held while the jobs of one batch are told their answers. A thread that waits
            for requests may take it before it looks for the next, so that the two do not hand
            the interpreter back and forth at every answer.
    """

    def __init__(
        self,
        compute: Compute,
        *,
        workers: int = 1,
        max_batch: int = 8,
        max_wait_ms: float = 0.0,
        queue_limit: int = 128,
        on_batch: Callable[[int, int, float, float, int], None] | None = None,
    ) -> None:
        if min(workers, max_batch, queue_limit) < 1 or max_wait_ms < 0:
            raise ConfigError(
                f"workers {workers}, max_batch {max_batch}, queue {queue_limit}, "
                f"max_wait_ms {max_wait_ms}",
                expected="at least 1 worker, frame and waiting request, no negative wait",
                mend="correct the server's options",
            )
        self._compute = compute
        self._workers = workers
        self._max_batch = max_batch
        self._max_wait_s = max_wait_ms / 1e3
        self._queue_limit = queue_limit
        self._on_batch = on_batch
        self._queue: list[Job] = []
        self._busy = 0
        self._closed = False
        self._changed = threading.Condition()
        self.finishing = threading.Lock()
        self._wait = WaitEstimate()
        self._threads = [
            threading.Thread(target=self._work, name=f"tails-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queue_length(self) -> int:
        """Requests waiting now."""
        return len(self._queue)

    def run(self, job: Job, timeout_s: float | None = None) -> Status:
        """Bring a job and wait for its end; returns its status.

        ``refused`` if the queue is full or closed. A job that is not done `timeout_s`
        after now is withdrawn and comes back ``expired``.
        """
        with self._changed:
            if self._closed or len(self._queue) >= self._queue_limit:
                job.finish("refused")
                return job.status
            at_once = not self._queue and self._busy < self._workers
            if at_once:
                self._busy += 1
            else:
                self._queue.append(job)
                if self._busy < self._workers:
                    self._changed.notify()
        if at_once:
            self._run_batch([job])
        elif not job.wait(timeout_s):
            self.withdraw(job, "expired")
            if not job.wait(0):  # its batch is running: nobody waits for it
                return "expired"
        return job.status

    def submit(self, job: Job) -> None:
        """Bring a job and return at once; its `then` is told how it ended.

        It is computed by a thread of the batcher, at once if one is idle. A job in the queue
        that an idle thread is about to take is not counted as waiting.
        """
        with self._changed:
            idle = self._workers - self._busy
            if self._closed or len(self._queue) >= self._queue_limit + idle:
                job.finish("refused")
                return
            job.at_once = idle > 0 and not self._queue
            self._queue.append(job)
            if idle:
                self._changed.notify()

    def withdraw(self, job: Job, status: Status = "cancelled") -> None:
        """Give up a job: if it still waits it leaves the queue uncomputed."""
        with self._changed:
            if job.status == "queued":
                if job in self._queue:
                    self._queue.remove(job)
                job.finish(status)

    def close(self, timeout_s: float | None = None) -> bool:
        """Refuse new jobs, finish the waiting ones; False if that took too long (the rest
        is then refused)."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._queue and not self._busy, timeout_s)
            for job in self._queue:
                job.finish("refused")
            self._queue.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)
        return done

    def _work(self) -> None:
        while True:
            with self._changed:
                batch = self._next_batch()
                if batch is None:
                    return
                self._busy += 1
            self._run_batch(batch)

    def _next_batch(self) -> list[Job] | None:
        """Wait (with the lock) for a slot and a batch; None when closed and empty."""
        while True:
            now = time.monotonic()
            self._drop_expired(now)
            if not self._queue:
                if self._closed:
                    return None
                self._changed.wait()
            elif self._busy >= self._workers:
                self._changed.wait()
            else:
                batch, full = self._gather()
                held_until = batch[0].arrived_s + self._max_wait_s
                if batch[0].at_once or full or self._closed or now >= held_until:
                    taken = set(batch)
                    self._queue = [job for job in self._queue if job not in taken]
                    return batch
                self._changed.wait(held_until - now)

    def _drop_expired(self, now_s: float) -> None:
        late = [job for job in self._queue if job.expired(now_s)]
        for job in late:
            self._queue.remove(job)
            job.finish("expired")

    def _gather(self) -> tuple[list[Job], bool]:
        """The oldest job and, in order of arrival, those that can join it."""
        oldest = self._queue[0]
        batch: list[Job] = []
        frames = 0
        for job in self._queue:
            if job.exit != oldest.exit or job.split != oldest.split:
                continue
            if batch and frames + len(job.payload) > self._max_batch:
                return batch, True
            batch.append(job)
            frames += len(job.payload)
        return batch, frames >= self._max_batch

    def _run_batch(self, batch: list[Job]) -> None:
        """Compute a batch in a slot taken by the caller, and free the slot."""
        try:
            began = time.monotonic()
            batch = self._still_wanted(batch, began)
            if batch:
                self._compute_batch(batch, began)
        except Exception:  # a worker must outlive whatever one batch does
            _log.exception("batch of %d failed", len(batch))
            for job in batch:
                job.finish("failed")
        finally:
            with self._changed:
                self._busy -= 1
                if self._queue or self._closed:
                    self._changed.notify_all()

    def _still_wanted(self, batch: list[Job], now_s: float) -> list[Job]:
        wanted = []
        with self._changed:
            for job in batch:
                if job.status != "queued":
                    continue
                if job.expired(now_s):
                    job.finish("expired")
                    continue
                job.status = "running"
                job.queue_ms = (now_s - job.arrived_s) * 1e3
                wanted.append(job)
            if wanted:
                self._wait.add(sum(job.queue_ms for job in wanted) / len(wanted), now_s)
        return wanted

    def _compute_batch(self, batch: list[Job], began_s: float) -> None:
        first = batch[0]
        payload = (
            first.payload if len(batch) == 1 else np.concatenate([job.payload for job in batch])
        )
        predictions, confidences = self._compute(payload, first.exit, first.split)
        ended_s = time.monotonic()
        compute_ms = (ended_s - began_s) * 1e3
        with self._changed:
            next_wait_ms = self._wait.value_ms(ended_s)
        if self._on_batch is not None:  # first, so that who has an answer finds it counted
            mean_wait = sum(job.queue_ms for job in batch) / len(batch)
            self._on_batch(first.exit, first.split, mean_wait, compute_ms, len(payload))
        start = 0
        with self.finishing:
            for job in batch:
                end = start + len(job.payload)
                job.predictions, job.confidences = predictions[start:end], confidences[start:end]
                job.compute_ms, job.next_wait_ms = compute_ms, next_wait_ms
                start = end
                job.finish("answered")
