"""The device's connection to its server: open during calls, silent in between.

A gRPC channel that cannot connect tries again about twice a second, for ever, even without calls,
and every packet wakes a modem. So a channel that has failed is closed at once, and the next call
makes a new one.

`why_tls_fails` explains in plain words why TLS with a server fails. gRPC reports a failed handshake
as an unreachable server, with the library's own text at the end, and reports nothing if the
server closes the connection because of the device's certificate. So the handshake is repeated
with the standard library.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from collections import Counter
from typing import Any, Final, NamedTuple

import grpc

from testbed.wire.address import parse_address
from testbed.wire.certificates import complaints, system_authorities
from testbed.wire.tls import TlsFiles

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # A device sends one small frame at a time: it must notice a dead link and come back
    # within 2 s of the link's return. TCP's own retransmission timer doubles during an
    # outage, so a connection whose bytes are not acknowledged for 1.5 s is dropped (the
    # keep-alive's time-out also sets TCP_USER_TIMEOUT), and one whose server gives no sign of
    # life for 1 + 1.5 s while calls are running. An attempt at a new one ends after 2 s, which
    # leaves room for a TLS handshake over a slow link; the kernel repeats a lost SYN after 1 s.
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1500),
    ("grpc.http2.max_pings_without_data", 0),
    # Between calls nothing is sent: neither keep-alives nor measurements of the link's
    # bandwidth-delay product, which messages of this size have no use for.
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 500),
    # A frame is sent once or finished locally; gRPC must not send it again by itself.
    ("grpc.enable_retries", 0),
    # Each client has its own connection, and uses no proxy from the environment.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
"""https://grpc.github.io/grpc/core/group__grpc__arg__keys.html and
https://github.com/grpc/grpc/blob/master/doc/connection-backoff.md."""

RECONNECT_S: Final = 0.1
"""A call sooner than this after a failure fails in the same way, without another attempt."""
QUIET_S: Final = 2.5
"""Idle time after a call that timed out: an attempt to connect has ended by then."""
_POLL_ENDS_S: Final = 0.3
"""grpcio's thread that reads the state checks five times a second whether it may end, and would
report an error on a closed channel."""
_LOST: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_SILENT: Final = (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.IDLE)

