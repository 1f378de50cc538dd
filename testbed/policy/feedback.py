"""What a device knows after a frame, for policies that learn while they drive.

A policy that has a method ``learn`` is a `Learner`: the device and the simulator tell it,
after every frame and before the next decision, what its last decision led to. It hears
nothing that a device could not measure itself: no label, no true rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cnn.topology import action_from_index
from testbed.records.measurement import Measurement

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Feedback:
    """One frame of B drives; every array is (B,).

    Attributes:
        action: int64, canonical number decided.
        exchange_ms: float64, from sending until the answer, or until it was given up; NaN
            if nothing was sent.
        delay_ms: float64, total processing delay.
        energy_mj: float64; NaN without a meter.
        confidence: float64, calibrated, of the answer; NaN if the frame was skipped.
    """

    action: NDArray[np.int64]
    exchange_ms: Floats
    delay_ms: Floats
    energy_mj: Floats
    confidence: Floats

    @classmethod
    def of(cls, row: Measurement) -> Self:
        """The feedback of one measured frame, B = 1."""
        compute_ms = row.head_ms + (row.encode_ms or 0.0) + (row.fallback_ms or 0.0)
        sent = row.status != "skipped" and not action_from_index(row.action).is_local
        exchange = row.delay_ms - row.queue_ms - compute_ms if sent else None
        energy, confidence = row.energy_mj, row.confidence
        figures = [
            np.array([np.nan if v is None else v], np.float64)
            for v in (exchange, row.delay_ms, energy, confidence)
        ]
        return cls(np.array([row.action], np.int64), *figures)


@runtime_checkable
class Learner(Protocol):
    """A policy (`testbed.policy.policies.Policy`) that learns from its own frames."""

    def learn(self, feedback: Feedback) -> None:
        """Take in what the last decision of each row led to; row b is drive b."""
