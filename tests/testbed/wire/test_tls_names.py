"""Which keys mean TLS, whom a device trusts, and which clients a server answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cnn.bundle import load_bundle
from cnn.common.errors import ConfigError, RemoteError
from cnn.runtime import SplitRuntime
from testbed.deploy.assembly import plain_note, tls_of
from testbed.deploy.device_file import parse_device_file
from testbed.server.mec_server import MecServer, ServerConfig
from testbed.wire.address import is_loopback
from testbed.wire.client import ExchangeFailed, MecClient
from testbed.wire.tls import ServerTls, TlsFiles, client_tls, server_tls

BUNDLE = load_bundle()
RUNTIME = SplitRuntime(BUNDLE)
FRAME = np.full((1, *RUNTIME.wire_shape(4)), 9, np.uint8)


@pytest.fixture(scope="module")
def pki(new_pki: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return new_pki(tmp_path_factory.mktemp("pki"))


def device_file(keys: str, address: str = "127.0.0.1:8001") -> Any:
    text = f'[bundles]\naction = "e5s2"\n[server]\naddress = "{address}"\n{keys}\n'
    return parse_device_file(text, folder=Path("/etc/sliproad"))


@pytest.mark.parametrize(
    ("keys", "files"),
    [
        ("", None),
        ('tls_ca = "ca.pem"', TlsFiles(ca=Path("/etc/sliproad/ca.pem"))),
        ('tls_ca = "system"', TlsFiles()),
        ('tls_ca = "./system"', TlsFiles(ca=Path("/etc/sliproad/system"))),
        ('tls_name = "mec.example"', TlsFiles(server_name="mec.example")),
        (
            'tls_cert = "d.pem"\ntls_key = "d.key"',
            TlsFiles(None, Path("/etc/sliproad/d.pem"), Path("/etc/sliproad/d.key")),
        ),
        ('tls_ca = ""', TlsFiles(ca=Path("/etc/sliproad"))),  # no file, and no plaintext
    ],
)
def test_any_key_means_tls(keys: str, files: TlsFiles | None) -> None:
    assert tls_of(device_file(keys)) == files


@pytest.mark.parametrize("key", ["tls_cert", "tls_key"])
def test_half_a_pair_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"TLS (certificate|key) /etc/sliproad/x without a"):
        tls_of(device_file(f'{key} = "x"'))


def test_a_name_alone_does_not_talk_in_the_clear() -> None:
    with (
        MecServer(BUNDLE) as server,
        MecClient(server.address, BUNDLE.hash, client_tls(None, None, None, "mec")) as client,
        pytest.raises(RemoteError, match="TLS: the server speaks no TLS"),
    ):
        client.connect(0.5)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"])
def test_the_systems_authorities(pki: Any, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system trusts counts for handshakes, and for what is said of one that fails."""
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    monkeypatch.setenv(variable, str(pki.ca))
    with MecServer(BUNDLE, ServerConfig(tls=ServerTls(*pki.make("server")))) as server:
        with MecClient(server.address, BUNDLE.hash, client_tls("system", None, None)) as client:
            client.connect(60)
        monkeypatch.setenv(variable, str(pki.make("foreign")[0]))
        with (
            MecClient(server.address, BUNDLE.hash, client_tls("system", None, None)) as client,
            pytest.raises(RemoteError, match="not signed by an authority of this system"),
        ):
            client.connect(0.5)


