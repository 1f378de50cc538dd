"""The device's processor: this machine, or one that keeps the pace of a slower device.

The pace of an emulated device is the time of each part of a frame on it. The times are those of
a cost model, so the device spends exactly the simulator's time on computing. Only computing is
emulated: link, server and protocol stay real.

A paced section is computed for real; then the device waits until the time in its profile has
passed. Times add up from the start of a frame (or the end of an exchange), so the device's work
between two sections is part of them. A section that ends too late, because it took longer to
compute here or because this machine woke the device too late, is counted.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from cnn.runtime import SplitRuntime
from cnn.topology import Action, Topology
from testbed.common.clock import wait_until
from testbed.meters.cost_model import (
    CostModel,
    jitter_pool,
    load_profile,
    resumed_ms,
    standing_ms,
)

T = TypeVar("T")

_LEAST_TOLERANCE_MS: Final = 0.2
_POOL: Final = 1 << 12
_STREAM: Final = 2
"""Number of this random stream of the device's seed; the other streams have other numbers."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Times of an emulated device, milliseconds.

    Attributes:
        name: of the cost model.
        device_ms: by action: from the start of a frame to its local answer, or until its
            payload is handed to the radio.
        fallback_ms: by action: finishing locally after an exchange without an answer.
        standing_ms: n_blocks + 1 figures: from the start of a frame to the end of block p, no exit.
        resumed_ms: the same for a frame that resumes after an exchange.
        jitter: spread of the logarithm of a frame's factor on all of these.
        topology: of the network.
    """

    name: str
    device_ms: tuple[float, ...]
    fallback_ms: tuple[float, ...]
    standing_ms: tuple[float, ...]
    resumed_ms: tuple[float, ...]
    jitter: float
    topology: Topology

    @classmethod
    def of(cls, cost: CostModel, full_local_ms: float | None = None) -> Self:
        """The pace of a cost model's device.

        Args:
            cost: the model.
            full_local_ms: time of full local processing to which all times are scaled;
                None takes the model's own.
        """
        if full_local_ms is not None:
            cost = replace(cost, slowdown=full_local_ms / cost.device_ms[cost.topology.main])
        return cls(
            name=cost.name,
            device_ms=tuple(cost.slowdown * ms for ms in cost.device_ms),
            fallback_ms=tuple(cost.slowdown * ms for ms in cost.fallback_ms),
            standing_ms=tuple(standing_ms(cost).tolist()),
            resumed_ms=tuple(resumed_ms(cost).tolist()),
            jitter=cost.jitter,
            topology=cost.topology,
        )

    @classmethod
    def load(cls, profile: str, full_local_ms: float | None = None) -> Self:
        """The pace of a device profile: its file, or ``shipped``.

        Raises:
            DataError: if the file is no cost model.
        """
        return cls.of(load_profile(profile), full_local_ms)

    @property
    def full_local_ms(self) -> float:
        """Full local processing without queueing."""
        return self.device_ms[self.topology.main]

    @property
    def tolerance_ms(self) -> float:
        """A section that ends later than this after its time is late: 1 % of full local
        processing, but at least the time that an idle machine needs to wake the device."""
        return max(_LEAST_TOLERANCE_MS, 0.01 * self.full_local_ms)

    def parts_ms(
        self, action: Action, position: int = 0, resumed: bool = False
    ) -> tuple[float, float]:
        """From block `position` on: to the end of the blocks, and from there to the hand-over.

        Args:
            action: a local one's blocks end with its exit, and nothing follows.
            position: blocks that have run.
            resumed: after an exchange on this frame.
        """
        standing = self.resumed_ms if resumed else self.standing_ms
        whole = max(0.0, self.device_ms[action.index] - standing[position])
        if action.is_local:
            return whole, 0.0
        blocks = min(whole, max(0.0, standing[action.split] - standing[position]))
        return blocks, whole - blocks

    def factors(self, seed: int) -> NDArray[np.float64]:
        """Factors on the times of successive frames, float64 (4096,), used cyclically."""
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
        """The counts in a record's header; None if its device was not paced."""
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


