"""The user-space link's sockets: where it listens, where it connects to, how it resets."""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

from cnn.common.errors import RemoteError
from testbed.wire.address import check_free, check_port, join_address

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 s: close() then sends a reset."""


def reset(side: socket.socket) -> None:
    """Close with a reset."""
    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    side.close()


def resolve(upstream: tuple[str, int]) -> tuple[int, Any]:
    """Family and address of a host and port.

    Raises:
        ConfigError: if that is no port (the system's resolver would take another instead).
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
    # Accepted sockets inherit it, so that a sender's bytes queue in the sender, not here.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes // 2)
    listener.bind(where)
    listener.listen(128)
    listener.setblocking(False)
    return listener