def test_a_system_without_authorities_has_those_of_grpcio(
    pki: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    assert TlsFiles().contents() == {}
    TlsFiles().credentials()


def asked(server: MecServer, pki: Any, pair: tuple[Path, Path]) -> dict[str, str]:
    """Status of each kind of call."""
    found = {}
    with MecClient(server.address, BUNDLE.hash, TlsFiles(pki.ca, *pair)) as client:
        for name, call in (
            ("metadata", lambda: client.connect(60)),
            ("infer", lambda: client.infer(FRAME, 5, 4, timeout_ms=60_000)),
            ("probe", lambda: client.probe(60_000)),
        ):
            try:
                call()
                found[name] = "ok"
            except ExchangeFailed as error:
                found[name] = error.reason
            except RemoteError as error:
                found[name] = error.given
    cert, key = (path.read_bytes() for path in pair)
    credentials = grpc.ssl_channel_credentials(pki.ca.read_bytes(), key, cert)
    with grpc.secure_channel(server.address, credentials) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    found["health"] = "ok" if answer.status == answer.SERVING else "not serving"
    return found


def test_only_clients_on_the_list_may_call(pki: Any) -> None:
    also = (x509.UniformResourceIdentifier("spiffe://fleet/7"), x509.DNSName("seven.fleet"))
    on_the_list = {
        "by common name": pki.make("device-1"),
        "by URI": pki.make("device-7", also=also[:1]),
        "by DNS name": pki.make("device-8", also=also[1:]),
    }
    others = {"another": pki.make("device-9"), "longer": pki.make("device-10")}
    names = ("device-1", "spiffe://fleet/7", "seven.fleet")
    tls = server_tls(*pki.make("server"), pki.ca, names)
    with MecServer(BUNDLE, ServerConfig(tls=tls)) as server:
        for who, pair in on_the_list.items():
            assert set(asked(server, pki, pair).values()) == {"ok"}, who
        for pair in others.values():
            found = asked(server, pki, pair)
            assert found.pop("health") == "ok"  # whoever watches a server need not be a device
            assert "not on the server's list" in found.pop("metadata")
            assert found == {"infer": "rejected", "probe": "rejected"}
        assert server.metrics.value("sliproad_requests_total", outcome="denied") == 2
        assert server.metrics.value("sliproad_requests_total", outcome="ok") == 3


def test_the_same_list_and_certificates_serve_an_asyncio_server(pki: Any) -> None:
    tls = server_tls(*pki.make("server"), pki.ca, ["device-1"])
    assert tls is not None

    async def answers(pair: tuple[Path, Path]) -> grpc.StatusCode:
        async def handle(data: bytes, context: Any) -> bytes:
            refused = tls.refusal(context)
            if refused is not None:
                await context.abort(*refused)
            return data

        server = grpc.aio.server()
        handlers = {"m": grpc.unary_unary_rpc_method_handler(handle)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", handlers),))
        port = server.add_secure_port("127.0.0.1:0", tls.credentials())
        await server.start()
        files = TlsFiles(pki.ca, *pair).credentials()
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", files) as channel:
            call = channel.unary_unary("/s/m")(b"", timeout=60)
            code = await call.code()
        await server.stop(None)
        return code

    assert asyncio.run(answers(pki.make("device-1"))) is grpc.StatusCode.OK
    assert asyncio.run(answers(pki.make("device-2"))) is grpc.StatusCode.PERMISSION_DENIED


def test_a_list_needs_certificates_to_read_names_from() -> None:
    cert, key, ca = Path("c"), Path("k"), Path("ca")
    for given, complaint in (
        ((cert, key, None, ["device-1"]), "without a client CA"),
        ((None, None, None, ["device-1"]), "names of clients without a server certificate"),
        ((None, None, ca, []), "a client CA without a server certificate"),
        ((cert, key, ca, [" "]), "an empty client name"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            server_tls(*given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.7", False),
        ("fe80::1%1", False),
        ("no-such-host.invalid", False),
    ],
)
def test_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


@pytest.mark.parametrize(
    ("keys", "address", "noted"),
    [
        ("", "127.0.0.1:8001", False),
        ("", "[::1]:8001", False),
        ("", "192.0.2.7:8001", True),
        ('tls_name = "mec"', "192.0.2.7:8001", False),
    ],
)
def test_frames_in_the_clear_are_noted(keys: str, address: str, noted: bool) -> None:
    assert (plain_note(device_file(keys, address)) is not None) == noted
