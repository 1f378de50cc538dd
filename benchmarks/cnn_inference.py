"""ONNX Runtime against torch eager, batch 1, one thread, both in one run.

Prints one JSON object: {"onnx_ms", "eager_ms", "ratio", "per_action_ms": {...}}, medians in
milliseconds; `per_action_ms` is the whole path of an action in one process.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from cnn.bundle import load_bundle
from cnn.model_config import ModelConfig
from cnn.network.vgg import MultiExitVGG
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED

ROUNDS, RUNS = 30, 5


def once_ms(run: Callable[[], object]) -> float:
    """Milliseconds of one call, averaged over a few."""
    start = time.perf_counter()
    for _ in range(RUNS):
        run()
    return (time.perf_counter() - start) * 1000 / RUNS


def main() -> None:
    """Measure in turns, so that a drift of the machine's speed hits both alike."""
    torch.set_num_threads(1)
    bundle = load_bundle()
    runtime = SplitRuntime(bundle, threads=1)
    runtime.warm()
    # The same architecture in torch; weights do not change the time.
    net = MultiExitVGG(ModelConfig()).eval()
    size = bundle.config.input_size
    frame = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    main_exit = SHIPPED.action(5, 5)

    def eager() -> None:
        with torch.inference_mode():
            x = torch.from_numpy(frame)[None].permute(0, 3, 1, 2).float() / 255
            net.act(x, main_exit).softmax(1).max(1)

    def onnx() -> None:
        runtime.act(frame, main_exit)

    eager(), onnx()
    eager_ms, onnx_ms = [], []
    for _ in range(ROUNDS):
        eager_ms.append(once_ms(eager))
        onnx_ms.append(once_ms(onnx))
    per_action = {
        a.name: statistics.median(once_ms(lambda a=a: runtime.act(frame, a)) for _ in range(10))
        for a in SHIPPED.actions
    }
    ratio = statistics.median(e / o for e, o in zip(eager_ms, onnx_ms, strict=True))
    print(
        json.dumps(
            {
                "onnx_ms": round(statistics.median(onnx_ms), 3),
                "eager_ms": round(statistics.median(eager_ms), 3),
                "ratio": round(ratio, 3),
                "per_action_ms": {k: round(v, 3) for k, v in per_action.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
