"""How truly the user-space link replays its trace, measured by an independent sender.

    python benchmarks/link_fidelity.py [--seconds 15] [--kinds urban-5g,highway-lte,poor-coverage]

Four processes: this one, the link, a sender and a receiver. Sender and receiver are plain
sockets that stamp with CLOCK_MONOTONIC and know nothing of the link's code; what should have
happened is computed here from the trace by small steps, not by the link's arithmetic.

* delay: small packets at random times; error = measured one-way delay less the expected one
  (FIFO behind the packets before, 8 * size bits of capacity, half a round trip).
* rate: a sender that never stops; error = bytes received in each 0.5 s over the bytes that
  the trace lets arrive in it, less 1. Windows in which fewer than 20 segments are due are
  left out (and counted), since one segment more or less would already be 5 %.

Prints ``{"rate_error_p95", "delay_error_ms_p95", ...}``. With root, sender and receiver ask for
real-time priority as the link does, so that the figures are the link's and not the machine's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import socket
import struct
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKET_BYTES = 64
WINDOW_S = 0.5
MIN_SEGMENTS = 20
SEGMENT_BYTES = 1448
Floats = NDArray[np.float64]


def precise() -> None:
    """Real-time priority for this process, where the system allows it."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def receive(report: Connection) -> None:
    """Receiver process: for each of two connections, stamps and sizes of what arrives."""
    precise()
    listener = socket.create_server(("127.0.0.1", 0))
    report.send(listener.getsockname()[1])
    for _ in range(2):
        peer, _ = listener.accept()
        stamps: list[float] = []
        sizes: list[int] = []
        heads: list[bytes] = []
        with contextlib.suppress(ConnectionResetError):  # how the saturating sender ends
            while data := peer.recv(1 << 20):
                stamps.append(time.monotonic())
                sizes.append(len(data))
                heads.append(data if len(data) <= 1024 * PACKET_BYTES else b"")
        peer.close()
        report.send((stamps, sizes, heads))


def send(port: int, seconds: float, seed: int, report: Connection) -> None:
    """Sender process: small packets at random times, then as much as goes through."""
    precise()
    gaps = random.Random(seed)
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        time.sleep(0.05)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            peer.sendall(struct.pack("d", time.monotonic()).ljust(PACKET_BYTES, b"-"))
            time.sleep(gaps.uniform(0.005, 0.03))
    with socket.create_connection(("127.0.0.1", port)) as peer:
        block = bytes(16384)
        first = time.monotonic()
        end = first + seconds
        peer.settimeout(seconds)
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                peer.sendall(block)
        report.send((first, time.monotonic()))
        report.recv()  # keep the connection until the measurement is over
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def expected_arrivals(rate: Floats, rtt_ms: Floats, period_s: float, sent: Floats) -> Floats:
    """Trace times at which small packets should arrive, walking the trace sample by sample."""
    free, last, arrivals = 0.0, 0.0, []
    for at in sent.tolist():
        t, bits = max(at, free), 8.0 * PACKET_BYTES
        while True:
            k = int(t / period_s + 1e-9)
            capacity = rate[k % len(rate)] * 1e6
            left_s = (k + 1) * period_s - t
            if capacity * left_s >= bits:
                t += bits / capacity
                break
            bits -= capacity * left_s
            t = (k + 1) * period_s
        free = t
        last = max(last, t + rtt_ms[int(t / period_s) % len(rtt_ms)] / 2e3)
        arrivals.append(last)
    return np.array(arrivals)


def delay_errors_ms(trace: Any, start: float, log: Any) -> Floats:
    """Measured less expected one-way delay of every small packet, milliseconds."""
    stamps, sizes, heads = log
    arrived: list[float] = []
    rest = b""
    sent: list[float] = []
    for stamp, size, data in zip(stamps, sizes, heads, strict=True):
        if len(data) != size:
            raise RuntimeError("small packets arrived in one piece larger than expected")
        rest += data
        while len(rest) >= PACKET_BYTES:
            sent.append(struct.unpack_from("d", rest)[0])
            arrived.append(stamp)
            rest = rest[PACKET_BYTES:]
    expected = expected_arrivals(
        trace.uplink_mbps, trace.rtt_ms, trace.period_s, np.array(sent) - start
    )
    return (np.array(arrived) - start - expected) * 1e3


