"""The device's processor: this machine as it is, or one that keeps the pace of a slower device.

A paced section is computed for real; then the device waits until the time that its profile
states has passed. Times add up from the start of a frame (or the end of an exchange), so what
the device does between two sections is part of them. A section that ends too late, because
computing it took longer here or because this machine woke the device too late, is counted.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TypeVar

from cnn.topology import Action
from testbed.common.clock import wait_until
from testbed.device.pace import Pace, PaceKept

T = TypeVar("T")


def keep_collector_short() -> None:
    """Take all that exists out of Python's garbage collection, so that it never delays a frame.

    A full collection of a loaded process takes milliseconds. To be called once, when
    everything is loaded.
    """
    gc.collect()
    gc.freeze()


class Processor:
    """Runs what the device computes, and tells the time on the device.

    Args:
        pace: of the emulated device; None is this machine as it is.
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
        """How the pace was kept so far; None without one."""
        return None if self.pace is None else PaceKept(self._sections, self._late)

    def start(self, number: int, at_s: float) -> None:
        """Frame `number` starts at `at_s` (`time.monotonic`)."""
        self._due_s = at_s
        if self._factors:
            self._factor = self._factors[number % len(self._factors)]

    def parts_ms(
        self, action: Action, position: int = 0, resumed: bool = False
    ) -> tuple[float, float]:
        """`Pace.parts_ms` of the emulated device; 0 and 0 for the machine as it is."""
        pace = self.pace
        return (0.0, 0.0) if pace is None else pace.parts_ms(action, position, resumed)

    def resume(self, at_s: float) -> None:
        """An exchange has ended at `at_s`: what follows takes its time from there."""
        self._due_s = at_s

    def run(self, section: Callable[[], T], ms: float = 0.0) -> tuple[T, float]:
        """Run a section; its result and its time in milliseconds.

        Args:
            section: what to compute.
            ms: how long it takes on the emulated device; 0 leaves it to the next section.
        """
        began_s = time.monotonic()
        result = section()
        ended_s = time.monotonic()
        if self.pace is not None and ms > 0:
            self.spend(ms)
            ended_s = max(began_s, self._due_s)
        return result, (ended_s - began_s) * 1e3

    def spend(self, ms: float) -> None:
        """What ran since the last section takes `ms` on the emulated device: wait until then."""
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
