"""What smaller payloads save and cost: the frame as WebP or JPEG, the latents deflated.

Measured on GTSRB test images (SLIPROAD_DATA), one thread. Prints one JSON object:
{"images", "frame": {codec: {"bytes", "encode_ms", "decode_ms", "accuracy"}},
"latent": {split: {"bytes", "deflated_bytes", "deflate_ms"}}}.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from pathlib import Path

import numpy as np

from cnn.bundle import load_bundle
from cnn.data import ImageSet, load_gtsrb
from cnn.errors import SliproadError
from cnn.frame_codec import FRAME_CODECS, FrameCodec, decode_frame, encode_frame
from cnn.runtime import SplitRuntime

IMAGES = 1000


def frame_codec(runtime: SplitRuntime, data: ImageSet, codec: FrameCodec) -> dict[str, float]:
    """Bytes, milliseconds and main-exit accuracy of one codec."""
    size = runtime.bundle.config.input_size
    start = time.perf_counter()
    encoded = [encode_frame(image, codec) for image in data.images]
    middle = time.perf_counter()
    decoded = [decode_frame(e, codec, size) for e in encoded]
    end = time.perf_counter()
    hits = [runtime.local(d, 5)[0] == c for d, c in zip(decoded, data.label, strict=True)]
    return {
        "bytes": float(np.mean([len(e) for e in encoded])),
        "encode_ms": (middle - start) * 1000 / len(data),
        "decode_ms": (end - middle) * 1000 / len(data),
        "accuracy": float(np.mean(hits)),
    }


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
    except SliproadError as error:
        raise SystemExit(f"error: {error}") from error
    data = data.take(np.random.default_rng(0).permutation(len(data))[:IMAGES])
    result = {
        "images": len(data),
        "frame": {codec: frame_codec(runtime, data, codec) for codec in FRAME_CODECS},
        "latent": {str(s): latent(runtime, data, s) for s in range(1, 5)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
