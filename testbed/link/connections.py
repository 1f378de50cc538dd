"""The connections of the user-space link: their two flows, and their registration with epoll."""

from __future__ import annotations

import select
import socket
import struct
from collections import deque
from typing import Any, Final

from cnn.common.errors import RemoteError
from testbed.wire.address import check_free, check_port, join_address

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 s: close() then sends a reset."""


class Flow:
    """One direction of one connection."""

    __slots__ = ("destination", "ended", "finished", "inside", "pending", "source", "uplink")

    def __init__(self, source: socket.socket, destination: socket.socket, uplink: bool) -> None:
        self.source, self.destination, self.uplink = source, destination, uplink
        self.inside = 0
        """Bytes read from the source and not yet taken by the destination's kernel."""
        self.pending: deque[memoryview] = deque()
        """Due bytes that the destination's kernel did not accept yet."""
        self.ended = False
        """The source has closed (or failed); nothing more is read."""
        self.finished = False
        """The closing has been passed on."""


class Connection:
    """The two sockets and two flows of one device connection."""

    __slots__ = ("connected", "device", "down", "open", "server", "up")

    def __init__(self, device: socket.socket, server: socket.socket) -> None:
        self.device, self.server = device, server
        self.up = Flow(device, server, uplink=True)
        self.down = Flow(server, device, uplink=False)
        self.connected = False
        self.open = True

    def incoming(self, side: socket.socket) -> Flow:
        """The flow that `side` feeds."""
        return self.up if side is self.device else self.down

    def outgoing(self, side: socket.socket) -> Flow:
        """The flow that `side` receives."""
        return self.down if side is self.device else self.up


class Connections:
    """Every open connection, by file descriptor, and its registration with epoll.

    Args:
        epoll: where sockets are registered.
        buffer_bytes: bound of bytes inside the link per connection and direction.
    """

    def __init__(self, epoll: select.epoll, buffer_bytes: int) -> None:
        self._epoll, self._buffer_bytes = epoll, buffer_bytes
        self.by_fd: dict[int, tuple[Connection, socket.socket]] = {}
        """Connection and side of each open socket."""
        self._masks: dict[int, int] = {}

    def add(self, connection: Connection) -> None:
        """Add a connection's two sockets; `watch` registers them."""
        for side in (connection.device, connection.server):
            side.setblocking(False)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer_bytes)
            self.by_fd[side.fileno()] = (connection, side)

    def watch(self, connection: Connection, side: socket.socket) -> None:
        """Register with epoll for exactly the events that can be used now."""
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

    def close(self, connection: Connection) -> None:
        """Close both sides; data that their kernels still hold is sent."""
        self._forget(connection)
        connection.device.close()
        connection.server.close()

    def abort(self, connection: Connection) -> None:
        """Reset both sides at once."""
        if connection.open:
            self._forget(connection)
            reset(connection.device)
            reset(connection.server)

    def abort_all(self) -> None:
        """Reset every connection."""
        for connection, _ in list(self.by_fd.values()):
            self.abort(connection)

    def _forget(self, connection: Connection) -> None:
        connection.open = False
        for side in (connection.device, connection.server):
            fd = side.fileno()
            if self._masks.pop(fd, None):
                self._epoll.unregister(fd)
            self.by_fd.pop(fd, None)
        connection.up.pending.clear()
        connection.down.pending.clear()


def reset(side: socket.socket) -> None:
    """Close with a reset."""
    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    side.close()


def resolve(upstream: tuple[str, int]) -> tuple[int, Any]:
    """Family and address of a host and port.

    Raises:
        ConfigError: if it is not a port (the system's resolver would use another one instead).
        RemoteError: for an unknown host.
    """
    host, port = upstream
    check_port(port, "server port")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise RemoteError(
            f"server address {join_address(host, port)}: {error}",
            expected="a name or address that can be resolved",
            hint="correct --server",
        ) from error
    return found[0][0], found[0][4]


def listen(address: tuple[str, int], buffer_bytes: int) -> socket.socket:
    """A listening socket, not blocking; raises `PortInUseError` if the address is taken."""
    host, port = address
    check_free(host, port, what="link")
    family, kind, protocol, _, where = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted sockets inherit it, so bytes queue in the sender, not here.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes // 2)
    listener.bind(where)
    listener.listen(128)
    listener.setblocking(False)
    return listener
