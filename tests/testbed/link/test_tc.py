"""The tc link, really, where this process is root and has iproute2; its refusals anywhere."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from cnn.common.errors import SliproadError
from testbed.link import tc as tc_link
from testbed.link.tc import TcLink, command
from testbed.traces.trace import Trace, constant_trace

SENDER = """
import socket, sys, time
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
end = time.monotonic() + float(sys.argv[3])
peer.settimeout(10)
while time.monotonic() < end:
    peer.sendall(bytes(4096))
"""


@pytest.fixture
def permitted() -> None:
    try:
        tc_link.check_permitted()
    except SliproadError as error:
        pytest.skip(str(error))


def received(link: TcLink, seconds: float) -> list[tuple[float, int]]:
    """Run a sender inside the namespace; stamps and sizes of what arrives outside."""
    with socket.create_server((link.server_host, 0)) as listener:
        port = str(listener.getsockname()[1])
        words = [sys.executable, "-c", SENDER, link.server_host, port, str(seconds)]
        sender = subprocess.Popen([*link.prefix, *words])
        listener.settimeout(20)
        peer, _ = listener.accept()
        log = []
        while data := peer.recv(1 << 16):
            log.append((time.monotonic(), len(data)))
        peer.close()
        assert sender.wait(20) == 0
    return log


@pytest.mark.slow(3)
@pytest.mark.root
@pytest.mark.usefixtures("permitted")
def test_capacity_bounds_what_arrives_and_all_is_undone() -> None:
    trace = constant_trace(8.0, 20.0)
    with TcLink(trace) as link:
        name, outer = link.namespace, link._outer
        assert name in command(["ip", "netns", "list"])
        log = received(link, 2.0)
        assert link.state_at(time.monotonic())[0] == 8.0
        if not link.has_netem:
            assert link.state_at(time.monotonic())[1] == 0.0  # no delay is claimed
    total = sum(size for _, size in log)
    rate_mbps = 8e-6 * (total - log[0][1]) / (log[-1][0] - log[0][0])
    # Headers cost about 5 %; a busy machine can only make it slower.
    assert 4.0 < rate_mbps < 8.2
    assert name not in command(["ip", "netns", "list"])
    assert outer not in command(["ip", "link"])


@pytest.mark.slow(5)
@pytest.mark.root
@pytest.mark.usefixtures("permitted")
def test_outage_holds_and_link_recovers() -> None:
    trace = Trace(np.array([8.0, 0.0]), np.zeros(2), 1.0, "on-off", "5G", "generated")
    with TcLink(trace) as link:
        log = received(link, 3.5)
        start = link.start_time
    by_second = np.zeros(20)
    for stamp, size in log:
        by_second[int(stamp - start)] += size
    on, off = by_second[0:4:2], by_second[1:4:2]
    assert on.max() > 100_000
    assert off.max() < 0.35 * on.max()
    assert max(stamp for stamp, _ in log) - start > 2.0  # it went on after an outage


@pytest.mark.root
@pytest.mark.usefixtures("permitted")
def test_what_a_killed_process_left_is_removed() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    command(["ip", "netns", "add", f"{tc_link.PREFIX}{gone.pid}"])
    tc_link.remove_stale()
    assert f"{tc_link.PREFIX}{gone.pid}" not in command(["ip", "netns", "list"])


def test_without_root_the_error_says_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/sbin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SliproadError, match="sudo"):
        TcLink(constant_trace(8.0, 20.0))


def test_without_iproute2_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SliproadError, match="apt-get install iproute2"):
        TcLink(constant_trace(8.0, 20.0))
