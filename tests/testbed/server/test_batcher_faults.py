"""A batcher that runs out of memory: at any line, nobody waits for ever and no slot is lost."""

from __future__ import annotations

import linecache
import logging
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from waiting import wait_until

from testbed.server import batching, fair_queue
from testbed.server.batching import Batcher
from testbed.server.fair_queue import Job, Status

Threads = Literal["batcher", "callers"]
Answers = tuple[NDArray[np.int16], NDArray[np.float32]]
FILES = {str(Path(str(module.__file__))) for module in (batching, fair_queue)}
NOTHING = ("with ", "try:", "else:", "finally:")
"""Lines at which nothing is done that could fail (of a ``with``: its end, with the lock held)."""


class Fault:
    """A trace function that raises once, at one line of the batcher.

    Args:
        at: (file, line, how many times it is reached before); None raises nowhere.
        error: what it raises.
        threads: of whom: the batcher's own, or the one that brings and withdraws jobs.
    """

    def __init__(
        self, at: tuple[str, int, int] | None, error: type[BaseException], threads: Threads
    ) -> None:
        self.at = at
        self.error = error
        self.threads = threads
        self.seen: Counter[tuple[str, int]] = Counter()
        self.raised = False

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        place = frame.f_code.co_filename, frame.f_lineno
        if place[0] not in FILES:
            return None
        if event == "line" and not linecache.getline(*place).strip().startswith(NOTHING):
            count, self.seen[place] = self.seen[place], self.seen[place] + 1
            if not self.raised and self.at == (*place, count):
                self.raised = True
                raise self.error("injected")
        return self


def compute(payload: NDArray[np.uint8], exit: int, split: int) -> Answers:
    return payload[:, 0].astype(np.int16), np.ones(len(payload), np.float32)


def episode(fault: Fault) -> None:
    """Some clients, tails, batches and a late job; then the properties."""
    told: Counter[Job] = Counter()
    deaths: list[BaseException] = []
    opened = threading.Event()

    def gated(payload: NDArray[np.uint8], exit: int, split: int) -> Answers:
        assert opened.wait(20)
        return compute(payload, exit, split)

    def make(value: int, tail: int = 5, within_s: float = 60.0) -> Job:
        now = time.monotonic()
        return Job(
            tail, 2, np.full((1, 2), value, np.uint8), arrived_s=now, deadline_s=now + within_s,
            then=lambda job: told.update([job]),
        )  # fmt: skip

    traces = threading.gettrace(), sys.gettrace()
    if fault.threads == "batcher":
        threading.settrace(fault)
    try:
        batcher = Batcher(gated, max_batch=2, queue_limit=6, on_death=deaths.append)
    finally:
        threading.settrace(traces[0])
    gone = make(9)
    brought = [make(1), make(2), make(3, tail=3), make(4), make(5, within_s=0.0), make(6, tail=3)]
    brought += [gone, make(7), make(8)]  # more than the queue holds
    untold = []
    if fault.threads == "callers":
        sys.settrace(fault)
    try:
        for k, one in enumerate(brought):
            try:
                batcher.submit(one, f"host:{k % 3}")
            except fault.error:
                untold.append(one)  # raised at once: nothing has been done
        try:
            batcher.withdraw(gone)
        except fault.error:
            batcher.withdraw(gone)
    finally:
        sys.settrace(traces[1])
    brought = [one for one in brought if one not in untold]
    opened.set()
    wait_until(lambda: sum(told.values()) >= len(brought), 20)
    after = make(7)
    batcher.submit(after, "host:9")
    drained = batcher.close(20)

    brought.append(after)
    assert told == dict.fromkeys(brought, 1)
    for one in brought:
        assert one.status in ("answered", "expired", "cancelled", "refused", "failed")
        if one.status == "answered":
            assert one.predictions is not None
            assert one.predictions.tolist() == [one.payload[0, 0]]
    assert [type(error) for error in deaths] in ([], [fault.error])
    assert drained == (not deaths)
    assert batcher.queue_length == 0
    assert not any(thread.is_alive() for thread in batcher._threads)
    if deaths:
        late = make(8)
        batcher.submit(late)
        assert late.status == "failed"
    else:
        assert batcher._busy == 0
        assert after.status == "answered" or fault.raised
    if fault.at is None:
        statuses = Counter(job.status for job in brought)
        assert statuses["answered"] >= 5
        assert statuses["cancelled"] == statuses["expired"] == 1


@pytest.mark.slow(4)
@pytest.mark.parametrize(
    ("error", "threads"),
    [(MemoryError, "batcher"), (SystemExit, "batcher"), (MemoryError, "callers")],
)
def test_an_error_at_any_line_leaves_nobody_waiting(
    error: type[BaseException], threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL + 1)
    plain = Fault(None, error, threads)
    episode(plain)
    raised = 0
    for place, times in plain.seen.items():
        for count in {0, times // 2}:
            fault = Fault((*place, count), error, threads)
            episode(fault)
            raised += fault.raised
    assert raised > 50


def test_a_tail_without_memory_fails_its_own_jobs_only() -> None:
    def tail(payload: NDArray[np.uint8], exit: int, split: int) -> Answers:
        if exit == 1:
            raise MemoryError
        return compute(payload, exit, split)

    deaths: list[BaseException] = []
    batcher = Batcher(tail, on_death=deaths.append)
    brought = [simple(1), simple(3), simple(1), simple(3)]
    for one in brought:
        batcher.submit(one)
    assert batcher.close(20)
    assert [one.status for one in brought] == ["failed", "answered", "failed", "answered"]
    assert deaths == []


def test_a_callback_that_fails_costs_its_own_answer_only() -> None:
    told: list[Status] = []

    def then(job: Job) -> None:
        told.append(job.status)
        if job.status == "answered" and job.exit == 1:
            raise MemoryError

    batcher = Batcher(compute)
    for tail in (1, 3):
        batcher.submit(simple(tail, then=then))
    assert batcher.close(20)
    assert told == ["answered", "failed", "answered"]


def test_the_callback_of_a_death_may_close() -> None:
    closed: list[bool] = []

    def tail(payload: NDArray[np.uint8], exit: int, split: int) -> Answers:
        raise SystemExit

    batcher = Batcher(tail, workers=2, on_death=lambda error: closed.append(batcher.close(20)))
    told: list[Status] = []
    batcher.submit(simple(then=lambda job: told.append(job.status)))
    for thread in batcher._threads:
        thread.join(20)
    assert told == ["failed"]
    assert closed == [False]
    late = simple()
    batcher.submit(late)
    assert late.status == "failed"


def simple(tail: int = 3, then: Any = None) -> Job:
    return Job(tail, 2, np.ones((1, 2), np.uint8), arrived_s=time.monotonic(), then=then)
