"""TLS and mutual TLS between the real server and client; certificates by openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cnn.bundle import load_bundle
from cnn.common.errors import ConfigError, RemoteError
from cnn.runtime import SplitRuntime
from testbed.server.mec_server import MecServer, ServerConfig
from testbed.wire.client import MecClient
from testbed.wire.tls import ServerTls, TlsFiles, server_tls

BUNDLE = load_bundle()
RUNTIME = SplitRuntime(BUNDLE)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, a server certificate and one client certificate of each."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed")
    folder = tmp_path_factory.mktemp("pki")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
           "-days", "2")  # fmt: skip
    for authority in ("ca", "rogue-ca"):
        openssl(*new, "-subj", f"/CN={authority}", "-keyout", f"{authority}.key",
                "-out", f"{authority}.pem")  # fmt: skip
    for name, authority in (("server", "ca"), ("client", "ca"), ("rogue", "rogue-ca")):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem",
                "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
                "-addext", "basicConstraints=critical,CA:FALSE",
                "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")  # fmt: skip
    return folder


def _served(target: str, tls: TlsFiles | None, wait_s: float = 60) -> None:
    """Connect and get one right answer."""
    with MecClient(target, BUNDLE.hash, tls) as client:
        client.connect(wait_s)
        data = np.full((1, *RUNTIME.wire_shape(4)), 9, np.uint8)
        reply = client.infer(data, 5, 4, timeout_ms=60_000)
        assert reply.prediction == RUNTIME.tail(data, 5, 4)[0][0]


@pytest.mark.slow(1)
def test_tls(pki: Path) -> None:
    tls = ServerTls(pki / "server.pem", pki / "server.key")
    with MecServer(BUNDLE, ServerConfig(tls=tls)) as server:
        _served(server.address, TlsFiles(ca=pki / "ca.pem"))
        # by another authority, or in the clear, the same port is a clear refusal
        for files in (TlsFiles(ca=pki / "rogue-ca.pem"), None):
            with pytest.raises(RemoteError, match="check address and TLS files"):
                _served(server.address, files, wait_s=0.5)
        _served(server.address, TlsFiles(ca=pki / "ca.pem"))


@pytest.mark.slow(2)
def test_mutual_tls(pki: Path) -> None:
    tls = ServerTls(pki / "server.pem", pki / "server.key", client_ca=pki / "ca.pem")
    ca = pki / "ca.pem"
    good = TlsFiles(ca, pki / "client.pem", pki / "client.key")
    with MecServer(BUNDLE, ServerConfig(tls=tls)) as server:
        _served(server.address, good)
        for files in (
            TlsFiles(ca),  # no certificate
            TlsFiles(ca, pki / "rogue.pem", pki / "rogue.key"),  # another authority's
            TlsFiles(pki / "rogue-ca.pem", pki / "client.pem", pki / "client.key"),
            None,
        ):
            with pytest.raises(RemoteError, match="check address and TLS files"):
                _served(server.address, files, wait_s=0.5)
        _served(server.address, good)


def test_a_server_under_another_name(pki: Path) -> None:
    """The certificate names 127.0.0.1 and localhost, not the name that we expect."""
    tls = ServerTls(pki / "server.pem", pki / "server.key")
    ca = pki / "ca.pem"
    with MecServer(BUNDLE, ServerConfig(tls=tls)) as server:
        _served(server.address, TlsFiles(ca=ca, server_name="localhost"))
        with pytest.raises(RemoteError, match="check address and TLS files"):
            _served(server.address, TlsFiles(ca=ca, server_name="mec.example"), wait_s=0.5)


def test_tls_files_that_do_not_fit_are_refused(pki: Path) -> None:
    cert, key = pki / "server.pem", pki / "server.key"

    def use(cert: Path | None, key: Path | None, client_ca: Path | None) -> None:
        tls = server_tls(cert, key, client_ca)
        assert tls is not None
        tls.credentials()

    for files, complaint in (
        ((cert, None, None), "both or neither"),
        ((None, None, pki / "ca.pem"), "certificate and key of the server too"),
        ((cert, pki / "client.key", None), "belong together"),
        ((pki / "absent.pem", key, None), "No such file"),
        ((cert, key, pki / "ca.key"), "PEM certificates"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            use(*files)
    with pytest.raises(ConfigError, match="belong together"):
        TlsFiles(cert=cert, key=pki / "client.key").credentials()