def keep_collector_short() -> None:
    """Exclude all existing objects from Python's garbage collection, which would delay frames.

    A full collection of a loaded process takes milliseconds. Call this once, when everything is
    loaded.
    """
    gc.collect()
    gc.freeze()


class Processor:
    """Runs the device's computations, and gives the time on the device.

    Args:
        pace: of the emulated device; None: this machine without emulation.
        seed: of the spread of its times.
    """

    def __init__(self, pace: Pace | None, seed: int) -> None:
        self.pace = pace
        self._factors: list[float] = [] if pace is None else pace.factors(seed).tolist()
        self._factor = 1.0
        self._due_s = 0.0
        self._tolerance_s = 0.0 if pace is None else pace.tolerance_ms / 1e3
        self._sections = self._late = 0

    @property
    def kept(self) -> PaceKept | None:
        """How well the pace was kept so far; None without one."""
        return None if self.pace is None else PaceKept(self._sections, self._late)

    def start(self, number: int, at_s: float) -> None:
        """Frame `number` starts at `at_s` (`time.monotonic`)."""
        self._due_s = at_s
        if self._factors:
            self._factor = self._factors[number % len(self._factors)]

    def parts_ms(
        self, action: Action, position: int = 0, resumed: bool = False
    ) -> tuple[float, float]:
        """`Pace.parts_ms` of the emulated device; 0 and 0 without emulation."""
        pace = self.pace
        return (0.0, 0.0) if pace is None else pace.parts_ms(action, position, resumed)

    def resume(self, at_s: float) -> None:
        """An exchange has ended at `at_s`: the times of what follows count from there."""
        self._due_s = at_s

    def run(self, section: Callable[[], T], ms: float = 0.0) -> tuple[T, float]:
        """Run a section; returns its result and its time in milliseconds.

        Args:
            section: the computation.
            ms: its time on the emulated device; 0 includes it in the next section.
        """
        began_s = time.monotonic()
        result = section()
        ended_s = time.monotonic()
        if self.pace is not None and ms > 0:
            self.spend(ms)
            ended_s = max(began_s, self._due_s)
        return result, (ended_s - began_s) * 1e3

    def spend(self, ms: float) -> None:
        """Let the work since the last section take `ms` on the emulated device: wait until then."""
        if self.pace is None or ms <= 0:
            return
        self._due_s += ms * self._factor / 1e3
        wait_until(self._due_s)
        ended_s = time.monotonic()
        self._sections += 1
        if ended_s - self._due_s > self._tolerance_s:
            self._late += 1
            self._due_s = ended_s

    def now_s(self) -> float:
        """`time.monotonic` on the device: of an emulated one, when its last section ended."""
        return time.monotonic() if self.pace is None else self._due_s


OTHER_SPEED: Final = 1.5
"""Two speeds that differ by at least this factor are those of different devices."""


def full_local_ms(runtime: SplitRuntime, runs: int = 10) -> float:
    """Median time of full local processing on this machine, milliseconds (measured now)."""
    size, main = runtime.bundle.config.input_size, runtime.topology.n_blocks
    frame = np.zeros((size, size, 3), np.uint8)
    times = []
    for _ in range(runs):
        began_s = time.monotonic()
        runtime.local(frame, main)
        times.append((time.monotonic() - began_s) * 1e3)
    return float(np.median(times))


def speed_note(measured_ms: float | None, trained_ms: float | None) -> str | None:
    """A note if the device's speed differs from its policy's; None if they are close.

    Args:
        measured_ms: full local processing here; None if it was not measured.
        trained_ms: the same on the device that the policy was trained for; None if it is not known.
    """
    if measured_ms is None or trained_ms is None:
        return None
    factor = trained_ms / measured_ms
    if 1 / OTHER_SPEED < factor < OTHER_SPEED:
        return None
    how = f"{factor:.3g} times faster" if factor > 1 else f"{1 / factor:.3g} times slower"
    return (
        f"full local processing takes {measured_ms:.3g} ms here, {how} than the {trained_ms:.6g} "
        "ms that the policy was trained for and is told: it decides as that device should"
    )
