"""The batcher alone: order, bounds, deadlines. Its `compute` here is plain arithmetic,
so that every answer can be checked; the server's tests run the real tails."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from waiting import wait_until

from cnn.common.errors import ConfigError
from testbed.server.batching import Batcher, WaitEstimate
from testbed.server.fair_queue import Job, Status

Answers = tuple[NDArray[np.int16], NDArray[np.float32]]


class Gate:
    """A `compute` that waits until it is opened, and remembers its batches."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.opened = threading.Event()
        self.batches: list[tuple[int, int, int]] = []
        self.running = 0
        self.most_running = 0
        self._lock = threading.Lock()
        if is_open:
            self.opened.set()

    def __call__(self, payload: NDArray[np.uint8], exit: int, split: int) -> Answers:
        with self._lock:
            self.batches.append((exit, split, len(payload)))
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        assert self.opened.wait(20)
        with self._lock:
            self.running -= 1
        sums = payload.reshape(len(payload), -1).sum(1, dtype=np.int64) + 100 * exit + split
        return sums.astype(np.int16), np.full(len(payload), 0.5, np.float32)


class Call(Job):
    """A job whose end can be waited for."""

    def __init__(self, key: tuple[int, int], payload: NDArray[np.uint8], within: float) -> None:
        self.ended = threading.Event()
        now = time.monotonic()
        super().__init__(
            *key,
            payload,
            arrived_s=now,
            deadline_s=now + within,
            then=lambda _: self.ended.set(),
        )


def job(value: int = 1, key: tuple[int, int] = (3, 1), n: int = 1, within: float = 60.0) -> Call:
    return Call(key, np.full((n, 2, 2, 2), value, np.uint8), within)


def run(batcher: Batcher, one: Call, client: str = "") -> Status:
    """Bring a job and wait for its end."""
    batcher.submit(one, client)
    assert one.ended.wait(20)
    return one.status


class Callers:
    """Threads that bring jobs and keep what came back."""

    def __init__(self, batcher: Batcher) -> None:
        self.batcher = batcher
        self.threads: list[threading.Thread] = []
        self.statuses: dict[Job, Status] = {}

    def bring(self, one: Call, *, waiting: int | None = None) -> Call:
        def call() -> None:
            self.statuses[one] = run(self.batcher, one)

        thread = threading.Thread(target=call)
        thread.start()
        self.threads.append(thread)
        if waiting is not None:
            wait_until(lambda: self.batcher.queue_length == waiting)
        return one

    def join(self) -> None:
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def test_waiting_requests_of_one_key_are_computed_together_oldest_key_first(gate: Gate) -> None:
    batcher = Batcher(gate, max_batch=3)
    callers = Callers(batcher)
    callers.bring(job(key=(5, 0)))
    wait_until(lambda: gate.running == 1)
    jobs = [
        callers.bring(job(value, key), waiting=value)
        for value, key in [(1, (3, 1)), (2, (2, 0)), (3, (3, 1)), (4, (3, 1)), (5, (3, 1))]
    ]
    gate.opened.set()
    callers.join()
    assert gate.batches == [(5, 0, 1), (3, 1, 3), (2, 0, 1), (3, 1, 1)]
    for value, one in enumerate(jobs, start=1):
        assert one.predictions is not None
        assert one.predictions.tolist() == [8 * value + 100 * one.exit + one.split]
    assert batcher.close(5)


def test_batches_count_frames_not_requests(gate: Gate) -> None:
    batcher = Batcher(gate, max_batch=4)
    callers = Callers(batcher)
    callers.bring(job())
    wait_until(lambda: gate.running == 1)
    callers.bring(job(2, n=3), waiting=1)
    callers.bring(job(3, n=2), waiting=2)
    gate.opened.set()
    callers.join()
    assert [n for _, _, n in gate.batches] == [1, 3, 2]
    assert batcher.close(5)


