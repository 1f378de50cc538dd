"""Accuracy, calibration and payload of every exit and action, through the exported net."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.action import ACTIONS, N_EXITS, Action
from cnn.common.errors import DataError
from cnn.data.image_set import ImageSet
from cnn.network.calibrate import Reliability, collect_logits, reliability, softmax
from cnn.runtime import SplitRuntime


def action_reliability(
    logits: NDArray[np.float32], labels: NDArray[np.int16], temperatures: tuple[float, ...]
) -> list[Reliability]:
    """Reliability of each of the 20 actions at `temperatures`."""
    out = []
    for a in ACTIONS:
        p = softmax(logits[:, a.index], temperatures[a.index])
        out.append(reliability(p.max(1), p.argmax(1) == labels))
    return out


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
        ``actions``: the same for every (exit, split); ``payload_bytes`` by split.
    """
    if len(data) == 0:
        raise DataError("no images", expected="at least one", hint="check the data folder")
    bundle = runtime.bundle
    logits = collect_logits(runtime, data, progress)
    after = action_reliability(logits, data.label, bundle.temperatures)
    before = action_reliability(logits, data.label, (1.0,) * len(ACTIONS))
    correct = logits.argmax(2) == data.label[:, None]

    def entry(a: Action) -> dict[str, float]:
        return {
            "accuracy": float(correct[:, a.index].mean()),
            "ece": after[a.index].ece,
            "ece_uncalibrated": before[a.index].ece,
        }

    if plots is not None:
        from cnn.network.accuracy_plot import reliability_diagram

        reliability_diagram(before, after, plots / "reliability.png")
    return {
        "frames": len(data),
        "bundle": bundle.hash,
        "exits": {str(e): entry(Action(e, e)) for e in range(1, N_EXITS + 1)},
        "actions": {a.name: entry(a) for a in ACTIONS},
        "payload_bytes": {str(s): bundle.config.payload_bytes(N_EXITS, s) for s in range(N_EXITS)},
    }
