"""Where a device stands within a frame: the features in hand and the exits looked at."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cnn.runtime import Features, SplitRuntime


@dataclass(slots=True)
class Stand:
    """A frame of which some blocks have run; nothing runs twice.

    Attributes:
        runtime: the network.
        features: after block `position`.
        position: block after which the device stands, 0..5.
        exits: (exit, prediction, calibrated confidence) of those looked at, in order.
    """

    runtime: SplitRuntime
    features: Features
    position: int = 0
    exits: list[tuple[int, int, float]] = field(default_factory=list)

    @classmethod
    def before(cls, runtime: SplitRuntime, image: NDArray[np.uint8]) -> Stand:
        """Before block 1 of a frame, uint8 (H, W, 3)."""
        return cls(runtime, runtime.start(image))

    def run_to(self, block: int) -> Features:
        """Run on to `block`, at least `position`; the features there."""
        self.features = self.runtime.forward(self.features, self.position + 1, block)
        self.position = block
        return self.features

    def look(self, exit: int) -> None:
        """Run on to `exit` and evaluate it."""
        features = self.run_to(exit)
        self.exits.append((exit, *self.runtime.answer(features, exit, exit)))