def test_beyond_the_bound_is_refused_and_the_rest_answered(gate: Gate) -> None:
    batcher = Batcher(gate, queue_limit=2)
    callers = Callers(batcher)
    callers.bring(job())
    wait_until(lambda: gate.running == 1)
    callers.bring(job(), waiting=1)
    callers.bring(job(), waiting=2)
    refused = job()
    assert run(batcher, refused) == "refused"
    assert refused.predictions is None
    gate.opened.set()
    callers.join()
    assert sorted(callers.statuses.values()) == ["answered"] * 3
    assert batcher.close(5)


def test_expired_and_withdrawn_requests_are_not_computed(gate: Gate) -> None:
    batcher = Batcher(gate, max_batch=8)
    callers = Callers(batcher)
    callers.bring(job())
    wait_until(lambda: gate.running == 1)
    late = callers.bring(job(2, within=0.01), waiting=1)
    gone = callers.bring(job(3), waiting=2)
    good = callers.bring(job(4), waiting=3)
    batcher.withdraw(gone)
    wait_until(lambda: batcher.queue_length == 2)  # a withdrawn place is free at once
    time.sleep(0.02)
    gate.opened.set()
    callers.join()
    assert callers.statuses[late] == "expired"
    assert callers.statuses[gone] == "cancelled"
    assert callers.statuses[good] == "answered"
    assert gate.batches == [(3, 1, 1), (3, 1, 1)]
    assert run(batcher, job(5, within=0.0)) == "expired"
    assert len(gate.batches) == 2
    assert batcher.close(5)


def test_hold_back_gathers_company_up_to_a_full_batch(gate: Gate) -> None:
    batcher = Batcher(gate, workers=1, max_batch=2, max_wait_ms=60_000)
    callers = Callers(batcher)
    callers.bring(job())
    wait_until(lambda: gate.running == 1)
    callers.bring(job(1), waiting=1)
    gate.opened.set()
    wait_until(lambda: gate.running == 0)
    time.sleep(0.05)
    assert batcher.queue_length == 1  # alone, so it is held back
    callers.bring(job(2))
    callers.join()
    assert [n for _, _, n in gate.batches] == [1, 2]
    assert batcher.close(5)


def test_hold_back_ends() -> None:
    gate = Gate()
    batcher = Batcher(gate, max_batch=8, max_wait_ms=20)
    callers = Callers(batcher)
    callers.bring(job())
    wait_until(lambda: gate.running == 1)
    callers.bring(job(), waiting=1)
    gate.opened.set()
    callers.join()
    assert set(callers.statuses.values()) == {"answered"}
    assert batcher.close(5)


