"""Temperature scaling per (exit, split), and how well confidences tell the truth.

Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017
(arXiv 1706.04599): one temperature per output, fitted by negative log-likelihood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.action import ACTIONS
from cnn.data.image_set import ImageSet
from cnn.make_frame_table import action_logits
from cnn.runtime import SplitRuntime

N_BINS: Final = 15
"""Equal-width confidence bins of the expected calibration error, as in Guo et al."""

TEMPERATURE_RANGE: Final = (0.2, 10.0)


def collect_logits(
    runtime: SplitRuntime,
    data: ImageSet,
    progress: Callable[[int], object] = lambda done: None,
    batch: int = 64,
) -> NDArray[np.float32]:
    """Uncalibrated logits of every frame and action, float32 (N, 20, n_classes).

    `progress` is called with the number of frames just done.
    """
    out = np.empty((len(data), len(ACTIONS), runtime.bundle.config.n_classes), np.float32)
    for at in range(0, len(data), batch):
        rows = slice(at, min(at + batch, len(data)))
        logits = action_logits(runtime, data.images[rows])
        for a in ACTIONS:
            out[rows, a.index] = logits[a.exit, a.exit if a.is_full_offload else a.split]
        progress(rows.stop - rows.start)
    return out


def softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Probabilities float64 (..., n_classes) at `temperature`."""
    z = logits.astype(np.float64) / temperature
    z = np.exp(z - z.max(-1, keepdims=True))
    out: NDArray[np.float64] = z / z.sum(-1, keepdims=True)
    return out


def negative_log_likelihood(
    logits: NDArray[np.float32], labels: NDArray[np.int16], temperature: float
) -> float:
    """Mean negative log probability of the true class, nats."""
    p = softmax(logits, temperature)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(p, 1e-12)).mean())


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int16]) -> float:
    """Temperature in `TEMPERATURE_RANGE` with the least negative log-likelihood."""
    from scipy.optimize import minimize_scalar

    low, high = np.log(TEMPERATURE_RANGE)
    found = minimize_scalar(
        lambda t: negative_log_likelihood(logits, labels, float(np.exp(t))),
        bounds=(low, high),
        method="bounded",
    )
    return float(np.exp(found.x))


def fit_temperatures(logits: NDArray[np.float32], labels: NDArray[np.int16]) -> tuple[float, ...]:
    """One temperature per action, from logits (N, 20, n_classes)."""
    return tuple(fit_temperature(logits[:, a.index], labels) for a in ACTIONS)


@dataclass(frozen=True, slots=True)
class Reliability:
    """How often a confidence comes true.

    Attributes:
        confidence: float64 (N_BINS,), mean confidence in each bin; NaN if it is empty.
        accuracy: float64 (N_BINS,), share of right answers in it; NaN if it is empty.
        count: int64 (N_BINS,), frames in it.
        ece: expected calibration error, the count-weighted mean gap, [0, 1].
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]
    ece: float


def reliability(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> Reliability:
    """Bin `confidence` (N,) against `correct` (N,)."""
    which = np.clip((confidence * N_BINS).astype(int), 0, N_BINS - 1)
    count = np.bincount(which, minlength=N_BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(which, confidence, N_BINS) / count
        hits = np.bincount(which, correct.astype(float), N_BINS) / count
    gap = np.where(count > 0, np.abs(mean - hits), 0.0)
    return Reliability(mean, hits, count, float((gap * count).sum() / max(count.sum(), 1)))
