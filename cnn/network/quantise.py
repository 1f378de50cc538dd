"""Static int8 quantisation of exported segments (QDQ, per-channel weights).

Weights become int8 with a scale per output channel, activations uint8 with ranges seen on
calibration images. Weights keep to 7 bits (``reduce_range``): on x86 without VNNI the
8-bit product sums would saturate, and the bundle must answer alike everywhere.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.ort import onnxruntime as ort

# isort: split
# After cnn.ort, which sets what ONNX Runtime reads when it is loaded.
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

QUANTISED_OPS = ("Conv", "Gemm", "MaxPool", "Relu", "Flatten")


class _Inputs(CalibrationDataReader):  # type: ignore[misc]
    """Feeds recorded segment inputs, one small batch at a time, to the calibrator."""

    def __init__(self, inputs: NDArray[Any], batch: int = 8) -> None:
        parts = (inputs[i : i + batch] for i in range(0, len(inputs), batch))
        self._rest: Iterator[NDArray[Any]] = iter(parts)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next feed, None at the end."""
        x = next(self._rest, None)
        return None if x is None else {"x": x}


def quantise_segment(segment: bytes, inputs: NDArray[Any]) -> bytes:
    """An int8 version of one exported segment.

    Args:
        segment: ONNX, float weights, input ``x``.
        inputs: calibration inputs (N, ...) of the segment's own kind.

    Returns:
        ONNX with the same input and output.
    """
    with tempfile.TemporaryDirectory() as folder, _errors_only():
        folded, target = Path(folder) / "folded.onnx", Path(folder) / "int8.onnx"
        options = ort.SessionOptions()
        # The basic level folds the float16 casts and leaves standard operators.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.log_severity_level = 3
        ort.InferenceSession(segment, options, providers=["CPUExecutionProvider"])
        quantize_static(
            str(folded),
            str(target),
            _Inputs(inputs),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=list(QUANTISED_OPS),
        )
        return target.read_bytes()


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Within the block the root logger says errors alone: the quantiser uses it to recommend
    pre-processing, which has been done."""
    log = logging.getLogger()
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def segment_inputs(runtime: Any, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """What every segment receives on `images` (B, H, W, 3), by segment name.

    Args:
        runtime: the float `SplitRuntime` of the same network.
        images: calibration frames.
    """
    out: dict[str, NDArray[Any]] = {}
    x: NDArray[Any] = images
    for block in range(1, 6):
        out[f"block{block}"] = x
        x = runtime.forward(x, block, block)
        out[f"exit{block}"] = x
        if block < 5:
            out[f"enc{block}"] = x
            out[f"dec{block}"] = runtime.payload(x, block)
    return out
