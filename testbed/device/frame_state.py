"""Where a device stands within a frame: the features in hand and the exits looked at."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cnn.runtime import Features, SplitRuntime
from testbed.policy.decision_points import POINT


@dataclass(frozen=True, slots=True)
class View:
    """What a look at an exit shows.

    Attributes:
        exit: 1..5.
        prediction: class.
        confidence: calibrated.
    """

    exit: int
    prediction: int
    confidence: float


@dataclass(slots=True)
class Stand:
    """A frame of which some blocks have run; nothing runs twice.

    Attributes:
        runtime: the network.
        features: after block `position`.
        position: block after which the device stands, 0..5.
        exits: (exit, prediction, calibrated confidence) of those looked at, in order.
        timed_out: waiting for an answer on this frame.
    """

    runtime: SplitRuntime
    features: Features
    position: int = 0
    exits: list[tuple[int, int, float]] = field(default_factory=list)
    timed_out: bool = False

    @classmethod
    def before(cls, runtime: SplitRuntime, image: NDArray[np.uint8]) -> Stand:
        """Before block 1 of a frame, uint8 (H, W, 3)."""
        return cls(runtime, runtime.start(image))

    @property
    def number(self) -> int:
        """The stand's number, 0..19 (`testbed.policy.decision_points`), while the frame is open."""
        evaluated = self.exits[-1][0] if self.exits else 0
        return int(POINT[int(self.timed_out), self.position, evaluated])

    def run_to(self, block: int) -> Features:
        """Run on to `block`, at least `position`; the features there."""
        self.features = self.runtime.forward(self.features, self.position + 1, block)
        self.position = block
        return self.features

    def look(self, exit: int) -> View:
        """Run on to `exit` and evaluate it."""
        self.run_to(exit)
        view = View(exit, *self.runtime.answer(self.features, exit, exit))
        self.exits.append((view.exit, view.prediction, view.confidence))
        return view
