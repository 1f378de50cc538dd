"""TLS by file paths, for both ends; files are read and checked before any socket opens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from cnn.common.errors import ConfigError
from testbed.wire.certificates import (
    Contents,
    TlsWatch,
    check_authorities,
    check_chain,
    complaints,
    contents_of,
    read_whole,
    system_authorities,
)

SYSTEM: Final = "system"
"""Value in place of a file: the public authorities that this system trusts."""
AGE_S: Final = 3600.0
_AGE_GRACE_MS: Final = 30_000
"""Time for running calls on an old connection to end."""
Refusal = tuple[grpc.StatusCode, str]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a client.

    Attributes:
        ca: certificates that may sign the server's; None takes the system's public
            authorities (`system_authorities`).
        cert: the client's certificate chain, for servers that demand one.
        key: its private key.
        server_name: name expected in the server's certificate, if it differs from the host
            in the target (a relay, an address without a name).
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        _check_pair(self.cert, self.key)

    def contents(self) -> Contents:
        """Contents of the files; raises `ConfigError` if one cannot be read."""
        found = contents_of(ca=self.ca, cert=self.cert, key=self.key)
        public = system_authorities() if self.ca is None else None
        return found if public is None else {**found, SYSTEM: public}

    def check(self) -> None:
        """Raise `ConfigError` if a file cannot be used."""
        if self.cert is not None and self.key is not None:
            check_chain(self.cert, self.key)
        if self.ca is not None:
            check_authorities(self.ca)

    def credentials(self) -> grpc.ChannelCredentials:
        """Channel credentials; raises `ConfigError` if a file cannot be used."""
        return channel_credentials(read_whole(self))

    def complaints(self) -> list[str]:
        """One line for each file that is out of date today."""
        return complaints([self.cert], [self.ca])

    def describe(self) -> str:
        """The trusted authorities and the own certificate, as text for people."""
        trusts = "the public authorities of this system" if self.ca is None else str(self.ca)
        return f"trusts {trusts}, shows {self.cert or 'no certificate'}"


@dataclass(frozen=True, slots=True)
class ServerTls:
    """PEM files of a server, and the clients that may call it.

    Attributes:
        cert: the server's certificate chain.
        key: its private key.
        client_ca: certificates that may sign a client's; with it every client must show
            one (mutual TLS).
        client_names: clients that may call, by a name in their certificate: its common name
            or any of its alternative names, compared exactly; empty: all that may connect.
        connection_age_s: a connection is asked to end at this age (a tenth more or less), so
            that clients get the newest certificates; 1..86400. No call is lost.
        watch: contents in use, renewed at each handshake.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None
    client_names: tuple[str, ...] = ()
    connection_age_s: float = AGE_S
    watch: TlsWatch = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.client_names and self.client_ca is None:
            raise ConfigError(
                "names of clients without a client CA",
                expected="the authority that signs the clients' certificates",
                hint="give --tls-client-ca, or leave --client-name out",
            )
        if not all(name.strip() for name in self.client_names):
            raise ConfigError(
                "an empty client name",
                expected="a name in a client's certificate",
                hint="correct --client-name",
            )
        if not 1 <= self.connection_age_s <= 86_400:
            raise ConfigError(
                f"age of a connection {self.connection_age_s:g} s",
                expected="1..86400",
                hint="correct --connection-age-s",
            )
        object.__setattr__(self, "watch", TlsWatch(self))

    def contents(self) -> Contents:
        """Contents of the files; raises `ConfigError` if one cannot be read."""
        return contents_of(client_ca=self.client_ca, cert=self.cert, key=self.key)

    def check(self) -> None:
        """Raise `ConfigError` if a file cannot be used."""
        check_chain(self.cert, self.key)
        if self.client_ca is not None:
            check_authorities(self.client_ca)

    def credentials(self) -> grpc.ServerCredentials:
        """Server credentials that follow the files; raises `ConfigError` if one cannot be used.

        gRPC asks for new contents at every handshake
        (https://grpc.github.io/grpc/python/grpc.html#grpc.dynamic_ssl_server_credentials).
        """
        given = self.watch.load()

        def news() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            self.watch.look()
            if self.watch.contents is given:
                return None
            given = self.watch.contents
            return _certificates(given)

        return grpc.dynamic_ssl_server_credentials(
            _certificates(given), news, require_client_authentication=self.client_ca is not None
        )

    def options(self) -> list[tuple[str, int]]:
        """Channel arguments that end every connection at its age, without losing a call
        (https://grpc.github.io/grpc/core/group__grpc__arg__keys.html)."""
        return [
            ("grpc.max_connection_age_ms", int(self.connection_age_s * 1e3)),
            ("grpc.max_connection_age_grace_ms", _AGE_GRACE_MS),
        ]

    def refusal(self, context: Any) -> Refusal | None:
        """Why the call is refused, as (status, details); None if it is allowed.

        Args:
            context: of the call: `grpc.ServicerContext`, or that of `grpc.aio`.
        """
        if not self.client_names:
            return None
        names = caller_names(context.auth_context())
        if not names.isdisjoint(self.client_names):
            return None
        shown = ", ".join(sorted(names)) or "no name"
        return (
            grpc.StatusCode.PERMISSION_DENIED,
            f"client {shown:.200}: not on the server's list; expected a certificate with a name "
            "on it; add the name with --client-name",
        )

    def complaints(self) -> list[str]:
        """One line for each file that is out of date today."""
        return complaints([self.cert], [self.client_ca])