def rate_errors(
    trace: Any, start: float, log: Any, first: float, last: float
) -> tuple[Floats, int]:
    """Received over expected bytes, less 1, per window; and the number of windows left out."""
    step = 1e-4
    stamps, sizes = np.array(log[0]) - start, np.array(log[1])
    grid = np.arange(first - start, last - start, step)
    sample = (grid / trace.period_s).astype(int) % len(trace.rtt_ms)
    leaving = np.cumsum(trace.uplink_mbps[sample] * 1e6 * step) / 8
    arriving = np.maximum.accumulate(grid + trace.rtt_ms[sample] / 2e3)
    edges = np.arange(first - start + 1.0, last - start - 0.1, WINDOW_S)
    due = leaving[np.clip(np.searchsorted(arriving, edges), 0, len(grid) - 1)]
    got = np.concatenate([[0], np.cumsum(sizes)])[np.searchsorted(stamps, edges)]
    expected, received = np.diff(due), np.diff(got)
    enough = expected >= MIN_SEGMENTS * SEGMENT_BYTES
    return received[enough] / expected[enough] - 1, int((~enough).sum())


def measure(kind: str, seed: int, seconds: float) -> dict[str, Any]:
    """One generated trace: delays for so many seconds, then rates for so many."""
    from testbed.link.link_process import LinkProcess
    from testbed.traces.generator import generate_trace

    trace = generate_trace(kind, seed, duration_s=2 * seconds + 10)
    processes = multiprocessing.get_context("spawn")
    receiver_end, receiver_far = processes.Pipe()
    receiver = processes.Process(target=receive, args=(receiver_far,), daemon=True)
    receiver.start()
    server_port = receiver_end.recv()
    with LinkProcess(trace, ("127.0.0.1", server_port)) as link:
        link.start()
        start = link.start_time
        assert start is not None
        sender_end, sender_far = processes.Pipe()
        sender = processes.Process(
            target=send, args=(link.port, seconds, seed, sender_far), daemon=True
        )
        sender.start()
        delays = delay_errors_ms(trace, start, _expect(receiver_end, seconds + 60))
        first, last = _expect(sender_end, 2 * seconds + 60)
        stats = link.stats()
        sender_end.send(None)
        rates, few = rate_errors(trace, start, _expect(receiver_end, 60), first, last)
        sender.join(10)
    receiver.join(10)
    return {"kind": kind, "delays": delays, "rates": rates, "few": few, "stats": stats}


def _expect(end: Connection, seconds: float) -> Any:
    if not end.poll(seconds):
        raise SystemExit(f"no report within {seconds:.0f} s: the link or a peer hangs")
    return end.recv()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the user-space link's fidelity.")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each of the two parts")
    parser.add_argument("--kinds", default="urban-5g,highway-lte,poor-coverage")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    runs = [measure(kind, options.seed, options.seconds) for kind in options.kinds.split(",")]
    delays = np.abs(np.concatenate([run["delays"] for run in runs]))
    rates = np.abs(np.concatenate([run["rates"] for run in runs]))
    result = {
        "rate_error_p95": round(float(np.quantile(rates, 0.95)), 5),
        "delay_error_ms_p95": round(float(np.quantile(delays, 0.95)), 4),
        "delay_error_ms_p50": round(float(np.median(delays)), 4),
        "delay_error_ms_max": round(float(delays.max()), 3),
        "packets": len(delays),
        "windows": len(rates),
        "runs": [
            {
                "trace": run["stats"]["trace"],
                "rate_error_p95": _p95(run["rates"]),
                "delay_error_ms_p95": _p95(run["delays"]),
                "windows_left_out": run["few"],
                "link": run["stats"],
            }
            for run in runs
        ],
        "load_average": os.getloadavg()[0],
        "cores": os.cpu_count(),
    }
    print(json.dumps(result))


def _p95(values: Floats) -> float | None:
    return round(float(np.quantile(np.abs(values), 0.95)), 5) if len(values) else None


if __name__ == "__main__":
    main()
