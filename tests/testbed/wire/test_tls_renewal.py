"""Renewed TLS files are used without a restart, unfit ones are not, and no call is lost."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from cryptography import x509
from waiting import wait_until

from cnn.bundle import load_bundle
from cnn.common.errors import ConfigError, RemoteError
from cnn.runtime import SplitRuntime
from testbed.server.mec_server import MecServer, ServerConfig
from testbed.wire.address import parse_address
from testbed.wire.certificates import TlsWatch
from testbed.wire.client import MecClient
from testbed.wire.connection import Connection
from testbed.wire.tls import ServerTls, TlsFiles

BUNDLE = load_bundle()
RUNTIME = SplitRuntime(BUNDLE)
FRAME = np.full((1, *RUNTIME.wire_shape(4)), 9, np.uint8)
DAY = timedelta(days=1)
NOW = datetime.now(UTC)


@pytest.fixture
def pki(new_pki: Callable[..., Any], tmp_path: Path) -> Any:
    (tmp_path / "one").mkdir()
    return new_pki(tmp_path / "one")


@pytest.fixture
def other(new_pki: Callable[..., Any], tmp_path: Path) -> Any:
    (tmp_path / "two").mkdir()
    return new_pki(tmp_path / "two", name="another authority")


def put(target: Path, source: Path | bytes) -> None:
    """Replace a file as a tool for certificates does."""
    beside = target.with_suffix(".new")
    beside.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
    beside.replace(target)


def shown(server: MecServer, ca: Path) -> str:
    """The certificate that a new connection is shown, PEM; raises if `ca` did not sign it."""
    return ssl.get_server_certificate(parse_address(server.address, ""), ca_certs=str(ca))


def pem(path: Path) -> str:
    return ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(path.read_text()))


def ends(server: MecServer) -> set[int]:
    """Our ports of this process's connections to the server."""
    found = psutil.Process().net_connections("tcp")
    return {
        c.laddr.port
        for c in found
        if c.status == psutil.CONN_ESTABLISHED and c.raddr and c.raddr.port == server.port
    }


UNFIT: dict[str, Callable[[Any, Path, Path], None]] = {
    "the key of another": lambda pki, cert, key: put(key, pki.make("new")[1]),
    "half a certificate": lambda pki, cert, key: put(cert, cert.read_bytes()[:300]),
    "no certificate": lambda pki, cert, key: put(cert, b""),
    "no file": lambda pki, cert, key: cert.unlink(),
    "a folder": lambda pki, cert, key: (cert.unlink(), cert.mkdir()),  # type: ignore[dict-item]
    "expired": lambda pki, cert, key: pki.make("in-use", NOW - 2 * DAY, NOW - DAY),
    "not valid yet": lambda pki, cert, key: pki.make("in-use", NOW + DAY, NOW + 2 * DAY),
    "empty authorities": lambda pki, cert, key: put(pki.ca, b""),
    "no authorities": lambda pki, cert, key: put(pki.ca, b"junk"),
}


