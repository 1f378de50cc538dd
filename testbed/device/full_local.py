"""How long full local processing takes on this machine."""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from cnn.runtime import SplitRuntime
from cnn.topology import N_EXITS

OTHER_SPEED: Final = 1.5
"""Factor between two speeds from which they are those of different devices."""


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


def speed_note(measured_ms: float | None, told_ms: float | None) -> str | None:
    """What to say of a device whose speed is not that of its policy's; None if it nearly is.

    Args:
        measured_ms: full local processing here; None if it was not measured.
        told_ms: the same on the device that the policy was trained for; None if it is not known.
    """
    if measured_ms is None or told_ms is None:
        return None
    factor = told_ms / measured_ms
    if 1 / OTHER_SPEED < factor < OTHER_SPEED:
        return None
    how = f"{factor:.3g} times faster" if factor > 1 else f"{1 / factor:.3g} times slower"
    return (
        f"full local processing takes {measured_ms:.3g} ms here, {how} than the {told_ms:.6g} ms "
        "that the policy was trained for and is told: it decides as that device should"
    )
