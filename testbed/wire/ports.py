"""Is an address free to listen on? Asked before a library would fail less clearly."""

from __future__ import annotations

import errno
import socket

from cnn.common.errors import SliproadError
from testbed.wire.address import check_port, join_address


class PortInUseError(SliproadError):
    """Another process listens on the address, or the address is not this machine's."""


def check_free(host: str, port: int, *, what: str) -> None:
    """Raise `PortInUseError` unless this process may listen on (host, port), or `ConfigError`
    if that is no port.

    Args:
        host: name or address; port: 0 asks only whether the host is ours.
        what: what wants to listen, for the message.
    """
    check_port(port, f"{what} port")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        reason = "in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        raise PortInUseError(
            f"{what} address {join_address(host, port)}: {reason}",
            expected="a free port on an address of this machine",
            hint="stop the process that has it, or choose another (0 takes any free port)",
        ) from error


def find_free(host: str) -> int:
    """A TCP port that is free on `host` now (another process may still take it)."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
