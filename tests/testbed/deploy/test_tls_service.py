"""TLS of the two processes as an operator meets it: renewal, warnings, checks, the guide."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from typer.testing import CliRunner

from cnn.common.errors import ConfigError
from testbed.cli.app import app
from testbed.deploy.assembly import preflight
from testbed.deploy.device_file import load_device_file
from testbed.wire.address import find_free

pytestmark = pytest.mark.slow(25)

ROOT = Path(__file__).parents[3]
DEVICE_FILE = """
[bundles]
action = "e3s1"
watch_s = 0
[server]
address = "127.0.0.1:{port}"
connect_timeout_s = 60
tls_ca = "ca.pem"
tls_cert = "device.pem"
tls_key = "device.key"
[frames]
period_ms = 20
timeout_ms = 60000
max_queue_ms = 3600000
[metrics]
port = {metrics}
"""


class Process:
    """``python -m testbed ...`` with its standard error in a file."""

    def __init__(self, folder: Path, *words: object) -> None:
        self.log = folder / f"{words[0]}.log"
        command = [sys.executable, "-m", "testbed", *map(str, words)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ
            )

    def wait_for(self, text: str) -> str:
        """The first line with `text`."""
        limit_s = time.monotonic() + 60
        while time.monotonic() < limit_s and self.process.poll() is None:
            for line in self.log.read_text().splitlines():
                if text in line:
                    return line
            time.sleep(0.05)
        raise AssertionError(f"no {text!r} in {self.log.read_text()}")

    def end(self) -> str:
        """Stop it; its standard output."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, self.log.read_text()
        return out


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start(*words: object) -> Process:
        processes.append(Process(tmp_path, *words))
        return processes[-1]

    yield start
    for each in processes:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()


def metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        found = re.search(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.M)
    assert found is not None
    return float(found[1])


def end_of(cert: Path) -> float:
    loaded = x509.load_pem_x509_certificate(cert.read_bytes())
    return loaded.not_valid_after_utc.timestamp()


def test_both_processes_renew_at_a_signal_and_no_frame_is_lost(
    tmp_path: Path, new_pki: Callable[..., Any], started: Callable[..., Process]
) -> None:
    pki = new_pki(tmp_path)
    files = {name: pki.make(name) for name in ("server", "device")}
    port, server_metrics, device_metrics = (find_free("127.0.0.1") for _ in range(3))
    server = started(
        "serve", "--host", "0.0.0.0", "--port", port, "--metrics-port", server_metrics,
        "--metrics-host", "127.0.0.1", "--tls-cert", "server.pem", "--tls-key", "server.key",
        "--tls-client-ca", "ca.pem", "--client-name", "device", "--no-batch-scheduling",
    )  # fmt: skip
    server.wait_for("serving")
    (tmp_path / "device.toml").write_text(DEVICE_FILE.format(port=port, metrics=device_metrics))
    device = started("device", "--config", "device.toml", "--json")
    device.wait_for("running")
    last = datetime.now(UTC) + timedelta(days=3)
    for name, process in (("server", server), ("device", device)):
        pki.make(name, last=last)
        process.process.send_signal(signal.SIGHUP)
        process.wait_for("new TLS files in use")
    ends = "certificate_not_after_timestamp_seconds"
    cert = end_of(files["server"][0])
    assert metric(server_metrics, f'sliproad_{ends}{{file="cert"}}') == cert
    assert metric(server_metrics, f'sliproad_{ends}{{file="client_ca"}}') == end_of(pki.ca)
    cert = end_of(files["device"][0])
    assert metric(device_metrics, f'sliproad_device_{ends}{{file="cert"}}') == cert
    before = metric(device_metrics, 'sliproad_device_frames_total{status="ok"}')
    while metric(device_metrics, 'sliproad_device_frames_total{status="ok"}') < before + 5:
        time.sleep(0.05)
    result = json.loads(device.end().splitlines()[-1])
    assert result["status"] == {"ok": result["frames"]}
    server.end()
    assert "warning" not in server.log.read_text()
    assert "Traceback" not in server.log.read_text() + device.log.read_text()


def test_a_server_beyond_this_machine_without_tls_is_warned_of(
    started: Callable[..., Process],
) -> None:
    server = started("serve", "--host", "0.0.0.0", "--port", 0, "--no-batch-scheduling")
    server.wait_for("serving")
    server.process.send_signal(signal.SIGHUP)  # without TLS there is nothing to look at
    server.end()
    warnings = [line for line in server.log.read_text().splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: --host 0.0.0.0 without TLS: other machines may call")


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "--client-name", "device"],
        ["serve", "--tls-client-ca", "ca.pem"],
        ["serve", "--metrics-host", "http://x"],
        ["device", "--local-only", "--action", "e5s5", "--tls-ca", "system"],
        ["device", "--server", "127.0.0.1:1", "--action", "e5s5", "--tls-cert", "x"],
        ["device", "--server", "127.0.0.1:1", "--action", "e5s5", "--tls-name", "a:b"],
    ],
)
def test_options_that_contradict_each_other_are_refused(words: list[str]) -> None:
    assert isinstance(CliRunner().invoke(app, words).exception, ConfigError)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("", "in the clear"),
        ('tls_ca = "system"', "TLS: trusts the public authorities of this system, shows no cert"),
    ],
)
def test_a_check_says_how_the_server_is_reached(keys: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text(f'[bundles]\naction = "e5s5"\n[server]\naddress = "192.0.2.7:8001"\n{keys}\n')
    lines = preflight(load_device_file(path))
    assert any(line.startswith(f"server: 192.0.2.7:8001, {said}") for line in lines)
    warned = [line for line in lines if line.startswith("warning: 192.0.2.7:8001 without TLS")]
    assert len(warned) == (0 if keys else 1)


def test_the_guide_to_mutual_tls(tmp_path: Path, started: Callable[..., Process]) -> None:
    """Its commands make files with which server and device understand each other."""
    guide = (ROOT / "docs" / "deploy.md").read_text().partition("### Mutual TLS\n")[2]
    commands, keys = (re.search(rf"```{kind}\n(.*?)```", guide, re.S)[1] for kind in ("sh", "toml"))  # type: ignore[index]
    subprocess.run(["bash", "-euc", commands], cwd=tmp_path, check=True, capture_output=True)
    unit = ROOT / "examples" / "systemd" / "sliproad-server.service.d" / "mutual-tls.conf"
    tls_words = re.findall(r"(--tls-\S+) /etc/sliproad/tls/(\S+)", unit.read_text())
    assert [option for option, _ in tls_words] == ["--tls-cert", "--tls-key", "--tls-client-ca"]
    port = find_free("127.0.0.1")
    words = [word for pair in tls_words for word in pair]
    server = started("serve", "--port", port, *words, "--client-name", "device-1")
    server.wait_for("serving")
    keys = keys.replace("/etc/sliproad/tls/", "").replace("mec.example:8001", f"127.0.0.1:{port}")
    (tmp_path / "device.toml").write_text(
        f"""[bundles]\naction = "e3s1"\n{keys}tls_name = "mec.example"\nconnect_timeout_s = 60\n"""
        "[frames]\ncount = 3\ntimeout_ms = 60000\nmax_queue_ms = 3600000\n"
    )
    device = started("device", "--config", "device.toml", "--json")
    out, _ = device.process.communicate(timeout=120)
    assert json.loads(out.splitlines()[-1])["status"] == {"ok": 3}, device.log.read_text()
    server.end()
