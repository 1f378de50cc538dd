"""Dynamic batching across clients: a bounded, fair queue in front of the tails, without sockets.

Requests of equal (exit, split) that wait together are computed together. A request that
finds the server idle is computed at once; no request waits for a fuller batch while a slot is
idle, unless `max_wait_ms` allows it. Clients share the queue and the batches by frames (see
`testbed.server.fair_queue`).

The effect of a failure: an exception while a batch is computed fails only that batch's jobs.
Anything that would end a thread of the batcher fails every waiting job, frees the slot, and
calls `on_death` once: a batcher that lost a thread accepts no more jobs.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError
from testbed.server.fair_queue import FairQueue, Job, Status

Compute = Callable[[NDArray[np.uint8], int, int], tuple[NDArray[np.int16], NDArray[np.float32]]]
"""(payloads, exit, split) -> (predictions, confidences), as `SplitRuntime.tail`."""

WAIT_MEMORY_S = 0.5
"""Time constant of the expected-wait average: a few frames at 10 to 30 frames/s."""

_log = logging.getLogger(__name__)


class Batcher:
    """A bounded queue and the slots that serve it.

    Args:
        compute: the tails; called by at most `workers` threads at a time.
        workers: batches computed at once.
        max_batch: most frames in one batch.
        max_wait_ms: how long the oldest waiting request may be held back for a fuller batch when
            a slot is idle; 0 never holds one back.
        queue_limit: most frames waiting. Above it, the newest request of the client that holds
            the most is refused.
        on_batch: called for each batch with (exit, split, requests' mean wait in ms, compute ms,
            frames).
        on_death: called once with the error that ended the batcher, by the thread that raised it.
            All waiting jobs are ``failed`` by then, and so will be later ones; `close` may be
            called, and returns False.

    Attributes:
        finishing: held while the callers of one batch's jobs get their answers. A thread that
            waits for requests may take it before it looks for the next one, so that the two do
            not exchange the interpreter lock at every answer.
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
        on_death: Callable[[BaseException], None] | None = None,
    ) -> None:
        if min(workers, max_batch, queue_limit) < 1 or max_wait_ms < 0:
            raise ConfigError(
                f"workers {workers}, max_batch {max_batch}, queue {queue_limit}, "
                f"max_wait_ms {max_wait_ms}",
                expected="at least 1 worker, frame and waiting request, no negative wait",
                hint="correct the server's options",
            )
        self._compute = compute
        self._workers = workers
        self._max_batch = max_batch
        self._max_wait_s = max_wait_ms / 1e3
        self._on_batch = on_batch
        self._on_death = [on_death] if on_death is not None else []
        self._queue = FairQueue(queue_limit, max_batch)
        self._most_clients = queue_limit + workers * max_batch
        self._waits: dict[str, WaitEstimate] = {}  # the client served last comes last
        self._busy = 0
        self._closed = False
        self._dead = False
        self._changed = threading.Condition()
        self.finishing = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, args=([],), name=f"tails-{i}", daemon=True)
            for i in range(workers)
        ]
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # leave no thread running
            self.close(0)
            raise

    @property
    def queue_length(self) -> int:
        """Requests waiting now."""
        return len(self._queue)

    def submit(self, job: Job, client: str = "") -> None:
        """Add a job and return at once; its `then` is called when it has ended.

        A thread of the batcher computes it, at once if one is idle. Jobs in the queue
        that an idle thread is about to take are not counted as waiting.

        Args:
            job: the work.
            client: its sender, ``host:connection`` (as from `grpc.ServicerContext.peer`); clients
                share the server evenly, hosts first.
        """
        job.client = client
        ended: list[Job] = []
        try:
            with self._changed:
                job.at_once = self._busy < self._workers and not self._queue
                self._put(job, ended)
            _tell(ended)
        except Exception as error:
            self._not_put(error, job, ended)

    def withdraw(self, job: Job, status: Status = "cancelled") -> None:
        """Cancel a job: if it still waits it leaves the queue uncomputed."""
        try:
            with self._changed:
                if job.status != "queued":
                    return
                job.status = status
                if job in self._queue:
                    self._queue.remove(job)
                if self._closed:
                    self._changed.notify_all()  # `close` may wait for this job
            job.tell()
        except Exception as error:
            self._die(error, [job])

    def close(self, timeout_s: float | None = None) -> bool:
        """Refuse new jobs, finish the waiting ones; False if that took too long (the rest
        is then refused)."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            done = self._changed.wait_for(
                lambda: self._dead or not (self._queue or self._busy), timeout_s
            )
            left = self._queue.clear()
            _settle(left, "refused")
            self._changed.notify_all()
        _tell(left)
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(None if until_s is None else max(0.0, until_s - time.monotonic()))
        return done and not self._dead

    def _put(self, job: Job, ended: list[Job]) -> None:
        """Queue a job (with the lock). `ended` receives the jobs to notify, before they end."""
        if self._closed:
            ended.append(job)
            _settle(ended, "failed" if self._dead else "refused")
            return
        idle = self._workers - self._busy
        spare = idle * self._max_batch  # jobs that idle threads are about to take do not wait
        if not self._queue.has_room(job, spare):
            self._drop(self._queue.expired(time.monotonic()), "expired", ended)
        out = self._queue.gives_way(job, spare)
        if out == [job]:
            ended.append(job)
            _settle(out, "refused")
            return
        self._drop(out, "refused", ended)
        self._queue.add(job)
        if idle:
            self._changed.notify()

    def _not_put(self, error: Exception, job: Job, ended: list[Job]) -> None:
        """A job could not be added: only it fails, unless the queue may be inconsistent."""
        if ended or job in self._queue:
            self._die(error, [job, *ended])
        else:
            job.finish("failed")
            _log.error("a job could not be queued", exc_info=error)

    def _drop(self, jobs: list[Job], status: Status, ended: list[Job]) -> None:
        """End waiting jobs uncomputed (with the lock); their callers are notified from `ended`."""
        ended += jobs
        for job in jobs:
            self._queue.remove(job)
        _settle(jobs, status)

    def _work(self, hand: list[Job]) -> None:
        """The work of a thread; `hand` holds the jobs taken whose callers are not yet notified."""
        try:
            while self._take(hand):
                self._run_batch(hand)
                hand.clear()
        except BaseException as error:
            self._die(error, hand)

    def _die(self, error: BaseException, hand: list[Job]) -> None:
        """The batcher cannot go on: it accepts no more jobs, and all waiting jobs fail."""
        self._dead = self._closed = True
        try:
            with self._changed:
                hand = [*hand, *self._queue.clear()]
                _settle(hand, "failed")
                self._changed.notify_all()
            _tell(hand)
            _log.critical("the batcher ends", exc_info=error)
        finally:
            with contextlib.suppress(IndexError):  # another thread has called it
                self._on_death.pop()(error)

    def _take(self, hand: list[Job]) -> bool:
        """Wait for a slot and a batch, take both; False when closed and empty."""
        while True:
            with self._changed:
                self._drop(self._queue.expired(time.monotonic()), "expired", hand)
                if not hand:
                    wait_s = self._take_now(hand)
                    if hand:
                        return True
                    if self._closed and not self._queue:
                        return False
                    self._changed.wait(wait_s)
            _tell(hand)
            hand.clear()

    def _take_now(self, hand: list[Job]) -> float | None:
        """Take a batch if one may begin (with the lock); otherwise returns the time to wait, None
        for the next change. The jobs are in `hand` before they leave the queue: none is lost."""
        if not self._queue or self._busy >= self._workers:
            return None
        jobs, full = self._queue.gather()
        if self._max_wait_s and not (full or jobs[0].at_once or self._closed):
            held_s = min(job.arrived_s for job in self._queue) + self._max_wait_s
            left_s = held_s - time.monotonic()
            if left_s > 0:
                return left_s
        hand += jobs
        self._queue.take(jobs)
        self._busy += 1
        return None

    def _run_batch(self, batch: list[Job]) -> None:
        """Compute a batch in a slot taken by the caller, and free the slot."""
        try:
            began = time.monotonic()
            wanted = self._still_wanted(batch, began)
            if wanted:
                self._compute_batch(wanted, began)
        except BaseException as error:
            with self._changed:
                _settle(batch, "failed")
            _tell(batch)
            if not isinstance(error, Exception):
                raise
            # A thread survives any error of a batch, MemoryError included.
            _log.exception("batch of %d failed", len(batch))
        finally:
            with self._changed:
                self._busy -= 1
                if self._queue or self._closed:
                    self._changed.notify_all()

    def _still_wanted(self, batch: list[Job], now_s: float) -> list[Job]:
        with self._changed:
            late = [job for job in batch if job.expired(now_s)]
            _settle(late, "expired")
            wanted = [job for job in batch if job.status == "queued"]
            for job in wanted:
                job.queue_ms = (now_s - job.arrived_s) * 1e3
                job.status = "running"
            waits: dict[str, list[float]] = {}
            for job in wanted:
                waits.setdefault(job.client, []).append(job.queue_ms)
            for client, waited_ms in waits.items():
                self._expected_wait(client).add(sum(waited_ms) / len(waited_ms), now_s)
        _tell(late)
        return wanted

    def _expected_wait(self, client: str) -> WaitEstimate:
        """A client's expected wait (with the lock): its own, since each client has its turns."""
        wait = self._waits.pop(client, None) or WaitEstimate()
        if len(self._waits) >= self._most_clients:
            del self._waits[next(iter(self._waits))]
        self._waits[client] = wait
        return wait

    def _compute_batch(self, batch: list[Job], began_s: float) -> None:
        first = batch[0]
        payload = (
            first.payload if len(batch) == 1 else np.concatenate([job.payload for job in batch])
        )
        predictions, confidences = self._compute(payload, first.exit, first.split)
        ended_s = time.monotonic()
        compute_ms = (ended_s - began_s) * 1e3
        with self._changed:
            for job in batch:
                job.next_wait_ms = self._expected_wait(job.client).value_ms(ended_s)
        if self._on_batch is not None:  # first, so that every answered request is already counted
            mean_wait = sum(job.queue_ms for job in batch) / len(batch)
            self._on_batch(first.exit, first.split, mean_wait, compute_ms, len(payload))
        start = 0
        with self.finishing:
            for job in batch:
                end = start + len(job.payload)
                job.predictions, job.confidences = predictions[start:end], confidences[start:end]
                job.compute_ms = compute_ms
                start = end
                job.finish("answered")


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
        """The expected wait of a request that arrives now."""
        return self._mean_ms * math.exp(-max(0.0, now_s - self._at_s) / self._memory_s)


def _settle(jobs: Iterable[Job], status: Status) -> None:
    """Set the final status of the jobs that have none yet; with the batcher's lock."""
    for job in jobs:
        if job.is_open:
            job.status = status


def _tell(jobs: Iterable[Job]) -> None:
    """Notify the callers of jobs whose final status is set; without the batcher's lock."""
    for job in jobs:
        job.tell()
