"""Episodes: one 64-bit key decides an episode's frames, link, server load and jitter.

The key is drawn from a seeded `numpy.random.Generator`; draw n of a key is a hash of both, so
a single environment and one lane of a batch see the same drive without holding a generator each.

The hash is splitmix64 (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014; constants of S. Vigna's public-domain reference).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Floats = NDArray[np.float64]

_MASK: Final = 2**64 - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
_MIX1: Final = 0xBF58476D1CE4E5B9
_MIX2: Final = 0x94D049BB133111EB


def episode_keys(seed: int, episodes: int) -> Keys:
    """Keys of `episodes` drives, uint64 (B,), all from one seed; equal seeds give equal keys."""
    return np.random.default_rng(seed).integers(0, 2**64, episodes, dtype=np.uint64)


def draw(key: int, n: int) -> int:
    """Draw number `n` (from 0) of `key`: an integer in [0, 2^64)."""
    z = (key + (n + 1) * _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * _MIX1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX2) & _MASK
    return z ^ (z >> 31)


def draw_batch(keys: Keys, n: int | Keys) -> Keys:
    """`draw` for uint64 arrays of keys and draw numbers."""
    step = np.asarray(n, np.uint64) + np.uint64(1)
    z = keys + step * np.uint64(_GOLDEN) if step.ndim else keys + _offset(int(step))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX2)
    return z ^ (z >> np.uint64(31))


def _offset(step: int) -> np.uint64:
    return np.uint64((step * _GOLDEN) & _MASK)


def unit(number: int) -> float:
    """A draw as a float in [0, 1) with 53 random bits."""
    return (number >> 11) * 2.0**-53


def unit_batch(numbers: Keys) -> Floats:
    """`unit` for arrays."""
    return (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Plan:
    """The random parts of one episode, fixed before any decision.

    Attributes:
        key: the episode's 64-bit key; tracks are drawn from it.
        trace: number of the trace in the pool.
        offset_ms: where in the trace the episode starts.
        server_cell: cell of the server's work series at which it starts.
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
