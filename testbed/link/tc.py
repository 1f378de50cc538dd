"""The link by the kernel: a network namespace for the device, shaped with ``tc``. Needs root.

The device runs in a namespace of its own (`TcLink.prefix` before its command) and reaches the
server at `TcLink.server_host` through a veth pair. A token bucket (tbf) on the device's side
follows the trace's capacity; where the kernel has netem, half the round trip is added in each
direction. Without netem there is no delay, and the record says so (its round trips are 0).

It is coarser than the user-space link: headers count, each change of rate fills the bucket once,
and an outage occasionally lets a packet through. Everything is undone on exit; the next process
removes the rest of a killed one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import numpy as np

from cnn.common.errors import SliproadError
from testbed.link.transfer import Link
from testbed.traces.trace import Trace

PREFIX: Final = "sliproad-"
QUEUE_BYTES: Final = 256 * 1024
"""Limit of the bucket's queue before packets are dropped, bytes (the modem's buffer)."""

BURST_BYTES: Final = 3028
"""Bucket: two full Ethernet frames, the smallest size that keeps back-to-back packets apart."""

OUTAGE_BITS_PER_S: Final = 8
"""tbf has no rate of 0; this is one byte a second."""

_CLONE_NEWNET: Final = 0x40000000  # <linux/sched.h>


class TcLink(Link):
    """A link shaped by the kernel. Use as a context manager, or call `close`.

    A process may have one at a time: its names carry the process number.

    Args:
        trace: capacity and round trip to replay, repeated. It starts at once.
        start_offset_s: trace time at the start, seconds.

    Raises:
        SliproadError: no root, a command is missing, or the kernel refuses.
    """

    def __init__(self, trace: Trace, *, start_offset_s: float = 0.0) -> None:
        check_permitted()
        remove_stale()
        # One of 65536 networks of four addresses within 10.200.0.0/14, by process.
        network = (10 << 24 | 200 << 16) + 4 * (os.getpid() % 65536)
        self.namespace = f"{PREFIX}{os.getpid()}"
        self._outer, self._inner = f"slo{os.getpid()}"[:15], f"sli{os.getpid()}"[:15]
        self.server_host = str(IPv4Address(network + 1))
        self.device_host = str(IPv4Address(network + 2))
        self.prefix = ["ip", "netns", "exec", self.namespace]
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._tc: subprocess.Popen[str] | None = None
        try:
            self._build()
            self.has_netem = self._try_netem()
            self._tc = self._batch()
        except BaseException:
            self.close()
            raise
        if not self.has_netem:
            trace = replace(trace, rtt_ms=np.zeros(len(trace.rtt_ms)))
        super().__init__(trace, start_offset_s, None, "tc")
        self.start_time = time.monotonic()
        self._thread = threading.Thread(target=self._follow, name="sliproad-tc", daemon=True)
        self._thread.start()

    def _so_far(self) -> tuple[float | None, tuple[tuple[float, float], ...]]:
        return self.start_time, ()

    def close(self) -> None:
        """Stop and remove the namespace and the veth pair."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._tc is not None and self._tc.stdin is not None:
            with contextlib.suppress(OSError):
                self._tc.stdin.close()
            self._tc.wait()
            self._tc = None
        _remove(self.namespace, self._outer)

    def _build(self) -> None:
        inner, outer = self._inner, self._outer
        command(["ip", "netns", "add", self.namespace])
        command(["ip", "link", "add", outer, "type", "veth", "peer", "name", inner])
        command(["ip", "link", "set", inner, "netns", self.namespace])
        command(["ip", "address", "add", f"{self.server_host}/30", "dev", outer])
        command(["ip", "link", "set", outer, "up"])
        command([*self.prefix, "ip", "address", "add", f"{self.device_host}/30", "dev", inner])
        command([*self.prefix, "ip", "link", "set", inner, "up"])
        command([*self.prefix, "ip", "link", "set", "lo", "up"])
        command([*self.prefix, "tc", *_tbf("add", inner, 1e9).split()])

    def _try_netem(self) -> bool:
        """Add the delays if the kernel has netem."""
        up = ["qdisc", "add", "dev", self._inner, "parent", "1:1", "handle", "10:"]
        down = ["tc", "qdisc", "add", "dev", self._outer, "root", "handle", "10:"]
        try:
            command([*self.prefix, "tc", *up, "netem", "delay", "0ms"])
            command([*down, "netem", "delay", "0ms"])
        except SliproadError:
            return False
        return True

    def _batch(self) -> subprocess.Popen[str]:
        """A tc process in the namespace that reads lines: starting one each time takes too long."""
        return subprocess.Popen(
            [*self.prefix, "tc", "-force", "-batch", "-"], stdin=subprocess.PIPE, text=True
        )

    def _follow(self) -> None:
        """Set each sample's rate and delay at its time."""
        nudge = self._nudging_socket()
        last: tuple[float, float] | None = None
        k = int(self._offset_s / self.trace.period_s)
        while not self._stop.is_set():
            i = k % len(self.trace.uplink_mbps)
            state = (float(self.trace.uplink_mbps[i]) * 1e6, float(self.trace.rtt_ms[i]))
            if state != last:
                self._set(*state)
                # The bucket sleeps until its head packet fits at the OLD rate; a new packet
                # makes it check again. Nothing listens on the discard port.
                self._stop.wait(0.001)
                with contextlib.suppress(OSError):
                    nudge.sendto(b"", (self.server_host, 9))
                last = state
            k += 1
            due = self.start_time + k * self.trace.period_s - self._offset_s
            self._stop.wait(max(due - time.monotonic(), 0.0))
        nudge.close()

    def _set(self, bits_per_s: float, rtt_ms: float) -> None:
        assert self._tc is not None
        assert self._tc.stdin is not None
        lines = [_tbf("change", self._inner, max(bits_per_s, OUTAGE_BITS_PER_S))]
        if self.has_netem:
            delay = f"netem delay {rtt_ms / 2:.3f}ms limit 10000"
            lines.append(f"qdisc change dev {self._inner} parent 1:1 handle 10: {delay}")
            with contextlib.suppress(SliproadError):
                change = ["tc", "qdisc", "change", "dev", self._outer, "root", "handle", "10:"]
                command([*change, *delay.split()])
        with contextlib.suppress(OSError):
            self._tc.stdin.write("\n".join(lines) + "\n")
            self._tc.stdin.flush()

    def _nudging_socket(self) -> socket.socket:
        """A UDP socket in the namespace; this thread enters it (threads have their own)."""
        libc = ctypes.CDLL(None, use_errno=True)
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(there, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            nudge = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            libc.setns(home, _CLONE_NEWNET)
        finally:
            os.close(there)
            os.close(home)
        nudge.setblocking(False)
        return nudge


def check_permitted() -> None:
    """Raise `SliproadError`, with the command that fixes it, unless this process may use tc."""
    for name in ("ip", "tc"):
        if shutil.which(name) is None:
            raise SliproadError(
                f"the command {name} is missing",
                expected="iproute2",
                hint="run `apt-get install iproute2`, or use the user-space link",
            )
    if os.geteuid() != 0:
        raise SliproadError(
            "the tc link without root",
            expected="root, for network namespaces",
            hint="run it with sudo, or use the user-space link",
        )


def remove_stale() -> None:
    """Remove namespaces of processes that no longer run."""
    for line in command(["ip", "netns", "list"]).splitlines():
        name = line.split()[0] if line else ""
        owner = name.removeprefix(PREFIX)
        ours = name.startswith(PREFIX) and owner.isdigit()
        if ours and not Path("/proc", owner).exists():
            _remove(name, f"slo{owner}"[:15])


def command(words: list[str]) -> str:
    """Run a command and return its output; raises `SliproadError` with its message."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        message = (done.stderr or done.stdout).strip().splitlines()
        raise SliproadError(
            f"`{' '.join(words)}` failed: {message[0] if message else done.returncode}",
            expected="a kernel with network namespaces, veth and tbf",
            hint="run as root on such a kernel, or use the user-space link",
        )
    return done.stdout


def _tbf(verb: str, device: str, bits_per_s: float) -> str:
    rate = f"rate {max(round(bits_per_s), OUTAGE_BITS_PER_S)}bit"
    return (
        f"qdisc {verb} dev {device} root handle 1: tbf {rate} "
        f"burst {BURST_BYTES} limit {QUEUE_BYTES}"
    )


def _remove(namespace: str, outer: str) -> None:
    """Remove the veth pair and the namespace, as far as they exist."""
    for words in (["ip", "link", "delete", outer], ["ip", "netns", "delete", namespace]):
        with contextlib.suppress(SliproadError, FileNotFoundError):
            command(words)
