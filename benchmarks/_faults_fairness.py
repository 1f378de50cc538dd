"""A polite client beside one that hoards the server.

    python benchmarks/_faults_fairness.py hoard|idle TARGET     (the impolite client's process)

The polite client is a device: some frames a second, one call at a time, each given up after the
usual 250 ms. The hoarder keeps 64 calls under way on each of four connections, and sends each
again at once, whatever became of it. The idle one opens 192 calls on three connections and never
sends a message. A client's fair share is what it asks for, or an equal part of the server's
throughput for each connection if that is less; the figure is the answers it had in time over
that share.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from _faults_parts import ROOT, say
from prometheus_client.parser import text_string_to_metric_families

from cnn.bundle import load_bundle
from testbed.server.server_process import ServerProcess
from testbed.wire.address import find_free
from testbed.wire.client import INFER, ExchangeFailed, MecClient
from testbed.wire.requests import build_request

CONNECTIONS, CALLS = 4, 64
IDLE_CONNECTIONS, IDLE_CALLS = 3, 64
A_SECOND, TIMEOUT_MS = 10.0, 250.0
SETTLE_S = 2.0


def run(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """The whole group."""
    seconds = 4.0 if quick else 8.0
    return {
        "polite_share_under_hoarder": share("hoard", CONNECTIONS, seconds),
        "polite_share_under_idle_calls": share("idle", IDLE_CONNECTIONS, seconds),
    }


def share(mode: str, others: int, seconds: float) -> float:
    """The polite client's share of its fair share beside the impolite one."""
    metrics_port = find_free("127.0.0.1")
    with ServerProcess(options=("--metrics-port", str(metrics_port))) as server:
        command = [sys.executable, str(ROOT / "benchmarks" / "_faults_fairness.py")]
        other = subprocess.Popen([*command, mode, server.target])
        try:
            time.sleep(SETTLE_S)
            computed, began_s = frames_computed(metrics_port), time.monotonic()
            asked, answered, reasons = polite(server.target, seconds)
            took_s = time.monotonic() - began_s
            try:
                throughput = (frames_computed(metrics_port) - computed) / took_s
            except OSError:
                say(f"fairness: {mode}: the server ended, {answered} of {asked} answered before")
                return 0.0
        finally:
            other.kill()
            other.wait()
    fair = A_SECOND
    if mode == "hoard":  # idle calls leave all of the server's time to others
        fair = min(fair, throughput / (others + 1))
    figure = min(1.0, answered / took_s / fair)
    say(
        f"fairness: {mode}: {answered} of {asked} answered in time {reasons or ''}, the server "
        f"computes {throughput:.0f} frames a second; share {figure:.2f}"
    )
    return round(figure, 3)


def polite(target: str, seconds: float) -> tuple[int, int, dict[str, int]]:
    """A device's calls: how many, how many of them answered in time, and why not."""
    bundle = load_bundle()
    size = bundle.config.input_size
    frame = np.random.default_rng(1).integers(0, 256, (1, size, size, 3), np.uint8)
    asked = answered = 0
    reasons: dict[str, int] = {}
    began_s = time.monotonic()
    with MecClient(target, bundle.hash) as client:
        while (now_s := time.monotonic()) < began_s + seconds:
            time.sleep(max(0.0, began_s + asked / A_SECOND - now_s))
            asked += 1
            try:
                client.infer(frame, 3, 0, TIMEOUT_MS)
                answered += 1
            except ExchangeFailed as error:
                reasons[error.reason] = reasons.get(error.reason, 0) + 1
    return asked, answered, reasons


def frames_computed(port: int) -> float:
    """Frames that the server has computed, by its metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as page:
        text = page.read().decode()
    return sum(
        float(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "sliproad_frames_total"
    )


async def hoard(target: str) -> None:
    """Keep many calls under way, for ever."""
    bundle = load_bundle()
    size = bundle.config.input_size
    request = build_request(bundle.hash, 5, 0, (1, size, size, 3))
    request.raw_input_contents[0] = bytes(size * size * 3)
    data = request.SerializeToString()

    async def again(channel: grpc.aio.Channel) -> None:
        infer = channel.unary_unary(INFER)
        while True:
            try:
                await infer(data, timeout=10)
            except grpc.RpcError:
                await asyncio.sleep(0)

    channels = [_channel(target) for _ in range(CONNECTIONS)]
    await asyncio.gather(*(again(c) for c in channels for _ in range(CALLS)))


async def idle(target: str) -> None:
    """Open calls and send nothing on them; open those again that the server ends."""

    async def silent(channel: grpc.aio.Channel) -> None:
        infer = channel.stream_unary(INFER)
        while True:
            call = infer()
            await call.code()
            await asyncio.sleep(0.2)

    channels = [_channel(target) for _ in range(IDLE_CONNECTIONS)]
    await asyncio.gather(*(silent(c) for c in channels for _ in range(IDLE_CALLS)))


def _channel(target: str) -> grpc.aio.Channel:
    """A connection of its own."""
    return grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])


if __name__ == "__main__":
    asyncio.run({"hoard": hoard, "idle": idle}[sys.argv[1]](sys.argv[2]))
