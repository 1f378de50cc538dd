"""The address format HOST:PORT for options, the device's file and code.

HOST is a name, an IPv4 address, or an IPv6 address in brackets. gRPC, the system's resolver and
an HTTP server each interpret other forms differently (a scheme, a list, a port beyond 65535, which
becomes another port), so only this form is passed to them.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from typing import Final

from cnn.common.errors import ConfigError, SliproadError

FORM: Final = "HOST:PORT"
_EXAMPLE: Final = "mec.example:8001 or [::1]:8001"
_SCHEME: Final = re.compile(
    r"([a-z][a-z0-9+.-]*://|(?:dns|xds|ipv4|ipv6|unix|unix-abstract|vsock|passthrough):(?![0-9]+$))",
    re.IGNORECASE,
)
"""Prefix of a URL or of gRPC's names (https://github.com/grpc/grpc/blob/master/doc/naming.md)."""
_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
"""A host name (RFC 1123, section 2.1), with the underscore of container names."""
_NUMBERS: Final = re.compile(r"(.*\.)?(0[xX][0-9A-Fa-f]*|[0-9]+)\.?")
"""Text that resolvers read as an IPv4 address, in some cases shortened or in hexadecimal."""
_ZONE: Final = re.compile(r"[A-Za-z0-9_.-]+")


def parse_address(text: str, what: str, *, listen: bool = False) -> tuple[str, int]:
    """HOST:PORT -> (host without brackets, port).

    Args:
        text: the given address.
        what: names it in messages, such as an option.
        listen: the address is for listening; port 0 then means any free one.

    Raises:
        ConfigError: if it is anything else.
    """
    given = f"{what} {text[:80]!r}"
    _refuse_others(text, given)
    host, colon, port = text.rpartition(":")
    if text.endswith("]") or not colon:
        raise _error(given, "no port", f"write {text or 'HOST'}:8001, if that is its port")
    if text.startswith("[") != host.endswith("]"):
        raise _error(given, "brackets that enclose no address", f"give one, such as {_EXAMPLE}")
    if ":" in host and not host.startswith("["):
        hint = f"write [{text}]:8001" if _is_ipv6(text) else f"give one, such as {_EXAMPLE}"
        if _is_ipv6(host):
            hint = f"write [{host}]:{port}"
        raise _error(given, "an IPv6 address without brackets, or more than one port", hint)
    lowest = 0 if listen else 1
    if not (port.isascii() and port.isdigit() and len(port) <= 5) or not (
        lowest <= int(port) <= 65535
    ):
        raise _error(given, f"port {port!r:.20}", f"give a port from {lowest} to 65535")
    return _host(host, given, FORM), int(port)


def parse_host(text: str, what: str) -> str:
    """A name or address without a port -> the same without brackets; raises `ConfigError`."""
    given = f"{what} {text[:80]!r}"
    _refuse_others(text, given, "HOST")
    if _is_ipv6(text):
        return text
    if ":" in text and not text.startswith("["):
        raise _error(given, "a port with it", f"write {text.partition(':')[0]}", "HOST")
    return _host(text, given, "HOST")


def check_port(port: int, what: str) -> None:
    """Raise `ConfigError` unless `port` is a port, or 0 for any free one."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"{what} {port}", expected="0..65535", hint="choose another port")


def is_loopback(host: str) -> bool:
    """True if `host` (a name or address without brackets) is reachable only from this machine,
    and traffic to it stays on this machine; a name is resolved by this system."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(a[4][0]).partition("%")[0]).is_loopback for a in found)


def join_address(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _refuse_others(text: str, given: str, form: str = FORM) -> None:
    """Raise if it is a URL, a path, a list, or holds characters that no address has."""
    scheme = _SCHEME.match(text)
    if scheme is not None:
        rest = text[scheme.end() :].strip("/").partition("/")[0]
        local = scheme[0].startswith(("unix", "vsock"))
        hint = f"give one, such as {_EXAMPLE}" if local or not rest else f"write {rest} alone"
        raise _error(given, f"{scheme[0]} before it", hint, form)
    if "," in text or ";" in text:
        first = re.split("[,;]", text)[0].strip()
        raise _error(given, "more than one address", f"give one, such as {first}", form)
    if any(c.isspace() or not c.isprintable() for c in text):
        raise _error(given, "a space or control character in it", "remove it", form)
    if "/" in text:
        raise _error(given, "a path in it", "leave the path out", form)


def _host(host: str, given: str, form: str) -> str:
    if host.startswith("[") and host.endswith("]") and _is_ipv6(host[1:-1]):
        return host[1:-1]
    if not host:
        raise _error(given, "no host", "give one (0.0.0.0 listens on every address)", form)
    if _NUMBERS.fullmatch(host):
        if not _is_ipv4(host):
            raise _error(given, f"{host!r:.40} is no IPv4 address", "correct it", form)
    elif len(host) > 253 or not all(map(_LABEL.fullmatch, host.removesuffix(".").split("."))):
        hint = "correct it (other alphabets in their xn-- form)"
        raise _error(given, f"{host!r:.40} is no host name", hint, form)
    return host


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_ipv6(text: str) -> bool:
    address, percent, zone = text.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return not percent or _ZONE.fullmatch(zone) is not None


def _error(given: str, why: str, hint: str, form: str = FORM) -> ConfigError:
    return ConfigError(f"{given}: {why}", expected=form, hint=hint)


class PortInUseError(SliproadError):
    """Another process listens on the address, or the address is not this machine's."""


def check_free(host: str, port: int, *, what: str) -> None:
    """Raise `PortInUseError` unless this process may listen on (host, port), or `ConfigError`
    if that is no port.

    Args:
        host: name or address; port: 0 only checks that the host is this machine.
        what: the listener's name, for the message.
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
    """A TCP port that is free on `host` now (another process may take it meanwhile)."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
