"""An int8 variant of the device's blocks and exits beside the shipped float32 ones.

Every block and exit is quantised statically (QDQ, per-channel int8 weights, uint8
activations, calibrated on images of the validation tracks), then both variants run the
five local actions on GTSRB test images in one process, one thread, in turns.

Prints one JSON object: {"images", "exits": {exit: {"float32_accuracy", "int8_accuracy",
"float32_ms", "int8_ms", "speedup"}}, "keep": whether int8 is faster at every exit without
losing more than 0.2 points}. Needs SLIPROAD_DATA.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from cnn.bundle import load_bundle
from cnn.data import ImageSet, load_gtsrb
from cnn.runtime import SplitRuntime
from cnn.tracks import load_split

CALIBRATION_IMAGES, TEST_IMAGES, ROUNDS = 100, 2000, 40


class Inputs(CalibrationDataReader):  # type: ignore[misc]
    """Feeds recorded segment inputs to the calibrator."""

    def __init__(self, inputs: list[NDArray[Any]]) -> None:
        self._rest: Iterator[NDArray[Any]] = iter(inputs)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next feed, None at the end."""
        x = next(self._rest, None)
        return None if x is None else {"x": x}


def quantise(source: Path, target: Path, inputs: list[NDArray[Any]]) -> None:
    """Fold the float16 casts of `source`, then quantise it to `target`."""
    folded = target.with_suffix(".f32.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.log_severity_level = 3
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    quantize_static(
        str(folded),
        str(target),
        Inputs(inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=["Conv", "Gemm", "MaxPool", "Relu", "Flatten"],
    )


class Int8Runtime(SplitRuntime):
    """The same network with quantised blocks and exits."""

    folder: Path

    def _session(self, name: str) -> ort.InferenceSession:
        if name not in self._sessions:
            options = ort.SessionOptions()
            options.intra_op_num_threads = self.threads
            options.log_severity_level = 3
            file = str(self.folder / f"{name}.onnx")
            self._sessions[name] = ort.InferenceSession(
                file, options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[name]


def build(runtime: SplitRuntime, images: NDArray[np.uint8], folder: Path) -> Int8Runtime:
    """Quantise the five blocks and exits, calibrated on `images`."""
    x: list[NDArray[Any]] = [image[None] for image in images]
    for block in range(1, 6):
        for name in (f"block{block}", f"exit{block}"):
            if name.startswith("exit"):
                x = [runtime.forward(v, block, block) for v in x]
            quantise(runtime.bundle.segment_path(name), folder / f"{name}.onnx", x)
    int8 = Int8Runtime(runtime.bundle, runtime.threads)
    int8.folder = folder
    return int8


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
                for _ in range(3):
                    runtime.local(frame, exit)
                times[k][exit - 1].append((time.perf_counter() - start) * 1000 / 3)
    return times


def main() -> None:
    """Build, measure, print."""
    root = os.environ.get("SLIPROAD_DATA")
    if not root:
        raise SystemExit("error: SLIPROAD_DATA is not set; expected the folder above gtsrb/")
    logging.getLogger().setLevel(logging.ERROR)
    runtime = SplitRuntime(load_bundle())
    size = runtime.bundle.config.input_size
    rng = np.random.default_rng(0)
    fit = load_gtsrb(Path(root) / "gtsrb", "train", size).only_tracks(load_split()["cnn-val"])
    fit = fit.take(rng.permutation(len(fit))[:CALIBRATION_IMAGES])
    test = load_gtsrb(Path(root) / "gtsrb", "test", size)
    test = test.take(rng.permutation(len(test))[:TEST_IMAGES])
    with tempfile.TemporaryDirectory() as folder:
        int8 = build(runtime, fit.images, Path(folder))
        hits = [accuracy(r, test) for r in (runtime, int8)]
        times = latency_ms([runtime, int8], test.images[0])
    exits = {}
    for e in range(5):
        float_ms, int8_ms = (statistics.median(t[e]) for t in times)
        speedup = statistics.median(a / b for a, b in zip(times[0][e], times[1][e], strict=True))
        exits[str(e + 1)] = {
            "float32_accuracy": hits[0][e],
            "int8_accuracy": hits[1][e],
            "float32_ms": round(float_ms, 3),
            "int8_ms": round(int8_ms, 3),
            "speedup": round(speedup, 3),
        }
    keep = all(
        r["speedup"] > 1 and r["int8_accuracy"] >= r["float32_accuracy"] - 0.002
        for r in exits.values()
    )
    print(json.dumps({"images": len(test), "exits": exits, "keep": keep}))


if __name__ == "__main__":
    main()
