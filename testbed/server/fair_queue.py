"""Requests as jobs, and the bounded queue of all clients, shared by frames.

This module uses no thread and no lock.

Clients take turns by deficit round robin (M. Shreedhar and G. Varghese, "Efficient fair queuing
using deficit round robin", IEEE/ACM Transactions on Networking 4(3), 1996, doi 10.1109/90.502236;
first at SIGCOMM 1995), at two levels: hosts take turns, and the connections of a host share its
turns. Two things are added, because jobs are computed in batches of one tail:

* A batch is led by the client whose turn it is. Jobs of other clients with the same tail fill it,
  and their clients pay later: their credit may fall to minus one full batch, not lower.
* When the queue is full, the newest job of the client that holds the most frames is refused.

Each waiting client receives one frame a round. Its credit stays within one full batch of zero, so
the service of two waiting clients differs by at most four full batches and one frame, however
long they wait. A client without waiting jobs keeps no credit; it keeps a debt until a round has
paid it or the queue is empty.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import InitVar, dataclass, field
from itertools import chain
from typing import Final, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Status = Literal["queued", "running", "answered", "expired", "cancelled", "refused", "failed"]

_log = logging.getLogger(__name__)

QUANTUM: Final = 1
"""Frames granted at each turn. The least possible, so that a client with one job at a time waits
for one batch, not for a full turn of each other client."""
Member = TypeVar("Member", "_Connection", "_Host")


@dataclass(slots=True, eq=False)
class Job:
    """One request in the batcher.

    Attributes:
        exit, split: key of the batch it may join.
        payload: uint8 (B, ...).
        frames: B; its size in the queue.
        client: its sender (see `testbed.server.fair_queue.FairQueue`).
        arrived_s: monotonic time of arrival.
        deadline_s: monotonic time after which the answer is useless; None for no limit.
        at_once: it found the server idle, so it is not held back for a fuller batch.
        status: its state; the result fields are set when it is ``answered``.
        queue_ms: wait until its batch began.
        compute_ms: decoder and tail of its batch.
        next_wait_ms: expected queue wait of a request that arrives at its end.
        then: called once with the job when its status is final, by the thread that set it; it
            must not block. If it raises it is called once more, with an answered job changed to
            ``failed``, so that the caller learns of it.
    """

    exit: int
    split: int
    payload: NDArray[np.uint8]
    arrived_s: float = field(kw_only=True)
    deadline_s: float | None = field(default=None, kw_only=True)
    then: InitVar[Callable[[Job], None] | None] = field(default=None, kw_only=True)
    frames: int = field(init=False)
    client: str = field(default="", init=False)
    at_once: bool = field(default=False, init=False)
    status: Status = field(default="queued", init=False)
    predictions: NDArray[np.int16] | None = field(default=None, init=False)
    confidences: NDArray[np.float32] | None = field(default=None, init=False)
    queue_ms: float = field(default=0.0, init=False)
    compute_ms: float = field(default=0.0, init=False)
    next_wait_ms: float = field(default=0.0, init=False)
    _then: list[Callable[[Job], None]] = field(init=False)

    def __post_init__(self, then: Callable[[Job], None] | None) -> None:
        self.frames = max(1, len(self.payload))
        self._then = [then] if then else []

    @property
    def is_open(self) -> bool:
        """True until its final status is set."""
        return self.status in ("queued", "running")

    def finish(self, status: Status) -> None:
        """Set the final status and notify the caller."""
        self.status = status
        self.tell()

    def tell(self) -> None:
        """Notify the caller that the final status is set; a second call does nothing.

        An exception of `then` (`MemoryError` included) is logged and not passed on: it
        concerns only this job.
        """
        try:
            then = self._then.pop()  # for one thread; breaks a reference cycle
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

    def expired(self, now_s: float) -> bool:
        """True once its deadline has passed."""
        return self.deadline_s is not None and now_s >= self.deadline_s


class _Connection:
    """The waiting jobs of one connection, oldest first."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.jobs: list[Job] = []
        self.frames = 0
        self.credit = 0

    def head(self) -> Job:
        return self.jobs[0]

    def matching(self, exit: int, split: int) -> Iterator[Job]:
        return (job for job in self.jobs if job.exit == exit and job.split == split)


class _Ring(Generic[Member]):
    """Members that take turns; the first one has its turn."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self._granted: Member | None = None

    def turn(self) -> Member:
        """The member whose turn it is; at least one must have a job."""
        while True:
            member = next(iter(self.members.values()))
            if len(self.members) == 1:  # its debt does not matter
                member.credit = member.head().frames
                return member
            if member is not self._granted:
                self._granted = member
                member.credit += QUANTUM
            if member.frames and member.credit >= member.head().frames:
                return member
            self._granted = None
            del self.members[member.name]
            if member.frames or member.credit < 0:
                self.members[member.name] = member  # moved to the end

    def matching(self, exit: int, split: int) -> Iterator[Job]:
        """Jobs of one tail: one of each member in turn, in each member's own order."""
        rows: Iterable[Iterator[Job]] = (
            member.matching(exit, split) for member in self.members.values() if member.frames
        )  # lazily: a batch is often full before the last
        while rows:
            left = []
            for row in rows:
                job = next(row, None)
                if job is not None:
                    left.append(row)
                    yield job
            rows = left

    def drop_if_done(self, member: Member) -> None:
        """Forget a member without jobs, unless it has a debt."""
        if not member.frames and member.credit >= 0:
            del self.members[member.name]


