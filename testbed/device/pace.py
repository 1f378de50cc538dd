"""The pace of an emulated device: how long each part of a frame takes on it.

The times are those of a cost model, so the device spends on computing exactly what the
simulator says. Only computing is emulated: link, server and protocol stay real.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from cnn.topology import N_EXITS, Action, action_index
from testbed.costs.cost_model import CostModel, jitter_pool, resumed_ms, standing_ms

SHIPPED: Final = "shipped"
"""Name of the cost model that the package carries."""
_MAIN: Final = action_index(N_EXITS, N_EXITS)
_LEAST_TOLERANCE_MS: Final = 0.2
_POOL: Final = 1 << 12
_STREAM: Final = 2
"""Of the device's seed: its other streams have other numbers."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long an emulated device takes, milliseconds.

    Attributes:
        name: of the cost model.
        device_ms: 20 figures: from the start of a frame to its local answer, or until its
            payload is handed to the radio.
        fallback_ms: 20 figures: finishing locally after an exchange without an answer.
        standing_ms: 6 figures: from the start of a frame to the end of block p, no exit.
        resumed_ms: the same for a frame that goes on after an exchange.
        jitter: spread of the logarithm of a frame's factor on all of these.
    """

    name: str
    device_ms: tuple[float, ...]
    fallback_ms: tuple[float, ...]
    standing_ms: tuple[float, ...]
    resumed_ms: tuple[float, ...]
    jitter: float

    @classmethod
    def of(cls, cost: CostModel, full_local_ms: float | None = None) -> Self:
        """The pace of a cost model's device.

        Args:
            cost: the model.
            full_local_ms: time of full local processing to which all times are scaled;
                None takes the model's own.
        """
        if full_local_ms is not None:
            cost = replace(cost, slowdown=full_local_ms / cost.device_ms[_MAIN])
        return cls(
            name=cost.name,
            device_ms=tuple(cost.slowdown * ms for ms in cost.device_ms),
            fallback_ms=tuple(cost.slowdown * ms for ms in cost.fallback_ms),
            standing_ms=tuple(standing_ms(cost).tolist()),
            resumed_ms=tuple(resumed_ms(cost).tolist()),
            jitter=cost.jitter,
        )

    @classmethod
    def load(cls, profile: str, full_local_ms: float | None = None) -> Self:
        """The pace of a device profile: a cost model's file, or ``shipped``.

        Raises:
            DataError: if the file is no cost model.
        """
        if profile != SHIPPED:
            return cls.of(CostModel.load(Path(profile)), full_local_ms)
        with resources.as_file(resources.files("testbed") / "assets" / "cost_model.json") as path:
            return cls.of(CostModel.load(path), full_local_ms)

    @property
    def full_local_ms(self) -> float:
        """Full local processing without queueing."""
        return self.device_ms[_MAIN]

    @property
    def tolerance_ms(self) -> float:
        """A section that ends later than this after its time is late: 1 % of full local
        processing, but not less than an idle machine needs to wake the device."""
        return max(_LEAST_TOLERANCE_MS, 0.01 * self.full_local_ms)

    def parts_ms(
        self, action: Action, position: int = 0, resumed: bool = False
    ) -> tuple[float, float]:
        """From block `position` on: to the end of the blocks, and from there to the hand-over.

        Args:
            action: a local one's blocks end with its exit, and nothing follows.
            position: blocks that have run, 0..5.
            resumed: after an exchange on this frame.
        """
        standing = self.resumed_ms if resumed else self.standing_ms
        whole = max(0.0, self.device_ms[action.index] - standing[position])
        if action.is_local:
            return whole, 0.0
        blocks = min(whole, max(0.0, standing[action.split] - standing[position]))
        return blocks, whole - blocks

    def factors(self, seed: int) -> NDArray[np.float64]:
        """Factors on the times of successive frames, float64 (4096,), to be taken in a ring."""
        return jitter_pool(np.random.default_rng([seed, _STREAM]), self.jitter, _POOL)

    def describe(self) -> str:
        """For records and messages: ``paced as NAME, full local 80 ms``."""
        return f"paced as {self.name}, full local {self.full_local_ms:.4g} ms"


@dataclass(frozen=True, slots=True)
class PaceKept:
    """Whether this machine kept an emulated device's pace.

    Attributes:
        sections: stretches of computing that had a pace.
        late: those that ended too late.
    """

    sections: int
    late: int

    MAX_LATE_SHARE: ClassVar[float] = 0.02

    @property
    def late_share(self) -> float:
        """Share of the sections that were late; 0 without any."""
        return self.late / self.sections if self.sections else 0.0

    @property
    def valid(self) -> bool:
        """True if delay and energy of the run are those of the emulated device."""
        return self.late_share <= self.MAX_LATE_SHARE

    def __add__(self, other: PaceKept) -> PaceKept:
        return PaceKept(self.sections + other.sections, self.late + other.late)

    def to_json(self) -> dict[str, int | float | bool]:
        """As commands print it."""
        return {
            "sections": self.sections,
            "late_share": self.late_share,
            "valid": self.valid,
        }

    @classmethod
    def of_source(cls, source: Mapping[str, Any]) -> Self | None:
        """What a record's header says; None if its device was not paced."""
        if "pace_sections" not in source:
            return None
        return cls(int(source["pace_sections"]), int(source["pace_late"]))

    def to_source(self) -> dict[str, int]:
        """For a record's header."""
        return {"pace_sections": self.sections, "pace_late": self.late}

    def describe(self) -> str:
        """One sentence for people."""
        if self.valid:
            return f"the pace was kept ({self.late} of {self.sections} sections late)"
        return (
            f"this machine could not keep the pace in {self.late} of {self.sections} sections: "
            "delay and energy are not valid on this machine now"
        )
