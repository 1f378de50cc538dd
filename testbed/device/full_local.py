"""How long full local processing takes on this machine."""

from __future__ import annotations

import time

import numpy as np

from cnn.action import N_EXITS
from cnn.runtime import SplitRuntime


def full_local_ms(runtime: SplitRuntime, runs: int = 10) -> float:
    """Median time of full local processing on this machine, milliseconds (measured now)."""
    size = runtime.bundle.config.input_size
    frame = np.zeros((size, size, 3), np.uint8)
    times = []
    for _ in range(runs):
        began_s = time.monotonic()
        runtime.local(frame, N_EXITS)
        times.append((time.monotonic() - began_s) * 1e3)
    return float(np.median(times))