class _Host(_Ring[_Connection]):
    """The connections of one host."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.frames = 0
        self.credit = 0

    def head(self) -> Job:
        return self.turn().head()


class FairQueue:
    """Waiting jobs of many clients; iterates over them in order of arrival.

    A client's name is its host, a colon and its connection, as gRPC names a peer
    (``ipv4:10.0.0.7:50312``): the part before the last colon identifies the host that shares its
    turns. A client's oldest job is served first, and jobs of one tail keep their order.

    Args:
        limit: most waiting frames. A single job may wait whatever its size.
        max_batch: most frames in one batch.
    """

    def __init__(self, limit: int, max_batch: int) -> None:
        self._limit = limit
        self._max_batch = max_batch
        self._hosts: _Ring[_Host] = _Ring()
        self._places: dict[Job, tuple[_Host, _Connection]] = {}
        self._frames = 0
        self._deadline_s = math.inf  # no job has an earlier one

    def __len__(self) -> int:
        """Jobs waiting."""
        return len(self._places)

    def __iter__(self) -> Iterator[Job]:
        """The jobs waiting, oldest first."""
        return iter(self._places)

    def __contains__(self, job: Job) -> bool:
        return job in self._places

    @property
    def frames(self) -> int:
        """Frames waiting."""
        return self._frames

    def add(self, job: Job) -> None:
        """Add a job, whether or not there is room."""
        host_name, name = _names(job)
        host = self._hosts.members.get(host_name)
        if host is None:
            host = self._hosts.members[host_name] = _Host(host_name)
        connection = host.members.get(name)
        if connection is None:
            connection = host.members[name] = _Connection(name)
        self._places[job] = host, connection
        connection.jobs.append(job)
        connection.frames += job.frames
        host.frames += job.frames
        self._frames += job.frames
        if job.deadline_s is not None:
            self._deadline_s = min(self._deadline_s, job.deadline_s)

    def has_room(self, job: Job, spare: int = 0) -> bool:
        """True if no job must be refused for `job`; `spare`: frames beyond the limit."""
        return not self._places or self._frames + job.frames <= self._limit + spare

    def gives_way(self, job: Job, spare: int = 0) -> list[Job]:
        """The jobs to remove before `job` may be added, or only `job` if it is refused itself.

        The removed job is the newest one of the connection that holds the most frames, of the host
        that holds the most frames. The new job is counted, and loses a tie.
        """
        if self.has_room(job, spare):
            return []
        own = _names(job)
        hosts = {name: host.frames for name, host in self._hosts.members.items()}
        hosts[own[0]] = hosts.get(own[0], 0) + job.frames
        held = {
            (name, inner): connection.frames
            for name, host in self._hosts.members.items()
            for inner, connection in host.members.items()
        }
        held[own] = held.get(own, 0) + job.frames
        evicted: dict[tuple[str, str], list[Job]] = {}
        over = self._frames + job.frames - self._limit - spare
        while over > 0:
            host = max(hosts, key=lambda name: (hosts[name], name == own[0]))
            largest = max((n for n in held if n[0] == host), key=lambda n: (held[n], n == own))
            if largest == own:
                return [job]
            jobs = evicted.setdefault(largest, [])
            newest = self._hosts.members[host].members[largest[1]].jobs[-1 - len(jobs)]
            jobs.append(newest)
            hosts[host] -= newest.frames
            held[largest] -= newest.frames
            over -= newest.frames
        return list(chain(*evicted.values()))

    def gather(self) -> tuple[list[Job], bool]:
        """The jobs of the next batch, still in the queue, and whether it is full.

        The first one is the oldest job of the client whose turn it is. At least one job must wait.
        """
        leader = next(iter(self._places)) if len(self) == 1 else self._hosts.turn().head()
        batch, frames = [leader], leader.frames
        if len(self) == 1:
            return batch, frames >= self._max_batch
        spent: dict[_Host | _Connection, int] = dict.fromkeys(self._places[leader], frames)
        in_debt: set[_Connection] = set()
        for job in self._hosts.matching(leader.exit, leader.split):
            host, connection = self._places[job]
            if job is leader or connection in in_debt:
                continue
            if frames + job.frames > self._max_batch:
                return batch, True
            by_host = spent.get(host, 0) + job.frames
            by_connection = spent.get(connection, 0) + job.frames
            if min(host.credit - by_host, connection.credit - by_connection) < -self._max_batch:
                in_debt.add(connection)  # its later jobs are also excluded: they keep their order
                continue
            spent[host], spent[connection] = by_host, by_connection
            batch.append(job)
            frames += job.frames
        return batch, frames >= self._max_batch

    def take(self, batch: Iterable[Job]) -> None:
        """Remove the jobs of a batch; their clients pay for them."""
        for job in batch:
            for payer in self._places[job]:
                payer.credit -= job.frames
            self.remove(job)

    def remove(self, job: Job) -> None:
        """Remove a job that is not computed."""
        host, connection = self._places.pop(job)
        connection.jobs.remove(job)
        connection.frames -= job.frames
        host.frames -= job.frames
        self._frames -= job.frames
        if not self._places:
            self._hosts = _Ring()  # no client was kept waiting: debts are dropped
            return
        host.drop_if_done(connection)
        self._hosts.drop_if_done(host)

    def expired(self, now_s: float) -> list[Job]:
        """The jobs whose deadline has passed."""
        if now_s < self._deadline_s:
            return []
        deadlines = (job.deadline_s for job in self._places if job.deadline_s is not None)
        self._deadline_s = min(deadlines, default=math.inf)
        return [job for job in self._places if job.expired(now_s)]

    def clear(self) -> list[Job]:
        """Remove and return all jobs."""
        jobs = list(self._places)
        self._hosts, self._places, self._frames = _Ring(), {}, 0
        return jobs


def _names(job: Job) -> tuple[str, str]:
    """(host, connection) of a job's client."""
    host, _, connection = job.client.rpartition(":")
    return (host, connection) if host else (job.client, "")
