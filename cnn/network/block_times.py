"""How long a bundle's parts take on this machine, for the card of an adapted network."""

from __future__ import annotations

import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.bundle import Bundle
from cnn.runtime import SplitRuntime

_FRAMES: Final = 20
"""Frames of which the median is taken."""


def block_times(bundle: Bundle, frames: NDArray[np.uint8]) -> dict[str, float]:
    """Median time of every part in milliseconds, by its name: ``block2``, ``exit2``, ``enc2``.

    By ONNX Runtime, one frame at a time, on one thread. Decoders run on the server, so theirs are
    not measured.

    Args:
        bundle: of the network.
        frames: uint8 (N, H, W, 3), at least one.
    """
    runtime, at = SplitRuntime(bundle), bundle.topology
    runtime.warm()
    spent: dict[str, list[int]] = {}
    for frame in frames[np.arange(_FRAMES) % len(frames)]:
        x = runtime.start(frame)
        for b in range(1, at.n_blocks + 1):
            times = [time.perf_counter_ns()]
            x = runtime.forward(x, b, b)
            times.append(time.perf_counter_ns())
            if b in at.exits:
                runtime.logits(x, b)
            times.append(time.perf_counter_ns())
            if b in at.splits:
                runtime.payload(x, b)
            times.append(time.perf_counter_ns())
            for part, ns in zip(("block", "exit", "enc"), np.diff(times).tolist(), strict=True):
                spent.setdefault(f"{part}{b}", []).append(ns)
    names = {f"{part}{b}" for part, of in (("exit", at.exits), ("enc", at.splits)) for b in of}
    names |= {f"block{b}" for b in range(1, at.n_blocks + 1)}
    return {n: float(np.median(values)) / 1e6 for n, values in spent.items() if n in names}
