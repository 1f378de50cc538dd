"""A device that works by itself says nothing to any network and writes nothing at home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow(11)

ROOT = Path(__file__).parents[2]
ALONE = 'ip link set lo up && ip route add local 0.0.0.0/0 dev lo && "$@" && cat /proc/net/dev'
"""In a network of its own where every address leads to ``lo``, whose packets are counted."""
PAST_THE_FIRST_REPORT = 95
"""Frames, ten a second: ONNX Runtime's telemetry looks its server up after some 8 s."""


@pytest.mark.root
def test_a_device_without_a_server_sends_no_packet_and_writes_no_file(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("unshare or ip is not installed")
    dropped = ("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    environment = {k: v for k, v in os.environ.items() if k not in dropped}
    environment["HOME"] = str(tmp_path)
    device = [sys.executable, "-m", "testbed", "device", "--local-only", "--action", "e5s5"]
    device += ["--n-frames", str(PAST_THE_FIRST_REPORT)]

    def alone(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["unshare", "--net", "sh", "-c", ALONE, "sh", *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def packets(done: subprocess.CompletedProcess[str]) -> int:
        assert done.returncode == 0, done.stderr
        (line,) = (line for line in done.stdout.splitlines() if line.strip().startswith("lo:"))
        return int(line.split(":")[1].split()[1])

    send = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))"
    control = alone([sys.executable, "-c", send])
    if control.returncode and "unshare" in control.stderr:
        pytest.skip("no network namespaces here")
    assert packets(control) > 0  # what is sent is seen
    done = alone(device)
    assert packets(done) == 0
    assert done.stdout.startswith(f"{PAST_THE_FIRST_REPORT} frames")
    assert list(tmp_path.rglob("*")) == []
