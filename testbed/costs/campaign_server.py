"""The server of a campaign: a child of the campaign, or one that runs on another machine.

Server times come with every answer, measured by the server's own clock, so nothing here needs the
two clocks to agree. A server on another machine is reached through the same emulated links; the
round trip of the path to it adds to the link's. Such a server may be lost: a block without all its
answers is no measurement, so it is measured again once the server is back.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from cnn.bundle import Bundle
from cnn.common.errors import RemoteError
from testbed.costs.campaign_config import CampaignConfig
from testbed.records.measurement import Measurement
from testbed.server.server_process import ServerProcess
from testbed.wire.address import join_address, parse_address
from testbed.wire.client import MecClient
from testbed.wire.protocol import WireError
from testbed.wire.tls import TlsFiles

FIRST_WAIT_S: Final = 30.0
"""Wait for a server at the start of a campaign; one that was lost is waited for without end."""
ASK_S: Final = 5.0
SAY_S: Final = 60.0
MOST_TRIES: Final = 20
"""Attempts at one block: on a path that breaks more often nothing can be measured."""
_CONNECTS: Final = 5
_LOST: Final = ("unavailable", "rejected")
"""Reasons of a fallback after which the server is asked for, and the block measured again."""

Say = Callable[[str], object]
_log = logging.getLogger(__name__)


class ServerLostError(RemoteError):
    """The server on another machine does not answer any more."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where the link of a block leads.

    Attributes:
        host: address of the server.
        port: of the server.
        tls: certificate files of the client in front of the link; None without TLS.
        rtt_ms: round trip of the path from here to the server; 0 if it runs here.
        lost: whether a frame shows that the server is lost.
    """

    host: str
    port: int
    tls: TlsFiles | None = None
    rtt_ms: float = 0.0
    lost: Callable[[Measurement], bool] = lambda row: False


Measure = Callable[[Upstream], None]
"""Measures a block whole or not at all; it raises `ServerLostError` at a frame that says so."""


class OwnServer:
    """The campaign's own server, which is not expected to fail."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server

    def measure(self, name: str, block: Measure) -> None:
        """Measure a block."""
        block(Upstream("127.0.0.1", self._server.port))


class RemoteServer:
    """A running server on another machine.

    Args:
        address: HOST:PORT.
        bundle_hash: of the network that it must have.
        tls: certificate files; None connects without TLS.
        say: called with a line when the server is lost, while it is away, and when it is back.
    """

    def __init__(
        self, address: str, bundle_hash: str, tls: TlsFiles | None, say: Say = _log.warning
    ) -> None:
        self.host, self.port = parse_address(address, "--server")
        self.address = join_address(self.host, self.port)
        self._bundle_hash, self._tls, self._say = bundle_hash, tls, say

    def greet(self, timeout_s: float) -> None:
        """Raise `RemoteError` unless it answers in time and has the network."""
        with MecClient(self.address, self._bundle_hash, self._tls) as client:
            client.connect(timeout_s)

    def measure(self, name: str, block: Measure) -> None:
        """Measure a block, and again if the server was lost on the way.

        Raises:
            RemoteError: if it has another network now, or was lost too often.
        """
        for left in reversed(range(MOST_TRIES)):
            try:
                return block(self._upstream())
            except WireError:
                raise
            except RemoteError as error:
                if not left:
                    raise
                self._say(f"lost {self.address} in block {name}: {error.given}")
                self._wait(name)

    def _upstream(self) -> Upstream:
        # The link is on this machine: the name in the certificate is still the server's.
        tls = self._tls and replace(self._tls, server_name=self._tls.server_name or self.host)
        host, rtt_ms = path_to(self.host, self.port)
        return Upstream(host, self.port, tls, rtt_ms, self._is_lost)

    def _is_lost(self, row: Measurement) -> bool:
        if row.status != "fallback" or row.reason != "timeout":
            return row.status == "fallback" and row.reason in _LOST
        try:  # a slow answer, or no connection?
            self.greet(ASK_S)
        except RemoteError:
            return True
        return False

    def _wait(self, name: str) -> None:
        """Return when it answers; raise `WireError` if it has another network now."""
        began_s = said_s = time.monotonic()
        while True:
            try:
                self.greet(ASK_S)
            except WireError:
                raise
            except RemoteError:
                time.sleep(1.0)  # a refusal comes at once
                now_s = time.monotonic()
                if now_s - said_s >= SAY_S:
                    said_s = now_s
                    self._say(f"waiting for {self.address}, {now_s - began_s:.0f} s so far")
                continue
            away_s = time.monotonic() - began_s
            self._say(f"{self.address} is back after {away_s:.0f} s: block {name} again")
            return


@contextlib.contextmanager
def server_of(
    config: CampaignConfig, bundle: Bundle, tls: TlsFiles | None, say: Say
) -> Iterator[OwnServer | RemoteServer]:
    """The campaign's server, ready.

    Raises:
        RemoteError: if it does not start, or does not answer, or has another network.
    """
    if config.server is None:
        threads = ("--threads", str(config.server_threads))
        with ServerProcess(bundle.path, options=threads) as server:
            yield OwnServer(server)
        return
    remote = RemoteServer(config.server, bundle.hash, tls, say)
    remote.greet(FIRST_WAIT_S)
    yield remote


def path_to(host: str, port: int) -> tuple[str, float]:
    """The first address of a host that answers, and the round trip of the bare path to it.

    Returns:
        the address as the system's resolver gives it, and the least time of a few TCP handshakes,
        milliseconds. Unlike a call's, it has no part of gRPC's work, which belongs to the fixed
        cost of an exchange.

    Raises:
        ServerLostError: if nothing answers there.
    """
    failure: OSError = OSError("no address")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        found, failure = [], error
    for family, _, _, _, address in found:
        try:
            return str(address[0]), min(_handshake_ms(family, address) for _ in range(_CONNECTS))
        except OSError as error:
            failure = error
    raise ServerLostError(
        f"{join_address(host, port)}: {failure.strerror or failure}",
        expected="a server that can be reached",
        hint="check the address and the network",
    ) from failure


def _handshake_ms(family: int, address: Any) -> float:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(ASK_S)
        began = time.perf_counter()
        probe.connect(address)
        return (time.perf_counter() - began) * 1e3
