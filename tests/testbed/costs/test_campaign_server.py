"""A campaign against a server that runs already: a real process, on a port of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import wait_until

from cnn.bundle import load_bundle
from cnn.common.errors import ConfigError, RemoteError
from cnn.ort import onnxruntime
from cnn.topology import SHIPPED
from testbed.costs.campaign import run_campaign
from testbed.costs.campaign_config import CampaignConfig, Condition
from testbed.costs.campaign_server import RemoteServer, ServerLostError, Upstream, path_to
from testbed.device.frame_sources import open_frames
from testbed.meters.cost_model import CostModel
from testbed.records.record_file import parquet_files, read_records
from testbed.server.server_process import ServerProcess

pytestmark = pytest.mark.slow(25)

CONDITIONS = ("5/10", "40/25")
PROVIDER = onnxruntime.get_available_providers()[0]
"""With ONNX Runtime from PyPI another one than the CPU's, though it takes no operator."""


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    running = ServerProcess().start()
    yield running
    running.stop()


def start_campaign(server: str, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "testbed", "campaign", "--server", server, "--out", str(out)]
    command += [word for condition in CONDITIONS for word in ("--condition", condition)]
    command += ["--rounds", "1", "--repetitions", "2", "--warm-up", "2", "--timeout-ms", "20000"]
    command += ["--providers", PROVIDER, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def blocks_of(out: Path) -> list[Path]:
    folder = out.with_name(f"{out.name}.blocks")
    return parquet_files(folder) if folder.is_dir() else []


def test_it_resumes_after_a_kill_waits_for_a_lost_server_and_gives_a_cost_model(
    tmp_path: Path, server: ServerProcess
) -> None:
    out, address = tmp_path / "pi.parquet", f"localhost:{server.port}"
    killed = start_campaign(address, out)
    wait_until(lambda: blocks_of(out) or killed.poll() is not None, 120)
    killed.kill()
    said = killed.communicate()[1]
    kept = blocks_of(out)
    assert len(kept) == 1, said
    first = read_records(kept[0])

    folder = kept[0].parent
    for unfinished in folder.glob(".*"):
        unfinished.unlink()
    lines: list[str] = []
    with start_campaign(address, out, "--json") as again:
        assert again.stderr is not None
        reader = threading.Thread(target=lines.extend, args=(again.stderr,), daemon=True)
        reader.start()
        try:
            # The block that is being measured has a hidden file.
            wait_until(lambda: [*folder.glob(".*.parquet")] or again.poll() is not None, 120)
            server.kill()
            lost = f"lost {address}"
            wait_until(lambda: lost in "".join(lines) or again.poll() is not None, 120)
            server.start()
            assert again.wait(240) == 0, "".join(lines)
        finally:
            again.kill()
            reader.join(10)
    text = "".join(lines)
    assert lost in text
    assert f"{address} is back after" in text

    records = read_records(out)
    assert set(records.texts("status")) == {"ok"}
    same = records.texts("condition") == first.texts("condition")[0]
    np.testing.assert_array_equal(records.numbers("delay_ms")[same], first.numbers("delay_ms"))
    counted = ~np.array(records.table["warm_up"].to_pylist())
    actions = Counter(records.numbers("action")[counted].astype(int).tolist())
    assert actions == dict.fromkeys(range(SHIPPED.n_actions), 4)
    sent = records.numbers("uplink_bytes") > 0
    assert (records.numbers("server_ms")[sent] > 0).all()
    told = records.source
    assert told["server"] == address
    assert PROVIDER in told["providers"]
    assert 0 < told["path_rtt_ms"] < 50
    assert told["conditions"]["5mbps-10ms"]["rtt_ms"] == 10 + told["path_rtt_ms"]
    assert [path.name for path in tmp_path.iterdir()] == ["pi.parquet"]

    model = tmp_path / "pi.json"
    fit = [sys.executable, "-m", "testbed", "fit", "--records", str(out), "--out", str(model)]
    done = subprocess.run(
        [*fit, "--bootstrap", "0"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    profile = CostModel.load(model)
    sends = ~SHIPPED.is_local
    assert (np.array(profile.device_ms) > 0).all()
    assert (np.array(profile.server_ms)[sends] > 0).all()
    assert not profile.filled
    assert f"server {address}" in profile.machine
    assert PROVIDER in profile.machine


def test_the_round_trip_of_the_path_is_that_of_a_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        host, rtt_ms = path_to("localhost", port)
        assert host == "127.0.0.1"
        assert 0 < rtt_ms < 50
    with pytest.raises(ServerLostError, match=str(port)):
        path_to("127.0.0.1", port)


def test_the_address_that_answers_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with an IPv6 address, too, on which its server does not listen."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        dead = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))
        alive = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [dead, alive])
        assert path_to("mec.local", port)[0] == "127.0.0.1"


def test_no_server_at_the_start_and_another_network_end_it(
    tmp_path: Path, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.costs.campaign_server.FIRST_WAIT_S", 0.5)
    bundle = load_bundle()
    frames = open_frames("render", bundle.config.input_size)
    remote = RemoteServer(server.target, "0" * 64, None)
    with pytest.raises(RemoteError, match="the server has bundle"):
        remote.greet(5.0)
    server.stop()
    config = CampaignConfig(conditions=(Condition(5, 10),), server=server.target)
    with pytest.raises(RemoteError, match=server.target):
        run_campaign(config, bundle, frames, tmp_path / "out.parquet")
    assert [p.name for p in tmp_path.iterdir()] in ([], ["out.parquet.blocks"])


def test_a_path_that_always_breaks_ends_it(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.costs.campaign_server.MOST_TRIES", 3)
    said: list[str] = []
    remote = RemoteServer(server.target, load_bundle().hash, None, said.append)
    tries: list[Upstream] = []

    def block(upstream: Upstream) -> None:
        tries.append(upstream)
        raise ServerLostError("no answer", expected="one", hint="none")

    with pytest.raises(ServerLostError):
        remote.measure("b", block)
    assert len(tries) == 3
    assert sum("is back" in line for line in said) == 2


def test_a_campaign_through_tls_checks_the_servers_own_name(
    tmp_path: Path, new_pki: Callable[..., Any]
) -> None:
    """Behind the emulated link, on 127.0.0.1, the certificate's name is still --server's."""
    pki = new_pki(tmp_path)
    cert, key = pki.make("server")
    options = ("--tls-cert", str(cert), "--tls-key", str(key))
    with ServerProcess(options=options) as secure:
        out = tmp_path / "pi.parquet"
        command = ["--tls-ca", str(pki.ca), "--json"]
        done = start_campaign(f"localhost:{secure.port}", out, *command)
        stdout, stderr = done.communicate(timeout=240)
    assert done.returncode == 0, stderr
    rows = json.loads(stdout.splitlines()[-1])["frames"]
    assert rows == 2 * (2 + 2 * SHIPPED.n_actions)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tls-name", "mec"), "--tls-name without --server"),
        (("--server", "mec:8001", "--server-threads", "2"), "--server-threads with --server"),
        (("--server", "http://mec"), "--server 'http://mec'"),
        (("--providers", "NoSuch"), "no 'NoSuch' here"),
        (("--power", "no.toml+lte"), "no.toml"),
    ],
)
def test_impossible_options_are_one_line(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    command = [sys.executable, "-m", "testbed", "campaign", "--out", str(tmp_path / "x.parquet")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert not list(tmp_path.glob("*.parquet"))


def test_a_bad_address_is_no_configuration() -> None:
    with pytest.raises(ConfigError, match="no port"):
        CampaignConfig(server="mec")