@pytest.mark.parametrize("end", ["server", "client"])
@pytest.mark.parametrize("case", UNFIT)
def test_files_that_are_not_fit_change_nothing(
    pki: Any, case: str, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = pki.make("in-use")
    files = ServerTls(cert, key, pki.ca) if end == "server" else TlsFiles(pki.ca, cert, key)
    watch = TlsWatch(files)
    before = dict(watch.load())
    authority = pki.ca.read_bytes()
    with caplog.at_level(logging.INFO, "testbed"):
        UNFIT[case](pki, cert, key)
        assert not any(watch.look() for _ in range(3))
        assert watch.contents == before
        (line,) = caplog.messages  # once, however often it is looked at
        assert line.startswith("new TLS files not used, the old ones stay in use: TLS ")
        assert len(line.splitlines()) == 1
        if cert.is_dir():
            cert.rmdir()
        put(pki.ca, authority)
        pki.make("in-use")
        assert watch.look()
    assert watch.contents["cert"] == cert.read_bytes()
    assert caplog.messages[1:] == ["new TLS files in use"]
    assert not watch.look()


def test_a_pair_that_becomes_valid_is_used_without_another_change(
    pki: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = TlsWatch(ServerTls(*pki.make("in-use")))
    watch.load()
    pki.make("in-use", NOW + DAY, NOW + 2 * DAY)
    assert not watch.look()

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return NOW + 1.5 * DAY

    monkeypatch.setattr("testbed.wire.certificates.datetime", Later)
    assert watch.look()


def test_a_server_shows_its_new_certificate_at_the_next_handshake(pki: Any) -> None:
    cert, key = pki.make("server")
    with MecServer(BUNDLE, ServerConfig(tls=ServerTls(cert, key))) as server:
        old = pem(cert)
        assert shown(server, pki.ca) == old
        new_cert, new_key = pki.make("next")
        put(key, new_key)  # between the two renames they do not fit together
        assert shown(server, pki.ca) == old
        put(cert, new_cert)
        assert shown(server, pki.ca) == pem(new_cert)
        ends_s = server.metrics.value(
            "sliproad_certificate_not_after_timestamp_seconds", file="cert"
        )
    loaded = x509.load_pem_x509_certificate(new_cert.read_bytes())
    assert ends_s == loaded.not_valid_after_utc.timestamp()


@pytest.mark.slow(1)
def test_a_new_client_authority_is_the_one_that_counts(pki: Any, other: Any) -> None:
    authorities = pki.folder / "clients.pem"
    put(authorities, pki.ca)
    tls = ServerTls(*pki.make("server"), client_ca=authorities)
    ours = TlsFiles(pki.ca, *pki.make("device"))
    theirs = TlsFiles(pki.ca, *other.make("device"))

    def connects(files: TlsFiles, wait_s: float) -> None:
        with MecClient(server.address, BUNDLE.hash, files) as client:
            client.connect(wait_s)

    with MecServer(BUNDLE, ServerConfig(tls=tls)) as server:
        connects(ours, 60)
        with pytest.raises(RemoteError, match="does not take our certificate"):
            connects(theirs, 0.5)
        put(authorities, other.ca)
        connects(theirs, 60)
        with pytest.raises(RemoteError, match="does not take our certificate"):
            connects(ours, 0.5)


@pytest.mark.slow(1)
def test_old_connections_end_in_time_and_no_frame_is_lost(pki: Any) -> None:
    cert, key = pki.make("server")
    tls = ServerTls(cert, key, connection_age_s=1)
    with (
        MecServer(BUNDLE, ServerConfig(tls=tls)) as server,
        MecClient(server.address, BUNDLE.hash, TlsFiles(pki.ca)) as client,
    ):
        client.connect(60)
        first = ends(server)
        assert len(first) == 1
        pki.make("server")
        answered = 0
        limit_s = time.monotonic() + 60
        while first & ends(server):  # every frame is answered, across the change
            client.infer(FRAME, 5, 4, timeout_ms=60_000)
            answered += 1
            assert time.monotonic() < limit_s
        for _ in range(20):
            client.infer(FRAME, 5, 4, timeout_ms=60_000)
        assert answered > 1


def test_a_device_connects_anew_with_its_new_files(pki: Any, other: Any) -> None:
    """Both ends move to another authority: first both trust both, then each gets its own new
    certificate, then the old authority goes. No restart, and every frame is answered."""
    folder = pki.folder / "device"
    folder.mkdir()
    ca, cert, key = (folder / name for name in ("ca.pem", "device.pem", "device.key"))
    server_ca = pki.folder / "clients.pem"

    def renew(pairs: tuple[tuple[Path, Path | bytes], ...]) -> None:
        for target, source in pairs:
            put(target, source)
            client.infer(FRAME, 5, 4, timeout_ms=60_000)

    first_cert, first_key = pki.make("device")
    for target, source in ((ca, pki.ca), (cert, first_cert), (key, first_key), (server_ca, pki.ca)):
        put(target, source)
    s_cert, s_key = pki.make("server")
    with (
        MecServer(BUNDLE, ServerConfig(tls=ServerTls(s_cert, s_key, server_ca))) as server,
        MecClient(server.address, BUNDLE.hash, TlsFiles(ca, cert, key)) as client,
    ):
        client.connect(60)
        assert not client.renew_tls()
        both = pki.ca.read_bytes() + other.ca.read_bytes()
        renew(((ca, both), (server_ca, both)))
        assert client.renew_tls(60)
        new_cert, new_key = other.make("device")
        new_server_cert, new_server_key = other.make("server")
        renew(((key, new_key), (cert, new_cert)))
        renew(((s_key, new_server_key), (s_cert, new_server_cert)))
        before = ends(server)
        assert client.renew_tls(60)
        wait_until(lambda: not before & ends(server))
        renew(((ca, other.ca), (server_ca, other.ca)))
        assert client.renew_tls(60)
        client.infer(FRAME, 5, 4, timeout_ms=60_000)
        assert len(ends(server)) == 1


def test_without_an_answer_the_old_connection_stays(
    pki: Any, other: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = pki.make("device")
    tls = ServerTls(*pki.make("server"), client_ca=pki.ca)
    files = TlsFiles(pki.ca, cert, key)
    with (
        MecServer(BUNDLE, ServerConfig(tls=tls)) as server,
        MecClient(server.address, BUNDLE.hash, files) as client,
    ):
        client.connect(60)
        new_cert, new_key = other.make("device")  # by an authority that the server does not know
        put(key, new_key)
        put(cert, new_cert)
        assert not client.renew_tls(2)
        client.infer(FRAME, 5, 4, timeout_ms=60_000)
        assert not client.renew_tls(2)  # not at every look: each attempt wakes a modem
        assert len(caplog.messages) == 1
        right_cert, right_key = pki.make("right")
        put(key, right_key)
        put(cert, right_cert)
        assert client.renew_tls(60)
        client.infer(FRAME, 5, 4, timeout_ms=60_000)


@contextmanager
def slow_server(tls: ServerTls, go: threading.Event) -> Iterator[str]:
    """Its method ``/s/slow`` waits for `go`, ``/s/quick`` does not; both name the caller."""

    def slow(data: bytes, context: grpc.ServicerContext) -> bytes:
        go.wait(60)
        return bytes(context.peer(), "ascii")

    def quick(data: bytes, context: grpc.ServicerContext) -> bytes:
        return bytes(context.peer(), "ascii")

    methods = {"slow": slow, "quick": quick}
    handlers = {n: grpc.unary_unary_rpc_method_handler(m) for n, m in methods.items()}
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", handlers),))
    port = server.add_secure_port("127.0.0.1:0", tls.credentials())
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_a_call_under_way_ends_on_the_old_connection(pki: Any) -> None:
    go = threading.Event()
    files = TlsFiles(pki.ca)
    with (
        slow_server(ServerTls(*pki.make("server")), go) as target,
        ThreadPoolExecutor(1) as pool,
    ):
        connection = Connection(target, files.credentials())
        old = connection.call("/s/quick", b"", 60)
        waiting = pool.submit(connection.call, "/s/slow", b"", 60)
        wait_until(waiting.running)
        connection.renew(files.credentials(), "/s/quick", b"", 60)
        new = connection.call("/s/quick", b"", 60)
        go.set()
        assert waiting.result() == old != new
        assert connection.call("/s/quick", b"", 60) == new
        connection.close()


@pytest.mark.parametrize("age_s", [0.5, 86_401, float("nan")])
def test_an_impossible_age_is_refused(age_s: float) -> None:
    with pytest.raises(ConfigError, match="age of a connection"):
        ServerTls(Path("c"), Path("k"), connection_age_s=age_s)