def server_tls(
    cert: Path | None,
    key: Path | None,
    client_ca: Path | None,
    client_names: Iterable[str] = (),
    connection_age_s: float = AGE_S,
) -> ServerTls | None:
    """The command-line options as one setting; None if no file is given."""
    _check_pair(cert, key)
    names = tuple(client_names)
    if cert is None or key is None:
        for given, what, option in (
            (client_ca is not None, "a client CA", "--tls-client-ca"),
            (bool(names), "names of clients", "--client-name"),
        ):
            if given:
                raise ConfigError(
                    f"{what} without a server certificate",
                    expected="certificate and key of the server too",
                    hint=f"give --tls-cert and --tls-key, or leave {option} out",
                )
        return None
    return ServerTls(cert, key, client_ca, names, connection_age_s)


def client_tls(
    ca: str | Path | None,
    cert: str | Path | None,
    key: str | Path | None,
    server_name: str | None = None,
) -> TlsFiles | None:
    """The command-line options, or the keys of a file, as one setting.

    Any of them turns TLS on; None if none is given.

    Args:
        ca: a PEM file, or `SYSTEM`.
        cert: PEM file.
        key: PEM file.
        server_name: as in `TlsFiles`.
    """
    if ca is None and cert is None and key is None and server_name is None:
        return None
    authorities = None if ca is None or str(ca) == SYSTEM else Path(ca)
    return TlsFiles(
        authorities,
        None if cert is None else Path(cert),
        None if key is None else Path(key),
        server_name,
    )


def channel_credentials(contents: Mapping[str, bytes]) -> grpc.ChannelCredentials:
    """Credentials of a client from the contents of its `TlsFiles`."""
    roots = contents.get("ca", contents.get(SYSTEM))
    return grpc.ssl_channel_credentials(roots, contents.get("key"), contents.get("cert"))


def caller_names(identity: Mapping[str, Iterable[bytes]]) -> set[str]:
    """Names in a client's certificate, from gRPC's ``auth_context()``: subject alternative names
    and common name."""
    keys = ("x509_subject_alternative_name", "x509_common_name")
    return {name.decode("utf-8", "replace") for key in keys for name in identity.get(key, ())}


def _certificates(contents: Contents) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(contents["key"], contents["cert"])], contents.get("client_ca")
    )


def _check_pair(cert: Path | None, key: Path | None) -> None:
    if (cert is None) != (key is None):
        given, missing = ("certificate", "key") if key is None else ("key", "certificate")
        raise ConfigError(
            f"TLS {given} {cert or key} without a {missing}",
            expected="both or neither",
            hint="give the certificate and its private key together",
        )
