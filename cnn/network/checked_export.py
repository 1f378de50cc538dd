"""Export a network, compare the export with torch, and choose how its weights are stored."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from cnn.common.console import warn
from cnn.common.errors import BundleError
from cnn.data.image_set import ImageSet
from cnn.network.accuracy import action_accuracy, softmax
from cnn.network.block_network import LATENT_LEVELS, BlockNetwork
from cnn.network.block_times import block_times
from cnn.network.export_bundle import write_bundle
from cnn.network.fitting import to_batch
from cnn.network.onnx_block import OnnxBlock
from cnn.network.pipeline import CHECKED, Calibration, calibrate, int8_calibration

MOST_ERROR: Final = 1e-3
"""Largest difference of a probability between the exported network and torch's."""
MOST_INT8_LOSS: Final = 0.005
"""Largest loss of accuracy, of any action, with which int8 is taken."""


@dataclass(frozen=True, slots=True)
class Export:
    """How a network is exported, and what the export answers.

    Attributes:
        int8_images: calibration frames of an int8 bundle; None is float32.
        half: float32's weights are stored as float16.
        calibration: through this export.
        error: `largest_error`.
    """

    int8_images: NDArray[np.uint8] | None
    half: bool
    calibration: Calibration
    error: float

    @property
    def weights(self) -> str:
        """What the weights are on disk."""
        if self.int8_images is not None:
            return "int8"
        return "float16" if self.half else "float32"


def has_onnx(net: BlockNetwork) -> bool:
    """Whether its blocks are given as ONNX, and stay as they are."""
    return any(isinstance(block, OnnxBlock) for block in net.blocks)


def export_with(
    net: BlockNetwork, fit: ImageSet, val: ImageSet, precision: str, seed: int
) -> tuple[Export, str]:
    """The export of that precision; with ``auto`` also a line that says what was chosen and why.

    ``auto`` exports both ways, and takes int8 if full local processing is faster with it on this
    machine and no action loses more than `MOST_INT8_LOSS` on `val`.

    Raises:
        BundleError: if the float32 export answers otherwise than torch.
    """
    if precision != "auto":
        return checked_export(net, val, int8_calibration(fit, precision, seed)), ""
    plain = checked_export(net, val, None)
    int8 = checked_export(net, val, int8_calibration(fit, "int8", seed))
    right = (action_accuracy(e.calibration.logits, val.label) for e in (plain, int8))
    loss = float(np.subtract(*right).max())
    before_ms, after_ms = (full_local_ms(net, val, export) for export in (plain, int8))
    wins = int8_wins(before_ms, after_ms, loss)
    line = (
        f"{'int8' if wins else 'float32'}: full local takes {after_ms:.2f} ms with int8 and "
        f"{before_ms:.2f} ms without; an action loses {100 * loss:.2f} points at most"
    )
    return (int8 if wins else plain), line


def int8_wins(float32_ms: float, int8_ms: float, loss: float) -> bool:
    """Whether int8 is faster and loses no more accuracy than it may."""
    return int8_ms < float32_ms and loss <= MOST_INT8_LOSS


def full_local_ms(net: BlockNetwork, val: ImageSet, export: Export) -> float:
    """Time of all blocks and the main exit, on one thread of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timed"
        bundle = write_bundle(net, path, int8_images=export.int8_images, half=export.half)
        times_ms = block_times(bundle, val.images)
    n = net.topology.n_blocks
    return sum(times_ms[f"block{b}"] for b in range(1, n + 1)) + times_ms[f"exit{n}"]


def checked_export(
    net: BlockNetwork, val: ImageSet, int8_images: NDArray[np.uint8] | None
) -> Export:
    """The export whose answers are torch's.

    Weights are stored as float16 if `largest_error` stays within `MOST_ERROR`, else as float32.
    An int8 bundle is not held to that: its accuracy is in the card.

    Raises:
        BundleError: if `largest_error` is above `MOST_ERROR` with float32 weights.
    """
    error = math.inf
    for half in (False,) if has_onnx(net) else (True, False):
        try:
            calibration = calibrate(net, val, int8_images, half=half)
        except BundleError as refused:
            if not half:
                raise
            warn(f"{refused.given}: weights are stored as float32")
            continue
        error = largest_error(net, val, calibration)
        if int8_images is not None or error <= MOST_ERROR:
            return Export(int8_images, half, calibration, error)
    raise BundleError(
        f"an exported network whose answers differ from torch's by up to {error:.2g}",
        expected=f"at most {MOST_ERROR:g}",
        hint="look for operations that ONNX Runtime computes in another way",
    )


@torch.no_grad()
def largest_error(net: BlockNetwork, val: ImageSet, calibration: Calibration) -> float:
    """Largest difference of a calibrated probability between the export and `net`, in [0, 1].

    Over all actions and classes, on the first images of `val`, with the export of which
    `calibration` was made. A number on the edge between two bytes may be rounded either way, so
    `net` answers from the bytes that the export sends; those that differ from `net`'s own by more
    than one level count by as much.
    """
    n = min(CHECKED, len(val))
    x = to_batch(val.images, torch.arange(n))
    sent = {split: torch.from_numpy(p) for split, p in calibration.payloads.items()}
    worst = 0.0
    for split, payload in sent.items():
        levels = net.latent_levels(net.features(x, 1, split), split)
        off = float((levels.round() - payload).abs().max())
        if off > 1:
            worst = max(worst, off / LATENT_LEVELS)
    for a in net.topology.actions:
        t = calibration.temperatures[a.index]
        local = a.is_local or a.is_full_offload
        logits = net.act(x, a) if local else net.act_on(sent[a.split], a)
        expected = softmax(logits.numpy(), t)
        found = softmax(calibration.logits[:n, a.index], t)
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst
