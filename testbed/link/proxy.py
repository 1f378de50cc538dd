"""The user-space link's proxy: one thread that moves bytes from sockets through the schedule.

Bytes are read, get their due times, and wait in one queue a direction; they come out in that
order when they are due. Callers use it through `testbed.link.emulator`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections import deque
from typing import Any, Final

import numpy as np

from testbed.link.connections import Connection, Connections, Flow, reset
from testbed.link.transfer import LinkDelivery

SEGMENT_BYTES: Final = 1448
"""Bytes that travel together: one TCP segment on an Ethernet link with time stamps."""

MAX_CONNECTIONS: Final = 512
_READ_BYTES: Final = 64 * 1024

_END: Final = memoryview(b"")
_Item = tuple[float, Connection, Flow, memoryview | None]
"""Due (trace time), connection, flow, bytes; empty bytes mean closing, None means a reset."""

_BIN_MS: Final = 0.05
_BINS: Final = 4000


class Proxy:
    """The work of the link's thread. Other threads call `hold` and `stop`, and read the rest.

    Args:
        schedule: when bytes come out.
        upstream: family and address of the server (`testbed.link.connections.resolve`).
        listener: where devices connect; closed at the end.
        offset_s: trace time at the start, seconds.
        buffer_bytes: bound of bytes inside the link per connection and direction.
        realtime: ask for real-time priority of the thread.
    """

    def __init__(
        self,
        schedule: LinkDelivery,
        upstream: tuple[int, Any],
        listener: socket.socket,
        *,
        offset_s: float,
        buffer_bytes: int,
        realtime: bool,
    ) -> None:
        self._schedule, self._upstream, self._listener = schedule, upstream, listener
        self._offset_s, self._buffer_bytes, self._realtime = offset_s, buffer_bytes, realtime
        self.priority = "normal"
        self.start_time: float | None = None
        """`time.monotonic` at which the trace started; set at the first use."""
        self.counts = {"connections": 0, "refused": 0, "uplink_bytes": 0, "downlink_bytes": 0}
        self.lateness = Lateness()
        self.failure: BaseException | None = None
        """The error that stopped the thread, if any."""
        self._held_until = 0.0  # time.monotonic
        self._held_trace_s = 0.0
        self._dropping = False
        self._queues: tuple[deque[_Item], deque[_Item]] = (deque(), deque())  # up, down
        self._commands: deque[tuple[float, bool]] = deque()
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._connections = Connections(self._epoll, buffer_bytes)

    # Called by other threads.

    def hold(self, until: float, drop: bool) -> None:
        """Hold all bytes until a moment of `time.monotonic`; `drop`: reset connections too."""
        self._commands.append((until, drop))
        self._wake()

    def stop(self) -> None:
        """Make `run` reset every connection and return."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        # This fails if a wake-up is already pending or the thread has ended: both are fine.
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"x")

    # Called by the link's thread.

    def run(self) -> None:
        """Serve until `stop`, or until something fails (`failure`)."""
        try:
            if self._realtime:
                self.priority = raise_priority()
            while not self._stopping:
                self._deliver()
                # select on the epoll descriptor waits in microseconds, epoll in whole ms.
                select.select([self._epoll.fileno()], [], [], self._until_next_s())
                for fd, mask in self._epoll.poll(0):
                    self._on_event(fd, mask)
        except BaseException as error:
            self.failure = error
        finally:
            self._shut()

    def _shut(self) -> None:
        self._connections.abort_all()
        self._listener.close()
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _trace_time_s(self, now: float) -> float:
        if self.start_time is None:
            self.start_time = now
        return max(now - self.start_time, 0.0) + self._offset_s

    def _until_next_s(self) -> float | None:
        dues = [queue[0][0] for queue in self._queues if queue]
        if not dues:
            return None
        now = time.monotonic()
        wait = min(dues) - self._trace_time_s(now)
        return max(wait, self._held_until - now, 0.0)

    def _deliver(self) -> None:
        now = time.monotonic()
        if now < self._held_until or not (self._queues[0] or self._queues[1]):
            return
        at, note_late_ms = self._trace_time_s(now), self.lateness.note
        for queue in self._queues:
            touched: dict[int, tuple[Connection, Flow]] = {}
            while queue and queue[0][0] <= at:
                due, connection, flow, data = queue.popleft()
                if not connection.open:
                    continue
                if due >= self._held_trace_s:  # the others waited for the end of a cut
                    note_late_ms((at - due) * 1e3)
                if data is None:
                    self._connections.abort(connection)
                    continue
                flow.pending.append(data)
                touched[id(flow)] = (connection, flow)
            for connection, flow in touched.values():
                self._write(connection, flow)

    def _on_event(self, fd: int, mask: int) -> None:
        if fd == self._listener.fileno():
            self._accept()
        elif fd == self._wake_read:
            self._obey()
        elif fd in self._connections.by_fd:
            connection, side = self._connections.by_fd[fd]
            if not connection.connected and side is connection.server:
                self._on_connected(connection)
            elif mask & select.EPOLLOUT:
                self._write(connection, connection.outgoing(side))
            if connection.open and mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._read(connection, side)

    def _obey(self) -> None:
        os.read(self._wake_read, 4096)
        while self._commands:
            end, drop = self._commands.popleft()
            self._held_until = max(self._held_until, end)
            self._trace_time_s(time.monotonic())  # a cut starts the trace, if nothing did
            self._held_trace_s = max(self._held_trace_s, self._trace_time_s(end))
            self._schedule.hold_until(self._held_trace_s)
            self._dropping = drop
            if drop:
                self._connections.abort_all()

    def _accept(self) -> None:
        try:
            device, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(0.01)  # out of descriptors: the caller tries again
                return
            raise
        now = time.monotonic()
        self._trace_time_s(now)
        full = len(self._connections.by_fd) >= 2 * MAX_CONNECTIONS
        if full or (self._dropping and now < self._held_until):
            self.counts["refused"] += 1
            reset(device)
            return
        family, address = self._upstream
        server = socket.socket(family, socket.SOCK_STREAM)
        connection = Connection(device, server)
        self._connections.add(connection)
        self.counts["connections"] += 1
        result = server.connect_ex(address)
        if result not in (0, errno.EINPROGRESS):
            self.counts["refused"] += 1
            self._connections.abort(connection)
            return
        connection.connected = result == 0
        self._connections.watch(connection, device)
        self._connections.watch(connection, server)

    def _on_connected(self, connection: Connection) -> None:
        failed = connection.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            self.counts["refused"] += 1
            self._connections.abort(connection)
            return
        connection.connected = True
        self._write(connection, connection.up)
        if connection.open:
            self._connections.watch(connection, connection.server)

    def _read(self, connection: Connection, side: socket.socket) -> None:
        flow = connection.incoming(side)
        room = self._buffer_bytes - flow.inside
        if flow.ended or room <= 0:
            return
        try:
            data = side.recv(min(room, _READ_BYTES))
        except BlockingIOError:
            return
        except OSError:
            flow.ended = True
            self._enter(connection, flow, None)
        else:
            if data:
                self._enter(connection, flow, memoryview(data))
            else:
                flow.ended = True
                self._enter(connection, flow, _END)
        self._connections.watch(connection, side)

    def _enter(self, connection: Connection, flow: Flow, data: memoryview | None) -> None:
        """Put bytes, the closing (empty) or a reset (None) into the link."""
        at = self._trace_time_s(time.monotonic())
        due = self._schedule.uplink_due_s if flow.uplink else self._schedule.downlink_due_s
        queue = self._queues[0 if flow.uplink else 1]
        if not data:
            queue.append((due(at, 0), connection, flow, data))
            return
        flow.inside += len(data)
        self.counts["uplink_bytes" if flow.uplink else "downlink_bytes"] += len(data)
        for first in range(0, len(data), SEGMENT_BYTES):
            segment = data[first : first + SEGMENT_BYTES]
            queue.append((due(at, len(segment)), connection, flow, segment))

    def _write(self, connection: Connection, flow: Flow) -> None:
        """Hand due bytes to the destination; the rest stays pending if its kernel refuses it."""
        if not connection.open or (flow.uplink and not connection.connected):
            return
        pending = flow.pending
        try:
            while pending:
                if not pending[0]:
                    flow.destination.shutdown(socket.SHUT_WR)
                    pending.clear()
                    flow.finished = True
                    break
                some = [part for part, _ in zip(pending, range(64), strict=False) if part]
                sent = flow.destination.sendmsg(some)
                flow.inside -= sent
                while sent:
                    if sent < len(pending[0]):
                        pending[0] = pending[0][sent:]
                        break
                    sent -= len(pending.popleft())
        except BlockingIOError:
            pass
        except OSError:
            self._connections.abort(connection)
            return
        if connection.up.finished and connection.down.finished:
            self._connections.close(connection)
            return
        self._connections.watch(connection, flow.destination)
        self._connections.watch(connection, flow.source)


class Lateness:
    """Counts lateness in bins of 0.05 ms up to 0.2 s; the last one counts all later ones."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._latest_ms = 0.0

    def note(self, late_ms: float) -> None:
        """Count a segment with this lateness."""
        self._latest_ms = max(self._latest_ms, late_ms)
        self._counts[min(int(late_ms / _BIN_MS), _BINS - 1)] += 1

    def stats(self) -> dict[str, float]:
        """``late_ms_p50``, ``_p95``, ``_p99`` (absent if nothing was counted), ``_max``."""
        total = int(self._counts.sum())
        below = np.cumsum(self._counts) / max(total, 1)
        late = {
            f"late_ms_p{p}": float(np.searchsorted(below, p / 100) + 1) * _BIN_MS
            for p in (50, 95, 99)
        }
        return {**(late if total else {}), "late_ms_max": self._latest_ms}


def raise_priority() -> str:
    """Ask the system to run this thread before ordinary ones; returns the result in one word.

    With root (CAP_SYS_NICE) it becomes ``realtime``: a link that waits behind busy processes is
    late by tens of milliseconds. It sleeps nearly all the time, so it does not starve other
    threads. Without the right it stays ``normal``.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        return "normal"
    return "realtime"
