"""The link in user space: a TCP proxy that replays a trace, without root.

The device connects to the proxy, the proxy to the server; bytes come out when
`LinkSchedule` says. One thread serves every connection with epoll. Only TCP payload is
counted: headers, retransmissions and the handshake cost nothing here (the measured
capacities are payload rates as well). A connection is accepted at once; its first bytes
travel like any others.

`LinkEmulator` runs in the caller's process and shares its interpreter lock; where timing is
measured, use `testbed.link.process.LinkProcess`, the same in a process of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from types import TracebackType
from typing import Any, Final

import numpy as np

from cnn.errors import ConfigError, RemoteError
from testbed.link.record import LinkRecord
from testbed.link.schedule import LinkSchedule
from testbed.traces.trace import Trace
from testbed.wire.ports import check_free, join_address

SEGMENT_BYTES: Final = 1448
"""Bytes that travel together: one TCP segment on an Ethernet link with time stamps."""

BUFFER_BYTES: Final = 256 * 1024
"""Bytes a connection may have inside the link in one direction (the modem's buffer) before
the proxy stops reading and the sender's own buffers fill."""

MAX_CONNECTIONS: Final = 512
_READ_BYTES: Final = 64 * 1024
_LATE_BIN_MS: Final = 0.05
_LATE_BINS: Final = 4000
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 s: close() then sends a reset."""


class _Flow:
    """One direction of one connection."""

    __slots__ = ("destination", "ended", "finished", "inside", "pending", "source", "uplink")

    def __init__(self, source: socket.socket, destination: socket.socket, uplink: bool) -> None:
        self.source, self.destination, self.uplink = source, destination, uplink
        self.inside = 0
        """Bytes read from the source and not yet taken by the destination's kernel."""
        self.pending: deque[memoryview] = deque()
        """Due bytes that the destination's kernel would not take yet."""
        self.ended = False
        """The source has sent its end (or an error); nothing more is read."""
        self.finished = False
        """The end has been passed on."""


class _Connection:
    """The two sockets and two flows of one device connection."""

    __slots__ = ("connected", "device", "down", "open", "server", "up")

    def __init__(self, device: socket.socket, server: socket.socket) -> None:
        self.device, self.server = device, server
        self.up = _Flow(device, server, uplink=True)
        self.down = _Flow(server, device, uplink=False)
        self.connected = False
        self.open = True

    def incoming(self, side: socket.socket) -> _Flow:
        return self.up if side is self.device else self.down

    def outgoing(self, side: socket.socket) -> _Flow:
        return self.down if side is self.device else self.up


_END: Final = memoryview(b"")
_Item = tuple[float, _Connection, _Flow, memoryview | None]
"""Due (trace time), connection, flow, bytes; empty bytes are the end, None is a reset."""


class LinkEmulator:
    """A user-space link between a device and a server.

    Use as a context manager, or call `close`. Trace time starts with the first connection,
    unless `start` is called before.

    Args:
        trace: uplink capacity and round trip to replay, repeated.
        upstream: host and port of the server.
        listen: host and port for the device; port 0 takes a free one.
        start_offset_s: trace time at the start, seconds.
        downlink_mbps: capacity towards the device, Mbit/s; None is unlimited.
        buffer_bytes: bound of bytes inside the link per connection and direction.
        realtime: ask for real-time priority of the link's thread (sensible only where the
            interpreter is the link's own); `stats` says whether it was granted.

    Raises:
        PortInUseError: the listening address is taken.
        RemoteError: the server's host name is unknown.
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        trace: Trace,
        upstream: tuple[str, int],
        listen: tuple[str, int] = ("127.0.0.1", 0),
        *,
        start_offset_s: float = 0.0,
        downlink_mbps: float | None = None,
        buffer_bytes: int = BUFFER_BYTES,
        realtime: bool = False,
    ) -> None:
        if start_offset_s < 0 or buffer_bytes < 2 * SEGMENT_BYTES:
            raise ConfigError(
                f"start offset {start_offset_s} s, buffer {buffer_bytes} bytes",
                expected=f"an offset from 0 up and at least {2 * SEGMENT_BYTES} bytes",
                mend="correct them",
            )
        self.trace = trace
        self._offset_s, self._downlink_mbps = start_offset_s, downlink_mbps
        self._buffer_bytes = buffer_bytes
        self._realtime, self._priority = realtime, "normal"
        self._schedule = LinkSchedule(trace, downlink_mbps)
        self._upstream = _resolve(upstream)
        self._start_time: float | None = None
        self._cuts: list[tuple[float, float]] = []
        self._held_until = 0.0  # time.monotonic
        self._held_trace_s = 0.0
        self._dropping = False
        self._queues: tuple[deque[_Item], deque[_Item]] = (deque(), deque())  # up, down
        self._by_fd: dict[int, tuple[_Connection, socket.socket]] = {}
        self._masks: dict[int, int] = {}
        self._counts = {"connections": 0, "refused": 0, "uplink_bytes": 0, "downlink_bytes": 0}
        self._late = np.zeros(_LATE_BINS, np.int64)
        self._latest_ms = 0.0
        self._commands: deque[tuple[float, bool]] = deque()
        self._last_record: LinkRecord | None = None
        self._failure: BaseException | None = None
        self._stopping = False
        self._listener = _listen(listen, buffer_bytes)
        self.host, self.port = self._listener.getsockname()[:2]
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="sliproad-link", daemon=True)
        self._thread.start()

    # What callers see.

    @property
    def start_time(self) -> float | None:
        """`time.monotonic` at which the trace started; None if it has not yet."""
        return self._start_time

    def start(self, at: float | None = None) -> None:
        """Start the trace at a moment of `time.monotonic` (None: now). Once only."""
        if self._start_time is not None:
            raise ConfigError(
                "the link has started already", expected="one start", mend="call start first"
            )
        self._start_time = time.monotonic() if at is None else at

    def cut(self, seconds: float, *, drop: bool = False) -> None:
        """Cut the link, from now, for so long.

        Bytes inside are held and come out when the cut ends, as TCP would repeat them.

        Args:
            seconds: how long.
            drop: also reset every connection at once, and every new one until the end.
        """
        if not 0 < seconds < 86400:
            raise ConfigError(
                f"a cut of {seconds} s", expected="between 0 s and a day", mend="correct it"
            )
        now = time.monotonic()
        self._cuts.append((now, now + seconds))
        self._commands.append((now + seconds, drop))
        self._wake()

    def state_at(self, monotonic_s: float) -> tuple[float, float]:
        """True uplink capacity (Mbit/s) and base round trip (ms) at a moment."""
        return self.record().state_at(monotonic_s)

    def truth(self, sent_s: float, done_s: float) -> tuple[float, float]:
        """Mean capacity (Mbit/s) and round trip (ms) between two moments (`LinkRecord.truth`)."""
        return self.record().truth(sent_s, done_s)

    def record(self) -> LinkRecord:
        """What the link replays and has done, for truth and replay."""
        cuts = tuple(self._cuts)
        last = self._last_record
        if last is None or last.cuts != cuts or last.start_time != self._start_time:
            last = LinkRecord(
                self.trace,
                self._start_time,
                self._offset_s,
                self._downlink_mbps,
                cuts,
                "user-space",
            )
            self._last_record = last
        return last

    def stats(self) -> dict[str, Any]:
        """Counts, and how late bytes came out compared with the schedule (milliseconds)."""
        total = int(self._late.sum())
        below = np.cumsum(self._late) / max(total, 1)
        late = {
            f"late_ms_p{p}": float(np.searchsorted(below, p / 100) + 1) * _LATE_BIN_MS
            for p in (50, 95, 99)
        }
        return {
            **self._counts,
            "trace": self.trace.name,
            "priority": self._priority,
            "cuts": len(self._cuts),
            **(late if total else {}),
            "late_ms_max": self._latest_ms,
        }

    def close(self) -> None:
        """Reset every connection and stop. Raises what stopped the link before, if anything."""
        self._stopping = True
        self._wake()
        self._thread.join()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise RemoteError(
                f"the link stopped: {failure!r}",
                expected="a link that runs until it is closed",
                mend="report this with the trace and the command",
            ) from failure

    def __enter__(self) -> LinkEmulator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # The thread.

    def _wake(self) -> None:
        # It fails where a wake-up is already under way or the thread has ended: both are fine.
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"x")

    def _run(self) -> None:
        try:
            if self._realtime:
                self._priority = _raise_priority()
            while not self._stopping:
                self._deliver()
                # select on the epoll descriptor waits with microseconds, epoll with whole ms.
                select.select([self._epoll.fileno()], [], [], self._until_next_s())
                for fd, mask in self._epoll.poll(0):
                    self._on_event(fd, mask)
        except BaseException as error:
            self._failure = error
        finally:
            self._shut()

    def _shut(self) -> None:
        for connection, _ in list(self._by_fd.values()):
            self._abort(connection)
        self._listener.close()
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _trace_time_s(self, now: float) -> float:
        if self._start_time is None:
            self._start_time = now
        return max(now - self._start_time, 0.0) + self._offset_s

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
        at = self._trace_time_s(now)
        for queue in self._queues:
            touched: dict[int, tuple[_Connection, _Flow]] = {}
            while queue and queue[0][0] <= at:
                due, connection, flow, data = queue.popleft()
                if not connection.open:
                    continue
                if due >= self._held_trace_s:  # the others waited for the end of a cut
                    self._note_lateness((at - due) * 1e3)
                if data is None:
                    self._abort(connection)
                    continue
                flow.pending.append(data)
                touched[id(flow)] = (connection, flow)
            for connection, flow in touched.values():
                self._write(connection, flow)

    def _note_lateness(self, late_ms: float) -> None:
        self._latest_ms = max(self._latest_ms, late_ms)
        self._late[min(int(late_ms / _LATE_BIN_MS), _LATE_BINS - 1)] += 1

    def _on_event(self, fd: int, mask: int) -> None:
        if fd == self._listener.fileno():
            self._accept()
        elif fd == self._wake_read:
            self._obey()
        elif fd in self._by_fd:
            connection, side = self._by_fd[fd]
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
                for connection, _ in list(self._by_fd.values()):
                    self._abort(connection)

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
        full = len(self._by_fd) >= 2 * MAX_CONNECTIONS
        if full or (self._dropping and now < self._held_until):
            self._counts["refused"] += 1
            _reset(device)
            return
        family, address = self._upstream
        server = socket.socket(family, socket.SOCK_STREAM)
        connection = _Connection(device, server)
        for side in (device, server):
            side.setblocking(False)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer_bytes)
            self._by_fd[side.fileno()] = (connection, side)
        self._counts["connections"] += 1
        result = server.connect_ex(address)
        if result not in (0, errno.EINPROGRESS):
            self._counts["refused"] += 1
            self._abort(connection)
            return
        connection.connected = result == 0
        self._watch(connection, device)
        self._watch(connection, server)

    def _on_connected(self, connection: _Connection) -> None:
        failed = connection.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            self._counts["refused"] += 1
            self._abort(connection)
            return
        connection.connected = True
        self._write(connection, connection.up)
        if connection.open:
            self._watch(connection, connection.server)

    def _read(self, connection: _Connection, side: socket.socket) -> None:
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
        self._watch(connection, side)

    def _enter(self, connection: _Connection, flow: _Flow, data: memoryview | None) -> None:
        """Put bytes, an end (empty) or a reset (None) into the link."""
        at = self._trace_time_s(time.monotonic())
        due = self._schedule.uplink_due_s if flow.uplink else self._schedule.downlink_due_s
        queue = self._queues[0 if flow.uplink else 1]
        if not data:
            queue.append((due(at, 0), connection, flow, data))
            return
        flow.inside += len(data)
        self._counts["uplink_bytes" if flow.uplink else "downlink_bytes"] += len(data)
        for first in range(0, len(data), SEGMENT_BYTES):
            segment = data[first : first + SEGMENT_BYTES]
            queue.append((due(at, len(segment)), connection, flow, segment))

    def _write(self, connection: _Connection, flow: _Flow) -> None:
        """Hand due bytes to the destination; what its kernel refuses stays pending."""
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
            self._abort(connection)
            return
        if connection.up.finished and connection.down.finished:
            self._close(connection)
            return
        self._watch(connection, flow.destination)
        self._watch(connection, flow.source)

    def _watch(self, connection: _Connection, side: socket.socket) -> None:
        """Ask epoll for exactly what can be used now."""
        if not connection.open:
            return
        incoming, outgoing = connection.incoming(side), connection.outgoing(side)
        mask = 0
        if not incoming.ended and incoming.inside < self._buffer_bytes:
            mask |= select.EPOLLIN
        if outgoing.pending or (side is connection.server and not connection.connected):
            mask |= select.EPOLLOUT
        fd = side.fileno()
        if mask == self._masks.get(fd, 0):
            return
        if not mask:  # an idle registration would still report hang-ups, for ever
            self._epoll.unregister(fd)
            del self._masks[fd]
            return
        if fd in self._masks:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
        self._masks[fd] = mask

    def _forget(self, connection: _Connection) -> None:
        connection.open = False
        for side in (connection.device, connection.server):
            fd = side.fileno()
            if self._masks.pop(fd, None):
                self._epoll.unregister(fd)
            self._by_fd.pop(fd, None)
        connection.up.pending.clear()
        connection.down.pending.clear()

    def _close(self, connection: _Connection) -> None:
        self._forget(connection)
        connection.device.close()
        connection.server.close()

    def _abort(self, connection: _Connection) -> None:
        """Reset both sides at once."""
        if connection.open:
            self._forget(connection)
            _reset(connection.device)
            _reset(connection.server)


def _raise_priority() -> str:
    """Ask the system to run this thread before ordinary ones; how it went, in a word.

    With root (CAP_SYS_NICE) it becomes ``realtime``: a link that waits its turn behind busy
    processes is late by tens of milliseconds. It sleeps nearly all the time, so nothing else
    starves. Without the right it stays ``normal``.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        return "normal"
    return "realtime"


def _reset(side: socket.socket) -> None:
    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    side.close()


def _resolve(upstream: tuple[str, int]) -> tuple[int, Any]:
    host, port = upstream
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise RemoteError(
            f"server address {join_address(host, port)}: {error}",
            expected="a name or address that can be resolved",
            mend="correct --server",
        ) from error
    return found[0][0], found[0][4]


def _listen(address: tuple[str, int], buffer_bytes: int) -> socket.socket:
    host, port = address
    check_free(host, port, what="link")
    family, kind, protocol, _, where = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted sockets inherit it, so that a sender's bytes queue in the sender, not here.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes // 2)
    listener.bind(where)
    listener.listen(128)
    listener.setblocking(False)
    return listener
