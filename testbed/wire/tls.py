"""TLS by file paths, for both ends; files are read and checked before any socket opens."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from cnn.errors import ConfigError
from testbed.wire.certificates import complaints


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a client.

    Attributes:
        ca: certificates that may sign the server's; None takes gRPC's own roots.
        cert: the client's certificate chain, for servers that demand one.
        key: its private key.
        server_name: name expected in the server's certificate, where it differs from
            the host in the target (a relay, an address without a name).
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        _check_pair(self.cert, self.key)

    def credentials(self) -> grpc.ChannelCredentials:
        """Channel credentials; raises `ConfigError` if a file cannot be used."""
        if self.cert is not None and self.key is not None:
            _check_chain(self.cert, self.key)
        return grpc.ssl_channel_credentials(
            root_certificates=_authorities(self.ca) if self.ca else None,
            private_key=_read(self.key) if self.key else None,
            certificate_chain=_read(self.cert) if self.cert else None,
        )

    def complaints(self) -> list[str]:
        """One line for each file that is out of date today."""
        return complaints(_given(self.cert), _given(self.ca))


@dataclass(frozen=True, slots=True)
class ServerTls:
    """PEM files of a server.

    Attributes:
        cert: the server's certificate chain.
        key: its private key.
        client_ca: certificates that may sign a client's; with it every client must show
            one (mutual TLS).
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Server credentials; raises `ConfigError` if a file cannot be used."""
        _check_chain(self.cert, self.key)
        return grpc.ssl_server_credentials(
            [(_read(self.key), _read(self.cert))],
            root_certificates=_authorities(self.client_ca) if self.client_ca else None,
            require_client_auth=self.client_ca is not None,
        )

    def complaints(self) -> list[str]:
        """One line for each file that is out of date today."""
        return complaints([self.cert], _given(self.client_ca))


def server_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    """The three options of a command line as one setting; None if none is given."""
    _check_pair(cert, key)
    if cert is None or key is None:
        if client_ca is not None:
            raise ConfigError(
                "a client CA without a server certificate",
                expected="certificate and key of the server too",
                mend="give --tls-cert and --tls-key, or leave --tls-client-ca out",
            )
        return None
    return ServerTls(cert, key, client_ca)


def _given(path: Path | None) -> list[Path]:
    return [] if path is None else [path]


def _check_pair(cert: Path | None, key: Path | None) -> None:
    if (cert is None) != (key is None):
        raise ConfigError(
            f"TLS certificate {cert} with key {key}",
            expected="both or neither",
            mend="give the certificate and its private key together",
        )


def _check_chain(cert: Path, key: Path) -> None:
    # gRPC itself would only say that the port cannot be bound.
    _read(cert)
    _read(key)
    try:
        # A key behind a password must fail, not ask the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"TLS certificate {cert} with key {key}: {error}",
            expected="a PEM certificate and its PEM key without a password",
            mend="check that the two files belong together",
        ) from error


def _authorities(path: Path) -> bytes:
    data = _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"TLS authorities {path}: {error}",
            expected="one or more PEM certificates",
            mend="give the file of the authority that signed the other end's certificate",
        ) from error
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"TLS file {path}: {error.strerror or error}",
            expected="a readable PEM file",
            mend="check the path and its permissions",
        ) from error
