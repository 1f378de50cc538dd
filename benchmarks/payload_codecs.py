"""What smaller payloads save and cost: the frame as WebP or JPEG, the latents deflated.

Measured on GTSRB test images (SLIPROAD_DATA), one thread. Prints one JSON object:
{"images", "frame": {encoding: {"bytes", "encode_ms", "decode_ms", "accuracy": {exit: share}}},
"latent": {split: {"bytes", "deflated_bytes", "deflate_ms"}},
"modelled_delay_ms": {"assumed", "delay_ms": {device: {Mbit/s: {encoding: delay}}}}}.

Bytes, times and accuracies are measured here. The delays are modelled: the shipped cost
model's action e5s0 with these bytes and times put in, at the rates of `RATES_MBPS`. A slower
device encodes as much more slowly as it computes everything else; the server decodes at the
speed of this machine.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from pathlib import Path

import numpy as np

from cnn.bundle import load_bundle
from cnn.common.errors import SliproadError
from cnn.data.gtsrb import load_gtsrb
from cnn.data.image_set import ImageSet
from cnn.frame_codec import FrameEncoding, decode_frame
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED
from testbed.meters.cost_model import CostModel
from testbed.wire.protocol import ENCODING_OVERHEAD_BYTES

IMAGES = 2000
ENCODINGS = tuple(FrameEncoding.parse(t) for t in ("raw", "webp", "jpeg:90", "jpeg:75", "jpeg:50"))
RATES_MBPS = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
RTT_MS = 30.0
FULL_LOCAL_MS = (None, 20.0, 80.0)
"""Devices to model: the measured one, and slower ones by their full local processing."""
COST_MODEL = Path(__file__).parents[1] / "testbed/assets/cost_model.json"


def frame_codec(
    runtime: SplitRuntime, data: ImageSet, encoding: FrameEncoding
) -> dict[str, float | dict[str, float]]:
    """Bytes, milliseconds and accuracy at every exit on the decoded frames."""
    size = runtime.bundle.config.input_size
    for image in data.images[:50]:  # warm: a device encodes frame after frame
        decode_frame(encoding.encode(image), encoding.codec, size)
    start = time.perf_counter()
    encoded = [encoding.encode(image) for image in data.images]
    middle = time.perf_counter()
    decoded = [decode_frame(e, encoding.codec, size) for e in encoded]
    end = time.perf_counter()
    hits = np.zeros(5)
    for image, label in zip(decoded, data.label, strict=True):
        x = runtime.start(image)
        for e in range(1, 6):
            x = runtime.forward(x, e, e)
            hits[e - 1] += int(runtime.logits(x, e).argmax()) == label
    return {
        "bytes": float(np.mean([len(e) for e in encoded])),
        "encode_ms": (middle - start) * 1000 / len(data),
        "decode_ms": (end - middle) * 1000 / len(data),
        "accuracy": {str(e): float(h / len(data)) for e, h in enumerate(hits, 1)},
    }


def modelled_delay_ms(
    costs: CostModel, measured: dict[str, dict[str, float | dict[str, float]]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Delay of e5s0 by device, uplink rate and encoding; nobody waits at the server."""
    action, full = SHIPPED.action(5, 0).index, SHIPPED.action(5, 5).index
    delays: dict[str, dict[str, dict[str, float]]] = {}
    for full_local_ms in FULL_LOCAL_MS:
        own_ms = costs.slowdown * costs.device_ms[full]
        slowdown = costs.slowdown * (1.0 if full_local_ms is None else full_local_ms / own_ms)
        rows = delays[f"full local {full_local_ms or own_ms:.3g} ms"] = {}
        for rate in RATES_MBPS:
            row = rows[f"{rate:g}"] = {}
            for name, m in measured.items():
                coded = name != "raw"
                wire = m["bytes"] + costs.wire_overhead_bytes + coded * ENCODING_OVERHEAD_BYTES
                device_ms = slowdown * (costs.device_ms[action] + coded * m["encode_ms"])
                server_ms = costs.server_ms[action] + coded * m["decode_ms"]
                away_ms = 8 * wire / (1000 * rate) + RTT_MS + costs.net_ms + server_ms
                row[name] = round(device_ms + away_ms, 2)
    return delays


def latent(runtime: SplitRuntime, data: ImageSet, split: int) -> dict[str, float]:
    """Bytes of the uint8 latent, raw and deflated."""
    codes = [
        runtime.payload(runtime.forward(runtime.start(image), 1, split), split).tobytes()
        for image in data.images
    ]
    start = time.perf_counter()
    deflated = [len(zlib.compress(c, 6)) for c in codes]
    return {
        "bytes": float(np.mean([len(c) for c in codes])),
        "deflated_bytes": float(np.mean(deflated)),
        "deflate_ms": (time.perf_counter() - start) * 1000 / len(data),
    }


def main() -> None:
    """Measure on `IMAGES` random test images."""
    root = os.environ.get("SLIPROAD_DATA")
    if not root:
        raise SystemExit("error: SLIPROAD_DATA is not set; expected the folder above gtsrb/")
    runtime = SplitRuntime(load_bundle())
    runtime.warm()
    try:
        data = load_gtsrb(Path(root) / "gtsrb", "test", runtime.bundle.config.input_size)
        costs = CostModel.load(COST_MODEL)
    except SliproadError as error:
        raise SystemExit(f"error: {error}") from error
    data = data.take(np.random.default_rng(0).permutation(len(data))[:IMAGES])
    frame = {str(e): frame_codec(runtime, data, e) for e in ENCODINGS}
    result = {
        "images": len(data),
        "frame": frame,
        "latent": {str(s): latent(runtime, data, s) for s in range(1, 5)},
        "modelled_delay_ms": {
            "assumed": {
                "action": "e5s0",
                "rtt_ms": RTT_MS,
                "server_wait_ms": 0,
                "cost_model": costs.name,
            },
            "delay_ms": modelled_delay_ms(costs, frame),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
