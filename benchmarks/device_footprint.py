"""What an unattended device takes: start, memory, its growth, and processor time a frame.

    python benchmarks/device_footprint.py [--frames 20000]

Everything is measured in fresh processes that run the device as
`sliproad testbed device --config` does (records, guard, log), without a pause between frames
that were rendered beforehand. One process computes every frame itself (e1s1), another sends
every frame to a server process (e2s1). Prints one JSON object:

* ``import_s``: from before the first import until the first frame is decided on, the
  network loaded and warm (the interpreter's own start is not in it);
* ``rss_mb``: resident memory at the end, the larger of the two processes;
* ``rss_growth_mb_per_100k_frames``: slope of resident memory over the frames, the first
  quarter left out, the larger of the two;
* ``cpu_us_per_frame_overhead``: processor time of the whole process a frame, less what the
  network alone takes for the same frames. ``..._offload`` is that of the process which
  sends, with the transport in it.
"""

from __future__ import annotations

import argparse
import importlib.abc
import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SAMPLES = 200
LOCAL, SENT = "e1s1", "e2s1"


class NoPandas(importlib.abc.MetaPathFinder):
    """Makes this process one of the base install."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        """Refuse pandas; leave everything else to the others."""
        if name.partition(".")[0] == "pandas":
            raise ModuleNotFoundError(f"no {name} in the base install", name=name)


def child(folder: Path, target: str, action: str, frames: int) -> dict[str, float]:
    """A fresh process: one frame to see how long the start takes, then the run."""
    # pyarrow loads pandas (48 MB) where it finds it; a device's base install has none.
    sys.meta_path.insert(0, NoPandas())
    began_s = time.perf_counter()
    import numpy as np
    import psutil

    from testbed.deploy.device_file import parse_device_file
    from testbed.deploy.device_service import DeviceService
    from testbed.device.frame_sources import CameraFrame

    process = psutil.Process()

    class Measured(DeviceService):
        """Sees the same frames again and again, and samples memory and processor time."""

        first_s = cpu_s = 0.0

        def camera(self) -> Iterator[CameraFrame]:
            blank = np.zeros((48, 48, 3), np.uint8)
            yield CameraFrame(blank, None, 0, 0, 48, 48, "blank")
            self.first_s = time.perf_counter() - began_s
            self.images = rendered()
            self.rss: list[tuple[int, float]] = []
            for number in range(frames):
                if number == frames // 4:
                    self.from_cpu_s = time.process_time()
                if number % max(1, frames // SAMPLES) == 0:
                    self.rss.append((number, process.memory_info().rss / 2**20))
                yield self.images[number % len(self.images)]
            self.cpu_s = time.process_time() - self.from_cpu_s

    config = f"""
    [server]
    address = "{target}"
    [bundles]
    action = "{action}"
    [frames]
    period_ms = 0
    timeout_ms = 10000
    [drive]
    full_local_ms = 20
    [records]
    folder = "{folder / action}"
    file_mb = 1
    total_mb = 8
    [guard]
    enabled = true
    max_delay_ms = 1e6
    [log]
    level = "error"
    """
    service = Measured(parse_device_file(config))
    service.run()
    rss_mb = process.memory_info().rss / 2**20
    at, rss = np.array(service.rss[len(service.rss) // 4 :]).T
    alone_us = network_alone_us(action, service.images)
    counted = frames - frames // 4
    return {
        "start_s": service.first_s,
        "rss_mb": rss_mb,
        "ok": service.summary.status["ok"],
        "growth": float(np.polyfit(at, rss, 1)[0]) * 1e5,
        "network_alone_us": alone_us,
        "overhead_us": service.cpu_s / counted * 1e6 - alone_us,
    }


def rendered() -> list[Any]:
    """Frames to go round, made by a process of their own, whose memory is not the device's."""
    from testbed.device.frame_sources import CameraFrame

    code = (
        "import pickle, sys\nfrom dataclasses import astuple\n"
        "from testbed.device.frame_sources import open_frames\n"
        "frames = [astuple(f) for f in open_frames('render', 48, seed=1, n=300)]\n"
        "sys.stdout.buffer.write(pickle.dumps(frames))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    return [CameraFrame(*values) for values in pickle.loads(done.stdout)]


def network_alone_us(action: str, images: list[Any]) -> float:
    """Processor time of the device's part of the network, a frame, microseconds."""
    from cnn.bundle import load_bundle
    from cnn.runtime import SplitRuntime

    runtime = SplitRuntime(load_bundle())
    runtime.warm(("block1", "exit1", "enc1"))
    began_s = time.process_time()
    for frame in images:
        x = runtime.forward(runtime.start(frame.image), 1, 1)
        if action == LOCAL:
            runtime.answer(x, 1, 1)
        else:
            runtime.payload(x, 1)
    return (time.process_time() - began_s) / len(images) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=30_000)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, target, action = arguments.child
        print(json.dumps(child(Path(folder), target, action, arguments.frames)))
        return
    from testbed.server.server_process import ServerProcess

    runs = {}
    with tempfile.TemporaryDirectory() as folder, ServerProcess() as server:
        for action in (LOCAL, SENT):
            command = [sys.executable, __file__, "--frames", str(arguments.frames)]
            command += ["--child", folder, server.target, action]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs[action] = json.loads(done.stdout.splitlines()[-1])
    both = list(runs.values())
    result = {
        "import_s": runs[LOCAL]["start_s"],
        "rss_mb": max(run["rss_mb"] for run in both),
        "rss_growth_mb_per_100k_frames": max(run["growth"] for run in both),
        "cpu_us_per_frame_overhead": runs[LOCAL]["overhead_us"],
        "cpu_us_per_frame_overhead_offload": runs[SENT]["overhead_us"],
        "frames": arguments.frames,
        "runs": runs,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
