"""What the device loop adds to the work itself.

    python benchmarks/runtime_overhead.py [--frames 400]

For every frame: total delay (capture to answer, queueing excluded) less head, encoder and
the server's compute, less the transport floor: an empty unary gRPC call with a request of
the same size to the same server process, made before the frame and after the same pause.
What is left is deciding, observing, building and reading messages, the server's own
handling (its batcher's hand-over included) and Python.

Prints ``{"overhead_ms_p50", "overhead_ms_p99", "floor_ms_p50", "paced": {...}}`` as the last
line. The first three are for frames one after another; ``paced`` holds the same for a frame
every 40 ms, where caches are cold and cores asleep when a frame comes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator

import grpc
import numpy as np

from cnn.bundle import load_bundle
from cnn.runtime import SplitRuntime
from testbed.device.device_loop import Device, DeviceConfig
from testbed.device.frame_sources import CameraFrame, open_frames
from testbed.meters.power import ModelMeter, power_profile
from testbed.policy.observer import Observer
from testbed.policy.policies import RandomPolicy
from testbed.policy.task_settings import Settings
from testbed.server.server_process import ServerProcess
from testbed.wire.client import MecClient
from testbed.wire.connection import CHANNEL_OPTIONS


class SameSizeCalls:
    """Empty unary calls with a request as large as a payload's message.

    The method is ``ServerLive``; a field that the message does not define carries the
    bytes, which protobuf skips.
    """

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target, CHANNEL_OPTIONS)
        self._call = self._channel.unary_unary("/inference.GRPCInferenceService/ServerLive")

    def time_ms(self, n_bytes: int) -> float:
        """Round trip of one call with `n_bytes` in its message."""
        body = b"\x00" * n_bytes
        # Field 15, length-delimited: tag 0x7a, then the length as a varint.
        length, varint = len(body), bytearray()
        while length > 0x7F:
            varint.append(length & 0x7F | 0x80)
            length >>= 7
        varint.append(length)
        message = b"\x7a" + bytes(varint) + body
        began = time.perf_counter()
        self._call(message, timeout=5.0)
        return (time.perf_counter() - began) * 1e3

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def measure(n_frames: int, period_ms: float, seed: int) -> dict[str, float]:
    """Run `n_frames` offloaded frames and as many floor calls, alternating."""
    bundle = load_bundle()
    runtime = SplitRuntime(bundle)
    runtime.warm()
    network = bundle.topology
    offloading = [a.index for a in network.actions if not a.is_local]
    policy = RandomPolicy(seed, offloading, network)
    # The same sequence, to know each size beforehand.
    order = RandomPolicy(seed, offloading, network)
    floors: list[float] = []
    message_overhead = 97  # parameters and shape of a request message (testbed.device.device_loop)
    with ServerProcess() as server, MecClient(server.target, bundle.hash) as client:
        client.connect(30)
        calls = SameSizeCalls(server.target)

        def stream() -> Iterator[CameraFrame]:
            for frame in open_frames("render", bundle.config.input_size, seed=seed, n=n_frames):
                action = order.decide(np.zeros(0, np.float32))
                time.sleep(period_ms / 2e3)  # the floor call meets the same sleepy machine
                size = int(network.payload_bytes[action]) + message_overhead
                floors.append(calls.time_ms(size))
                yield frame

        device = Device(
            runtime,
            client,
            policy,
            Observer(Settings(True, 0.9, 0.5, 10.0)),
            ModelMeter(power_profile("jetson-nano+5g-nsa-lowband")),
            DeviceConfig(period_ms=period_ms, timeout_ms=5000, max_queue_ms=5000),
        )
        rows = list(device.run(stream()))
        calls.close()
    warm = n_frames // 10
    overhead = [
        row.delay_ms - row.queue_ms - row.head_ms - (row.encode_ms or 0.0) - row.server_ms - floor
        for row, floor in zip(rows, floors, strict=True)
        if row.server_ms is not None
    ][warm:]
    return {
        "overhead_ms_p50": float(np.percentile(overhead, 50)),
        "overhead_ms_p99": float(np.percentile(overhead, 99)),
        "floor_ms_p50": float(np.percentile(floors[warm:], 50)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Overhead of the device loop, as JSON.")
    parser.add_argument("--frames", type=int, default=400, help="frames (default 400)")
    parser.add_argument("--seed", type=int, default=0, help="seed of actions and frames")
    given = parser.parse_args()
    result: dict[str, object] = dict(measure(given.frames, 0.0, given.seed))
    result["paced"] = measure(given.frames, 40.0, given.seed)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
