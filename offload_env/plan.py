"""What an episode meets, before any decision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offload_env.hashing import Keys

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one episode meets, before any decision.

    Attributes:
        key: the episode's 64-bit key; tracks are drawn from it.
        trace: number of the trace in the pool.
        offset_ms: where in the trace the drive starts.
        server_cell: where in the server's work it starts.
        jitter_at: where in the jitter pools it starts.
    """

    key: int
    trace: int
    offset_ms: float
    server_cell: int
    jitter_at: int


@dataclass(frozen=True, slots=True)
class Plans:
    """`Plan` for many episodes: arrays of one element each."""

    key: Keys
    trace: NDArray[np.int64]
    offset_ms: Floats
    server_cell: NDArray[np.int64]
    jitter_at: NDArray[np.int64]