_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""The first bytes of an HTTP/2 client, with empty SETTINGS (RFC 9113, section 3.4)."""

_EXPIRED: Final = 10
_NOT_YET_VALID: Final = 9
_OTHER_NAME: Final = (62, 63, 64)
_UNKNOWN_AUTHORITY: Final = (2, 7, 18, 19, 20, 21)
"""X509_V_ERR_... (7: by another authority of the same name;
https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/)."""


class Connection:
    """Unary calls of bytes to one server; safe for several threads.

    Args:
        target: ``host:port``.
        credentials: of TLS; None connects without TLS.
        options: channel arguments beside `CHANNEL_OPTIONS`.
    """

    def __init__(
        self,
        target: str,
        credentials: grpc.ChannelCredentials | None,
        options: tuple[tuple[str, Any], ...] = (),
    ) -> None:
        self._target, self._credentials = target, credentials
        self._options: list[tuple[str, Any]] = [*CHANNEL_OPTIONS, *options]
        self._changed = threading.Condition()
        self._closed = False
        self._channel: grpc.Channel | None = None
        self._methods: dict[str, Any] = {}
        self._calls = 0
        self._busy: Counter[grpc.Channel] = Counter()
        self._ended_s = 0.0
        self._failure: grpc.RpcError | None = None
        self._watched = False

    def call(self, method: str, data: bytes, timeout_s: float) -> bytes:
        """Send `data` to `method` (``/service/name``) and wait for the answer's bytes.

        Raises:
            grpc.RpcError: no answer, or a status other than OK; it is also a `grpc.Call`, which
                gives the status.
        """
        channel, unary = self._begin(method)
        try:
            answer: bytes = unary(data, timeout=timeout_s)
        except grpc.RpcError as error:
            self._end(channel, error)
            raise
        self._end(channel, None)
        return answer

    def renew(
        self, credentials: grpc.ChannelCredentials, method: str, data: bytes, timeout_s: float
    ) -> None:
        """Connect again with other credentials, without losing a call.

        An open connection serves calls until the new one has answered a call of its own, and ends
        with its last call. If the new one does not answer, the old one stays until it breaks; after
        that the new credentials are used.

        Args:
            credentials: of TLS, from now on.
            method: asked on the new connection, with `data` as its message.
            data: message.
            timeout_s: longest wait for an answer.

        Raises:
            grpc.RpcError: the new connection gave no answer.
        """
        with self._changed:
            self._credentials = credentials
            if self._closed or self._channel is None:
                return
            fresh = self._open()
        try:
            fresh.unary_unary(method)(data, timeout=timeout_s)
        except grpc.RpcError:
            fresh.close()
            raise
        with self._changed:
            old = fresh if self._closed else self._forget(None)
            self._channel = None if self._closed else fresh
            ended = old if old is not None and not self._busy[old] else None
        if ended is not None:
            ended.close()

    def close(self) -> None:
        """Close it permanently; a running call ends as cancelled."""
        with self._changed:
            self._closed = True
            channel = self._forget(None)
            self._changed.notify_all()
        if channel is not None:
            channel.close()

    def _begin(self, method: str) -> tuple[grpc.Channel, Any]:
        with self._changed:
            if self._closed:
                raise ValueError("the connection is closed")
            if self._channel is None:
                last = self._failure
                if last is not None and time.monotonic() - self._ended_s < RECONNECT_S:
                    raise last.with_traceback(None)
                self._channel = self._open()
            unary = self._methods.get(method)
            if unary is None:
                # Without (de)serialisers gRPC hands bytes through, so their number is known.
                unary = self._methods[method] = self._channel.unary_unary(method)
            self._calls += 1
            self._busy[self._channel] += 1
            return self._channel, unary

    def _open(self) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(self._target, self._options)
        return grpc.secure_channel(self._target, self._credentials, self._options)

    def _end(self, channel: grpc.Channel, error: grpc.RpcError | None) -> None:
        code = error.code() if isinstance(error, grpc.Call) else None
        lost: grpc.Channel | None = None
        with self._changed:
            self._calls -= 1
            self._busy[channel] -= 1
            if not self._busy[channel]:
                del self._busy[channel]
            self._ended_s = time.monotonic()
            if channel is not self._channel:
                if channel not in self._busy:
                    lost = channel  # the channel was renewed
            elif code in _LOST:
                lost = self._forget(error)
            elif code is grpc.StatusCode.DEADLINE_EXCEEDED and not self._watched:
                # Is the server slow, or is there not even a connection?
                self._watched = True
                threading.Thread(target=self._watch, name="connection", daemon=True).start()
        if lost is not None:
            lost.close()

    def _forget(self, error: grpc.RpcError | None) -> grpc.Channel | None:
        """Remove and return the channel (with the lock held); the caller closes it."""
        channel, self._channel = self._channel, None
        self._methods, self._failure = {}, error
        return channel

    def _watch(self) -> None:
        """Once there are no more calls, close the channel if it is still trying to connect."""
        while True:
            with self._changed:
                left_s = self._ended_s + QUIET_S - time.monotonic()
                if self._calls or (left_s > 0 and not self._closed):
                    self._changed.wait(max(left_s, 0.1))
                    continue
                channel, ended_s = self._channel, self._ended_s
                if channel is None:
                    self._watched = False
                    return
            silent = _is_silent(channel)
            with self._changed:
                if self._calls or self._ended_s != ended_s:
                    continue  # called again meanwhile
                self._watched = False
                if silent or self._channel is not channel:
                    return
                lost = self._forget(None)
            if lost is not None:
                lost.close()
            return


def _is_silent(channel: grpc.Channel) -> bool:
    """True if the channel is connected or idle."""
    seen: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    callback = seen.put
    channel.subscribe(callback)
    try:
        return seen.get(timeout=1.0) in _SILENT
    except queue.Empty:
        return False
    finally:
        channel.unsubscribe(callback)
        time.sleep(_POLL_ENDS_S)


class TlsFailure(NamedTuple):
    """Why there is no connection, and how to fix it."""

    reason: str
    hint: str


def why_tls_fails(target: str, tls: TlsFiles | None, timeout_s: float = 5.0) -> TlsFailure | None:
    """Try a handshake with `target` (``host:port``); None if TLS is not the cause.

    Args:
        target: the server.
        tls: the files that the connection used; None if it had no TLS.
        timeout_s: longest wait for each step; a busy machine needs more than a second.
    """
    host, port = parse_address(target, "server address")
    try:
        with socket.create_connection((host, port), timeout_s) as plain:
            return _without_tls(plain) if tls is None else _with_tls(plain, host, tls)
    except OSError:  # no server, or no answer
        return None


def _without_tls(plain: socket.socket) -> TlsFailure | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(plain):
        return TlsFailure("the server speaks TLS alone", "give the TLS files of this device")


def _with_tls(plain: socket.socket, host: str, tls: TlsFiles) -> TlsFailure | None:
    name = tls.server_name or host
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca is not None:
        context.load_verify_locations(tls.ca)
    elif (authorities := system_authorities()) is not None:
        context.load_verify_locations(cadata=authorities.decode("ascii", "ignore"))
    else:
        context.load_default_certs()
    if tls.cert is not None:
        context.load_cert_chain(tls.cert, tls.key)
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(plain, server_hostname=name) as secure:
            secure.sendall(_GREETING)
            closed = not secure.recv(1)
    except ssl.SSLCertVerificationError as error:
        return _unverified(error, name, tls)
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        if reason == "WRONG_VERSION_NUMBER":
            return TlsFailure("the server speaks no TLS", "leave the TLS files out")
        if "ALERT" not in reason:
            return TlsFailure(
                f"no handshake ({reason.replace('_', ' ').lower()})", "compare both ends' settings"
            )
        closed = True
    except ConnectionError:
        closed = True
    return _refused(tls) if closed else None


def _unverified(error: ssl.SSLCertVerificationError, name: str, tls: TlsFiles) -> TlsFailure:
    """The failure for an invalid server certificate."""
    code = error.verify_code
    stale = complaints([], [tls.ca])
    if code in (_EXPIRED, _NOT_YET_VALID) and stale:
        return TlsFailure(stale[0].removeprefix("TLS "), "renew them, and compare the clocks")
    if code == _EXPIRED:
        why, hint = "has expired", "renew it, and compare the clocks of both ends"
    elif code == _NOT_YET_VALID:
        why, hint = "is not valid yet", "compare the clocks of both ends"
    elif code in _OTHER_NAME:
        why = f"is not made out to {name}"
        hint = "use a name that it states, or set tls_name to one"
    elif code in _UNKNOWN_AUTHORITY:
        by = tls.ca or "an authority of this system"
        why, hint = f"is not signed by {by}", "give the authority that signed it"
    else:
        why, hint = f"is refused ({error.verify_message})", "renew it"
    return TlsFailure(f"the server's certificate {why}", hint)


def _refused(tls: TlsFiles) -> TlsFailure:
    """The failure if the server closed the connection because of a wrong or missing certificate."""
    if tls.cert is None:
        reason = "the server closed the connection, as one does that demands a certificate"
        return TlsFailure(reason, "give the certificate and key of this device")
    ours = complaints([tls.cert], [])
    if ours:
        return TlsFailure(f"the server does not take our certificate: {ours[0]}", "renew it")
    return TlsFailure(
        f"the server does not take our certificate {tls.cert}",
        "have it signed by an authority that the server accepts, and compare the clocks",
    )
