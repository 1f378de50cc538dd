"""Why TLS fails comes first, in words, and rightly."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cnn.bundle import load_bundle
from cnn.common.errors import RemoteError
from testbed.server.mec_server import MecServer, ServerConfig
from testbed.wire.client import MecClient
from testbed.wire.connection import why_tls_fails
from testbed.wire.tls import ServerTls, TlsFiles

BUNDLE = load_bundle()
DAY = timedelta(days=1)
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def files(new_pki: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Certificates of one authority (good, expired, early) and of another (foreign)."""
    pki = new_pki(tmp_path_factory.mktemp("pki"))
    other = new_pki(tmp_path_factory.mktemp("other"))  # of the same name
    aged = new_pki(tmp_path_factory.mktemp("aged"), NOW - 2 * DAY, NOW - DAY)
    return {
        "good": pki.make("good", NOW - DAY, NOW + DAY),
        "expired": pki.make("expired", NOW - 2 * DAY, NOW - DAY),
        "early": pki.make("early", NOW + DAY, NOW + 2 * DAY),
        "foreign": other.make("foreign", NOW - DAY, NOW + DAY),
        "ca": pki.ca,
        "other ca": other.ca,
        "old ca": aged.ca,
        "of old ca": aged.make("of-old-ca", NOW - DAY, NOW + DAY),
    }


def complaint(server: MecServer, tls: TlsFiles | None) -> str:
    with (
        MecClient(server.address, BUNDLE.hash, tls) as client,
        pytest.raises(RemoteError) as caught,
    ):
        client.connect(0.5)
    return str(caught.value)


@pytest.mark.slow(4)
@pytest.mark.parametrize(
    ("certificate", "ca", "name", "said"),
    [
        ("expired", "ca", None, "TLS: the server's certificate has expired"),
        ("early", "ca", None, "TLS: the server's certificate is not valid yet"),
        ("good", "other ca", None, "TLS: the server's certificate is not signed by"),
        ("of old ca", "old ca", None, "TLS: authorities"),
        ("good", None, None, "TLS: the server's certificate is not signed by an authority of"),
        ("good", "ca", "mec.example", "TLS: the server's certificate is not made out to mec.ex"),
    ],
)
def test_a_servers_certificate(
    files: Any, certificate: str, ca: str | None, name: str | None, said: str
) -> None:
    tls = TlsFiles(ca=files[ca] if ca else None, server_name=name)
    with MecServer(BUNDLE, ServerConfig(tls=ServerTls(*files[certificate]))) as server:
        text = complaint(server, tls)
    assert text.startswith(said)
    assert len(text.splitlines()) == 1


@pytest.mark.slow(2)
@pytest.mark.parametrize(
    ("certificate", "said"),
    [
        (None, "TLS: the server closed the connection, as one does that demands a certificate"),
        ("expired", "TLS: the server does not take our certificate: .*expired.pem: expired on"),
        ("early", "TLS: the server does not take our certificate: .*early.pem: not valid before"),
        ("foreign", "TLS: the server does not take our certificate .*foreign.pem;"),
    ],
)
def test_a_devices_certificate(files: Any, certificate: str | None, said: str) -> None:
    cert, key = files[certificate] if certificate else (None, None)
    tls = ServerTls(*files["good"], client_ca=files["ca"])
    with MecServer(BUNDLE, ServerConfig(tls=tls)) as server:
        text = complaint(server, TlsFiles(files["ca"], cert, key))
        with MecClient(server.address, BUNDLE.hash, TlsFiles(files["ca"], *files["good"])) as good:
            good.connect(20)
    assert re.match(said, text)


@pytest.mark.slow(1)
def test_one_end_with_tls_and_one_without(files: Any) -> None:
    with MecServer(BUNDLE, ServerConfig(tls=ServerTls(*files["good"]))) as server:
        assert complaint(server, None).startswith("TLS: the server speaks TLS alone")
    with MecServer(BUNDLE) as server:
        text = complaint(server, TlsFiles(ca=files["ca"]))
        assert text.startswith("TLS: the server speaks no TLS")


def test_where_tls_is_not_what_fails_nothing_is_said(files: Any) -> None:
    tls = TlsFiles(ca=files["ca"])
    with MecServer(BUNDLE, ServerConfig(tls=ServerTls(*files["good"]))) as server:
        assert why_tls_fails(server.address, tls) is None
    assert why_tls_fails(server.address, tls) is None  # nobody there
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        assert why_tls_fails(target, tls, timeout_s=0.2) is None
        assert why_tls_fails(target, None, timeout_s=0.2) is None
