"""Why TLS with a server fails, in plain words: asked of the server once a connection has failed.

gRPC reports a handshake that failed as a server that cannot be reached, with the library's own
text at the end, and says nothing at all where the server closes the connection because of the
device's certificate. So the handshake is done once more with the standard library.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import Final

from testbed.wire.address import parse_address
from testbed.wire.certificates import complaints
from testbed.wire.tls import TlsFiles, system_authorities

_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What an HTTP/2 client sends first, with empty SETTINGS (RFC 9113, section 3.4)."""

_EXPIRED: Final = 10
_NOT_YET_VALID: Final = 9
_OTHER_NAME: Final = (62, 63, 64)
_UNKNOWN_AUTHORITY: Final = (2, 7, 18, 19, 20, 21)
"""X509_V_ERR_... (7: by another authority of the same name;
https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/)."""


@dataclass(frozen=True, slots=True)
class TlsReason:
    """Why there is no connection.

    Attributes:
        reason: what was found.
        hint: what to do about it.
    """

    reason: str
    hint: str


def tls_reason(target: str, tls: TlsFiles | None, timeout_s: float = 1.0) -> TlsReason | None:
    """Try a handshake with `target` (``host:port``); None if TLS is not what fails.

    Args:
        target: the server.
        tls: the files that the connection used; None if it was in the clear.
        timeout_s: longest wait for each step.
    """
    host, port = parse_address(target, "server address")
    try:
        with socket.create_connection((host, port), timeout_s) as plain:
            return _without_tls(plain) if tls is None else _with_tls(plain, host, tls)
    except OSError:  # nobody there, or no answer
        return None


def _without_tls(plain: socket.socket) -> TlsReason | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(plain):
        return TlsReason("the server speaks TLS alone", "give the TLS files of this device")


def _with_tls(plain: socket.socket, host: str, tls: TlsFiles) -> TlsReason | None:
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
            return TlsReason("the server speaks no TLS", "leave the TLS files out")
        if "ALERT" not in reason:
            return TlsReason(f"no handshake ({_words(reason)})", "compare both ends' settings")
        closed = True
    except ConnectionError:
        closed = True
    return _refused(tls) if closed else None


def _unverified(error: ssl.SSLCertVerificationError, name: str, tls: TlsFiles) -> TlsReason:
    """The server's certificate is no good."""
    code = error.verify_code
    stale = complaints([], [tls.ca]) if tls.ca is not None else []
    if code in (_EXPIRED, _NOT_YET_VALID) and stale:
        return TlsReason(stale[0].removeprefix("TLS "), "renew them, and compare the clocks")
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
    return TlsReason(f"the server's certificate {why}", hint)


def _refused(tls: TlsFiles) -> TlsReason:
    """The server ended the connection once it had seen this end's certificate, or none."""
    if tls.cert is None:
        reason = "the server closed the connection, as one does that demands a certificate"
        return TlsReason(reason, "give the certificate and key of this device")
    ours = complaints([tls.cert], [])
    if ours:
        return TlsReason(f"the server does not take our certificate: {ours[0]}", "renew it")
    return TlsReason(
        f"the server does not take our certificate {tls.cert}",
        "have it signed by an authority that the server accepts, and compare the clocks",
    )


def _words(reason: str) -> str:
    return reason.replace("_", " ").lower()
