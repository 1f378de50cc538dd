"""Calibration and accuracy of every exit and action, through the exported network.

Temperature scaling per (exit, split): Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern
Neural Networks", ICML 2017 (arXiv 1706.04599): one temperature per output, fitted by negative
log-likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from cnn.common.files import replacing
from cnn.common.outputs import SOFTWARE
from cnn.data.image_set import ImageSet
from cnn.make_frame_table import action_logits
from cnn.runtime import SplitRuntime
from cnn.topology import Action

N_BINS: Final = 15
"""Equal-width confidence bins of the expected calibration error, as in Guo et al."""

TEMPERATURE_RANGE: Final = (0.2, 10.0)


def collect_logits(
    runtime: SplitRuntime,
    data: ImageSet,
    progress: Callable[[int], object] = lambda done: None,
    batch: int = 64,
) -> NDArray[np.float32]:
    """Uncalibrated logits of every frame and action, float32 (N, A, n_classes).

    `progress` is called with the number of frames just done.
    """
    actions = runtime.topology.actions
    out = np.empty((len(data), len(actions), runtime.bundle.config.n_classes), np.float32)
    for at in range(0, len(data), batch):
        rows = slice(at, min(at + batch, len(data)))
        logits = action_logits(runtime, data.images[rows])
        for a in actions:
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
    """One temperature per action, from logits (N, A, n_classes)."""
    return tuple(fit_temperature(logits[:, a], labels) for a in range(logits.shape[1]))


@dataclass(frozen=True, slots=True)
class Reliability:
    """Accuracy by confidence.

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


def action_reliability(
    logits: NDArray[np.float32], labels: NDArray[np.int16], temperatures: tuple[float, ...]
) -> list[Reliability]:
    """Reliability of each action at `temperatures`, from logits (N, A, n_classes)."""
    out = []
    for index, temperature in enumerate(temperatures):
        p = softmax(logits[:, index], temperature)
        out.append(reliability(p.max(1), p.argmax(1) == labels))
    return out


def action_accuracy(logits: NDArray[np.float32], labels: NDArray[np.int16]) -> NDArray[np.float64]:
    """Share of right answers of every action, float64 (A,), from logits (N, A, n_classes)."""
    accuracy: NDArray[np.float64] = (logits.argmax(2) == labels[:, None]).mean(0)
    return accuracy


def evaluate(
    runtime: SplitRuntime,
    data: ImageSet,
    plots: Path | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, Any]:
    """Evaluate a bundle on labelled images.

    Args:
        runtime: the exported network.
        data: labelled images, with or without tracks.
        plots: folder for a reliability diagram, if wanted.
        progress: called with the number of images just done.

    Returns:
        ``exits``: accuracy, ECE after and before calibration of every unsplit exit;
        ``actions``: the same for every (exit, split); ``payload_bytes`` by split; ``providers``
        of the runtime.
    """
    if len(data) == 0:
        raise DataError("no images", expected="at least one", hint="check the data folder")
    bundle, topology = runtime.bundle, runtime.topology
    logits = collect_logits(runtime, data, progress)
    after = action_reliability(logits, data.label, bundle.temperatures)
    before = action_reliability(logits, data.label, (1.0,) * topology.n_actions)
    accuracy = action_accuracy(logits, data.label)

    def entry(a: Action) -> dict[str, float]:
        return {
            "accuracy": float(accuracy[a.index]),
            "ece": after[a.index].ece,
            "ece_uncalibrated": before[a.index].ece,
        }

    if plots is not None:
        unsplit = {e: topology.index(e, e) for e in topology.exits}
        reliability_diagram(before, after, unsplit, plots / "reliability.png")
    return {
        "frames": len(data),
        "bundle": bundle.hash,
        "providers": list(runtime.providers),
        "exits": {str(a.exit): entry(a) for a in topology.actions if a.is_local},
        "actions": {a.name: entry(a) for a in topology.actions},
        "payload_bytes": {str(s): math.prod(topology.payload_shape(s)) for s in topology.splits},
    }


def _area(share: Any) -> Any:
    """Area of a bin's mark, points squared, by its share of the frames."""
    return 12 + 60 * np.sqrt(share)


def reliability_diagram(
    before: list[Reliability], after: list[Reliability], unsplit: dict[int, int], path: Path
) -> None:
    """One panel an exit: accuracy by confidence, before and after scaling.

    `unsplit` is the number of each exit's local action, by exit.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(
        1, len(unsplit), figsize=(3 * len(unsplit), 4.0), sharey=True, layout="constrained"
    )
    axes = np.atleast_1d(axes)
    for (e, index), ax in zip(unsplit.items(), axes, strict=True):
        ax.plot([0, 1], [0, 1], color="0.7", lw=1)
        series = ((before, "before", "tab:orange", "o"), (after, "after", "tab:blue", "s"))
        for which, name, colour, marker in series:
            r = which[index]
            seen = r.count >= 5
            ax.scatter(
                r.confidence[seen],
                r.accuracy[seen],
                s=_area(r.count[seen] / r.count.sum()),
                color=colour,
                marker=marker,
                alpha=0.8,
                label=f"{name}: ECE {r.ece:.4f}",
            )
        ax.set(title=f"exit {e}", xlabel="confidence", xlim=(0, 1.02), ylim=(0, 1.02))
        ax.legend(loc="upper left", fontsize=8)
    axes[0].set_ylabel("share of right answers")
    sizes = [
        fig.gca().scatter([], [], s=_area(share), color="0.5", label=f"{100 * share:g} % of frames")
        for share in (0.01, 0.1, 1.0)
    ]
    fig.legend(handles=sizes, loc="outside lower center", ncols=len(sizes), fontsize=9)
    fig.suptitle(f"Reliability ({N_BINS} bins, bins with at least 5 frames)")
    with replacing(path) as temporary:
        fig.savefig(temporary, dpi=110, metadata={"Software": SOFTWARE})
    plt.close(fig)