def test_many_threads_each_get_their_own_answer() -> None:
    gate = Gate(is_open=True)
    batcher = Batcher(gate, workers=2, max_batch=4, queue_limit=64)
    rng = np.random.default_rng(7)
    plans = [
        [
            (int(v), (int(e), int(e) - 1))
            for v, e in zip(rng.integers(0, 200, 50), keys, strict=True)
        ]
        for keys in rng.integers(1, 6, (16, 50))
    ]
    wrong: list[object] = []

    def call(plan: list[tuple[int, tuple[int, int]]]) -> None:
        for value, key in plan:
            one = job(value, key)
            status = run(batcher, one)
            expected = 8 * value + 100 * key[0] + key[1]
            if status != "answered" or one.predictions is None or one.predictions != [expected]:
                wrong.append((status, value, key))

    threads = [threading.Thread(target=call, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert sum(n for _, _, n in gate.batches) == 16 * 50
    assert max(n for _, _, n in gate.batches) <= 4
    assert gate.most_running <= 2
    assert batcher.close(5)


def test_a_failing_batch_fails_its_requests_only(caplog: pytest.LogCaptureFixture) -> None:
    def compute(payload: NDArray[np.uint8], exit: int, split: int) -> Answers:
        if exit == 1:
            raise RuntimeError("out of memory")
        return np.zeros(1, np.int16), np.ones(1, np.float32)

    batcher = Batcher(compute)
    assert run(batcher, job(key=(1, 0))) == "failed"
    assert run(batcher, job(key=(2, 0))) == "answered"
    assert "batch of 1 failed" in caplog.text
    assert batcher.close(5)


def test_close_finishes_what_waits_and_refuses_the_rest(gate: Gate) -> None:
    batcher = Batcher(gate)
    callers = Callers(batcher)
    callers.bring(job())
    wait_until(lambda: gate.running == 1)
    callers.bring(job(), waiting=1)
    closing = threading.Thread(target=batcher.close, args=(20,))
    closing.start()
    wait_until(lambda: batcher._closed)
    assert run(batcher, job()) == "refused"
    gate.opened.set()
    callers.join()
    closing.join(20)
    assert sorted(callers.statuses.values()) == ["answered", "answered"]


def test_close_gives_up_in_time(gate: Gate) -> None:
    batcher = Batcher(gate)
    callers = Callers(batcher)
    callers.bring(job())
    wait_until(lambda: gate.running == 1)
    waiting = callers.bring(job(), waiting=1)
    assert not batcher.close(0.05)
    wait_until(lambda: waiting in callers.statuses)
    assert callers.statuses[waiting] == "refused"
    gate.opened.set()
    callers.join()


def test_a_submitted_job_is_told_once_how_it_ended(gate: Gate) -> None:
    ended: list[tuple[Job, Status]] = []

    def bring(value: int, within: float = 60.0) -> Job:
        now = time.monotonic()
        payload = np.full((1, 2, 2, 2), value, np.uint8)
        one = Job(
            3, 1, payload, arrived_s=now, deadline_s=now + within,
            then=lambda job: ended.append((job, job.status)),
        )  # fmt: skip
        batcher.submit(one)
        return one

    batcher = Batcher(gate, max_batch=8, queue_limit=3)
    first = bring(1)
    wait_until(lambda: gate.running == 1)
    late, gone, good = bring(2, within=0.01), bring(3), bring(4)
    refused = bring(5)
    assert ended == [(refused, "refused")]
    batcher.withdraw(gone)
    assert ended[1:] == [(gone, "cancelled")]
    batcher.withdraw(gone)
    batcher.withdraw(refused)
    time.sleep(0.02)
    gate.opened.set()
    assert batcher.close(5)
    assert dict(ended[2:]) == {first: "answered", late: "expired", good: "answered"}
    assert len(ended) == 5
    assert good.predictions is not None
    assert good.predictions.tolist() == [8 * 4 + 301]
    assert bring(6).status == "refused"  # closed


def test_a_submitted_job_that_finds_the_server_idle_is_not_held_back() -> None:
    gate = Gate(is_open=True)
    batcher = Batcher(gate, max_batch=8, max_wait_ms=600_000)
    ended: list[Job] = []
    for k in range(3):
        now = time.monotonic()
        batcher.submit(Job(3, 1, np.ones((1, 2), np.uint8), arrived_s=now, then=ended.append))
        wait_until(lambda n=k + 1: len(ended) == n)
        wait_until(lambda: batcher._busy == 0)
    assert batcher.close(5)


def test_expected_wait_follows_and_fades() -> None:
    wait = WaitEstimate(memory_s=1.0)
    assert wait.value_ms(0.0) == 0.0
    wait.add(10.0, 100.0)  # after a long silence the newest wait is all there is
    assert wait.value_ms(100.0) == pytest.approx(10.0)
    wait.add(20.0, 101.0)
    mixed = 10 * np.exp(-1) + 20 * (1 - np.exp(-1))
    assert wait.value_ms(101.0) == pytest.approx(mixed)
    assert wait.value_ms(103.0) == pytest.approx(mixed * np.exp(-2))


@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"max_batch": 0}, {"queue_limit": 0}, {"max_wait_ms": -1.0}],
)
def test_nonsense_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Batcher(Gate(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("tail", [(3, 1), (5, 2)])
@pytest.mark.parametrize("window", [1, 16])
def test_a_polite_client_gets_its_share_beside_a_hoarder(
    window: int, tail: tuple[int, int]
) -> None:
    """Four connections with 64 calls each beside one with `window`; frames are counted.

    A client with one call at a time can be in every second batch at most: while its call is
    computed it has no other. One with more is due a fifth of all frames.
    """
    batches: list[int] = []
    outcomes: Counter[Status] = Counter()
    inside = [threading.Event() for _ in range(window)]  # polite callers that wait for an answer
    stopped = threading.Event()

    def compute(payload: NDArray[np.uint8], exit: int, split: int) -> Answers:
        batches.append(len(payload))
        if len(batches) == 150:
            stopped.set()
        for caller in inside:  # who has its answer brings the next call while a batch is computed
            while not stopped.is_set() and not caller.wait(0.01):
                pass
        time.sleep(0.0005)
        return np.zeros(len(payload), np.int16), np.ones(len(payload), np.float32)

    batcher = Batcher(compute, max_batch=8, queue_limit=128)

    def hoard(client: str) -> None:
        places = threading.Semaphore(64)
        while not stopped.is_set():
            places.acquire()
            payload = np.ones((1, 2, 2, 2), np.uint8)
            one = Job(
                3, 1, payload, arrived_s=time.monotonic(), then=lambda _: places.release()
            )  # fmt: skip
            batcher.submit(one, client)
            if one.status == "refused":
                time.sleep(0.001)

    def ask(caller: threading.Event) -> None:
        while not stopped.is_set():
            one = job(key=tail)
            caller.set()
            status = run(batcher, one, client="ipv4:127.0.0.1:9")
            caller.clear()
            if not stopped.is_set():
                outcomes[status] += 1

    threads = [threading.Thread(target=hoard, args=(f"ipv4:127.0.0.1:{k}",)) for k in range(4)]
    threads += [threading.Thread(target=ask, args=(caller,)) for caller in inside]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert batcher.close(20)
    fair = 150 / 2 if window == 1 else sum(batches[:150]) / 5
    assert outcomes["answered"] >= 0.8 * fair
    assert set(outcomes) == {"answered"}  # none of its calls is refused


def test_the_bound_counts_frames(gate: Gate) -> None:
    batcher = Batcher(gate, max_batch=8, queue_limit=8)
    callers = Callers(batcher)
    callers.bring(job())
    wait_until(lambda: gate.running == 1)
    callers.bring(job(n=5), waiting=1)
    assert run(batcher, job(n=4)) == "refused"
    callers.bring(job(n=3), waiting=2)
    gate.opened.set()
    callers.join()
    assert sorted(callers.statuses.values()) == ["answered"] * 3
    assert batcher.close(5)


def test_late_jobs_give_way_before_any_other(gate: Gate) -> None:
    batcher = Batcher(gate, queue_limit=1)
    callers = Callers(batcher)
    callers.bring(job())
    wait_until(lambda: gate.running == 1)
    late = callers.bring(job(within=0.01), waiting=1)
    time.sleep(0.02)
    good = callers.bring(job())
    wait_until(lambda: late in callers.statuses)
    gate.opened.set()
    callers.join()
    assert callers.statuses[late] == "expired"
    assert callers.statuses[good] == "answered"
    assert batcher.close(5)


def test_each_client_is_told_the_wait_that_it_must_expect(gate: Gate) -> None:
    """Of a hoarder's long waits a polite client hears nothing: its own jobs do not wait so."""
    batcher = Batcher(gate, max_batch=1)
    told: list[Job] = []

    def bring(client: str, age_s: float) -> None:
        arrived_s = time.monotonic() - age_s
        one = Job(3, 1, np.ones((1, 2), np.uint8), arrived_s=arrived_s, then=told.append)
        batcher.submit(one, client)

    gate.opened.set()
    bring("hoarder:1", 60.0)
    bring("polite:1", 0.0)
    wait_until(lambda: len(told) == 2)
    waits = {one.client: one.next_wait_ms for one in told}
    assert waits["hoarder:1"] > 30_000
    assert waits["polite:1"] < 30_000
    assert batcher.close(5)
