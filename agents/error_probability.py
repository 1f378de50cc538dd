"""How often answers like a given one are wrong: the training reward without its coin tosses.

Wrong answers are rare (about one in a hundred) and their price is high, so the raw 0 or 1
is almost pure noise to a learner. In training, and only there, it is replaced by its mean
over similar answers: same calibrated confidence, and the same share of the network's 20
answers to this frame that agree with it. The dual ascent and every report use the true
0 or 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cnn.frame_table import FrameTable

_PRIOR: float = 4.0
"""Pseudo-answers, with the mean of all answers of the bin's confidence, in every bin."""


def error_probability(table: FrameTable, bins: int = 12) -> NDArray[np.float32]:
    """Chance that each action's answer to each frame is wrong.

    Args:
        table: training frames.
        bins: bins of confidence, equally filled.

    Returns:
        float32 (N, 20) in [0, 1], each action's mean its true share of wrong answers.
    """
    wrong = ~table.correct
    edges = np.quantile(table.confidence, np.linspace(0, 1, bins + 1)[1:-1])
    sure = np.searchsorted(edges, table.confidence)
    same = table.prediction[:, :, None] == table.prediction[:, None, :]
    agree = np.minimum((same.mean(2) * 5).astype(np.int64), 4)
    by_sure = np.bincount(sure.ravel(), wrong.ravel(), bins) / np.maximum(
        np.bincount(sure.ravel(), minlength=bins), 1
    )
    cell = (sure * 5 + agree).ravel()
    count = np.bincount(cell, minlength=5 * bins)
    total = np.bincount(cell, wrong.ravel(), 5 * bins)
    mean = (total + _PRIOR * np.repeat(by_sure, 5)) / (count + _PRIOR)
    out = mean[cell].reshape(wrong.shape)
    # Per action the mean must be the true one: the floor is about actions' accuracies.
    out *= wrong.mean(0) / np.maximum(out.mean(0), 1e-12)
    chance: NDArray[np.float32] = np.clip(out, 0.0, 1.0).astype(np.float32)
    return chance
