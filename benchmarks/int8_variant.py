"""An int8 bundle beside the float32 bundle of the same network: accuracy and speed.

    python benchmarks/int8_variant.py FLOAT32_BUNDLE [INT8_BUNDLE]

Both come from one checkpoint (`sliproad cnn export --precision float32` and ``int8``); the
int8 bundle is the shipped one if not given. Accuracy on GTSRB test images (SLIPROAD_DATA),
time of the five local actions in one process, one thread, the two taking turns.

Prints one JSON object: {"images", "exits": {exit: {"float32_accuracy", "int8_accuracy",
"float32_ms", "int8_ms", "speedup"}}, "keep": whether int8 is faster at every exit and loses
at most 0.2 points}.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.bundle import load_bundle
from cnn.common.errors import SliproadError
from cnn.data.gtsrb import load_gtsrb
from cnn.data.image_set import ImageSet
from cnn.runtime import SplitRuntime

IMAGES, ROUNDS, RUNS = 2000, 40, 3


def accuracy(runtime: SplitRuntime, data: ImageSet) -> list[float]:
    """Accuracy of the five local exits."""
    hits = np.zeros(5)
    for at in range(0, len(data), 50):
        x: NDArray[Any] = data.images[at : at + 50]
        for exit in range(1, 6):
            x = runtime.forward(x, exit, exit)
            hits[exit - 1] += np.sum(runtime.logits(x, exit).argmax(1) == data.label[at : at + 50])
    return [float(h) for h in hits / len(data)]


def latency_ms(runtimes: list[SplitRuntime], frame: NDArray[np.uint8]) -> list[list[list[float]]]:
    """Milliseconds [runtime][exit][round], the runtimes taking turns."""
    times: list[list[list[float]]] = [[[] for _ in range(5)] for _ in runtimes]
    for _ in range(ROUNDS):
        for exit in range(1, 6):
            for k, runtime in enumerate(runtimes):
                start = time.perf_counter()
                for _ in range(RUNS):
                    runtime.local(frame, exit)
                times[k][exit - 1].append((time.perf_counter() - start) * 1000 / RUNS)
    return times


def compare(runtimes: list[SplitRuntime], data: ImageSet) -> dict[str, dict[str, float]]:
    """Figures of every exit; `runtimes` are float32 and int8."""
    hits = [accuracy(r, data) for r in runtimes]
    times = latency_ms(runtimes, data.images[0])
    exits = {}
    for e in range(5):
        speedup = statistics.median(a / b for a, b in zip(times[0][e], times[1][e], strict=True))
        exits[str(e + 1)] = {
            "float32_accuracy": hits[0][e],
            "int8_accuracy": hits[1][e],
            "float32_ms": round(statistics.median(times[0][e]), 3),
            "int8_ms": round(statistics.median(times[1][e]), 3),
            "speedup": round(speedup, 3),
        }
    return exits


def main() -> None:
    """Load both, measure, print."""
    root = os.environ.get("SLIPROAD_DATA")
    if not root or len(sys.argv) not in (2, 3):
        raise SystemExit(
            "error: expected SLIPROAD_DATA to be set and FLOAT32_BUNDLE [INT8_BUNDLE]; "
            "make one with `sliproad cnn export --precision float32`"
        )
    try:
        bundles = [load_bundle(Path(sys.argv[1]))]
        bundles.append(load_bundle(Path(sys.argv[2]) if len(sys.argv) == 3 else None))
        data = load_gtsrb(Path(root) / "gtsrb", "test", bundles[0].config.input_size)
    except SliproadError as error:
        raise SystemExit(f"error: {error}") from error
    data = data.take(np.random.default_rng(0).permutation(len(data))[:IMAGES])
    exits = compare([SplitRuntime(b) for b in bundles], data)
    keep = all(
        r["speedup"] > 1 and r["int8_accuracy"] >= r["float32_accuracy"] - 0.002
        for r in exits.values()
    )
    print(json.dumps({"images": len(data), "exits": exits, "keep": keep}))


if __name__ == "__main__":
    main()
