"""A MEC server in a process of its own, a device in this one, gRPC between them.

    python examples/02_device_and_server.py [--frames 60]

Halfway the server is stopped: the device finishes those frames itself. Needs the extra
[server] for the server's process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cnn import SplitRuntime, load_bundle
from testbed import (
    CameraFrame,
    Device,
    DeviceConfig,
    Measurement,
    MecClient,
    ModelMeter,
    Observer,
    Settings,
    StaticPolicy,
    open_frames,
    power_profile,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=60, help="frames to process (default 60)")
    n = parser.parse_args().frames

    bundle = load_bundle()
    runtime = SplitRuntime(bundle, threads=1)
    runtime.warm()
    # Blocks 1 and 2 here, 3 to 5 and the main exit on the server.
    action = bundle.topology.action(exit=5, split=2)

    server, address = start_server()
    try:
        with MecClient(address, bundle.hash) as client:
            client.connect(timeout_s=10)
            device = Device(
                runtime,
                client,
                StaticPolicy(action, topology=bundle.topology),
                Observer(Settings(True, accuracy_floor=0.9, delay_share=0.5, full_local_ms=10)),
                ModelMeter(power_profile("raspberry-pi-4+5g-nsa-lowband")),
                DeviceConfig(period_ms=50, max_queue_ms=5000),
            )
            frames = open_frames("render", bundle.config.input_size, seed=3, n=n)
            rows = list(device.run(stop_halfway(frames, n, server)))
    finally:
        server.terminate()
        server.wait()
    show([r for r in rows if r.status == "ok"], "answered by the server")
    show([r for r in rows if r.status == "fallback"], "finished on the device")
    print(f"lost: {sum(r.prediction is None for r in rows)}")


def start_server() -> tuple[subprocess.Popen[bytes], str]:
    """Start ``sliproad testbed serve`` on a free port; (process, address)."""
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        command = [sys.executable, "-m", "testbed", "serve", "--port", "0"]
        server = subprocess.Popen([*command, "--port-file", str(port_file)])
        while not port_file.exists():  # the server writes it when it is ready
            if server.poll() is not None:
                sys.exit("the server did not start")
            time.sleep(0.05)
        return server, f"127.0.0.1:{int(port_file.read_text())}"


def stop_halfway(
    frames: Iterator[CameraFrame], n: int, server: subprocess.Popen[bytes]
) -> Iterator[CameraFrame]:
    """Hand the frames on; before the one in the middle, stop the server."""
    for i, frame in enumerate(frames):
        if i == n // 2:
            server.terminate()
            server.wait()
        yield frame


def show(rows: list[Measurement], what: str) -> None:
    if rows:
        delay = np.mean([r.delay_ms for r in rows])
        energy = np.mean([r.energy_mj for r in rows if r.energy_mj is not None])
        mean = f"{delay:.1f} ms, {energy:.1f} mJ ({rows[0].energy_source})"
        print(f"{len(rows):4} frames {what}: {mean}")


if __name__ == "__main__":
    main()
