"""The wait at a MEC server that other users share.

No public measurement of MEC load was found, so this is a model: other users' requests
arrive at random (Poisson) with a rate that varies slowly, each takes `service_ms`, and one server
serves them in order. The wait of our own request is the unfinished work before it (an M/D/1 queue
with modulated arrivals). Our own requests, a few a second, add nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import in_range

CELL_MS: Final = 10.0
"""Grid of the precomputed work: arrivals count from the next grid point on."""


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """Other users at the MEC server.

    Attributes:
        utilisation: share of time the server is busy with others, [0, 0.95].
        service_ms: time one of their requests takes.
        swing: spread of the logit of the utilisation over time; 0 is a steady load.
        memory_s: time constant of its wandering.
    """

    utilisation: float = 0.0
    service_ms: float = 5.0
    swing: float = 0.0
    memory_s: float = 5.0

    def __post_init__(self) -> None:
        hint = "correct the scenario's [server]"
        in_range("utilisation", self.utilisation, 0, 0.95, hint)
        in_range("service_ms", self.service_ms, 0.1, 100_000, hint)
        in_range("swing", self.swing, 0, 100, hint)
        in_range("memory_s", self.memory_s, 0.001, 1e6, hint)

    def work_ms(self, rng: np.random.Generator, cells: int) -> NDArray[np.float64]:
        """Unfinished work at the grid points 0, `CELL_MS`, ...: float64 (cells,).

        The wait of a request at time t in cell k is ``max(work[k] - (t - k * CELL_MS), 0)``:
        it never falls faster than time passes, so a later request is never served earlier.
        """
        if self.utilisation == 0:
            return np.zeros(cells)
        keep = math.exp(-CELL_MS / 1e3 / self.memory_s)
        noise = rng.standard_normal(cells) * math.sqrt(1 - keep * keep) * self.swing
        logit = np.empty(cells)
        level = rng.standard_normal() * self.swing
        for k in range(cells):
            level = keep * level + noise[k]
            logit[k] = level
        centre = math.log(self.utilisation / (1 - self.utilisation))
        # Above 1 the queue would only grow; 0.98 lets a rush hour build and drain.
        busy = np.minimum(1 / (1 + np.exp(-(centre + logit))), 0.98)
        arrivals = rng.poisson(busy * CELL_MS / self.service_ms)
        cell = np.repeat(np.arange(cells), arrivals)
        at = np.sort((cell + rng.random(len(cell))) * CELL_MS)
        grid = np.arange(cells) * CELL_MS
        # X(t) = work arrived by t less t; unfinished work is X less its running minimum,
        # which X attains just before an arrival (or now).
        before = np.minimum.accumulate(
            np.concatenate([[0.0], np.arange(len(at)) * self.service_ms - at])
        )
        n = np.searchsorted(at, grid, "left")
        now = n * self.service_ms - grid
        work: NDArray[np.float64] = now - np.minimum(before[n], now)
        return work
