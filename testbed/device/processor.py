"""The device's processor, as fast as this machine or made slower.

A slower device is emulated by pauses: a section that computes for t ms is followed by a
pause of (slowdown - 1) t. Two things would make that untrue, and are taken care of:

* A section that runs cold, after the process has slept, takes up to three times its warm
  time here, since caches and clock frequency have to recover. A slow processor computes for
  milliseconds where this one computes for microseconds; it waits for memory about as long
  as this one does, not `slowdown` times as long. So the emulated device keeps warm: the
  last milliseconds of every pause and wait repeat sections that it has just run, and throw
  their results away.
* With one thread, t is processor time: what other processes on the machine take is not
  multiplied.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from testbed.clock import wait_until

T = TypeVar("T")

WARM_S: Final = 0.006
"""How long sections are repeated before a wait ends: a few times all sections of a frame."""


def keep_collector_short() -> None:
    """Take all that exists out of Python's garbage collection, so that it never delays a frame.

    A full collection of a loaded process takes milliseconds, and a slower device takes
    `slowdown` times as long. To be called once, when everything is loaded.
    """
    gc.collect()
    gc.freeze()


class Processor:
    """Times what the device computes and stretches it.

    Between `begin` and `pay` everything that this thread computes counts: sections by
    themselves, and the rest, for which `pay` waits in one go.

    Args:
        slowdown: 1 for the machine as it is; pauses make up for larger figures.
        one_thread: True if sections compute on the calling thread alone.
    """

    def __init__(self, slowdown: float, one_thread: bool) -> None:
        self.slowdown = slowdown
        self._one_thread = one_thread
        self._repeat: dict[str, Callable[[], object]] = {}
        self._takes_s: dict[str, float] = {}
        self._began_s = self._apart_s = self._owed_s = 0.0

    def keep_warm_with(self, name: str, section: Callable[[], object]) -> None:
        """Repeat a section without side effects besides those that ran last."""
        self._repeat[name] = section
        self._takes_s[name] = WARM_S / 2  # not known yet: not in a short pause

    def busy_s(self) -> float:
        """Clock of what is computed: processor time, or wall time with more threads."""
        return time.thread_time() if self._one_thread else time.monotonic()

    def begin(self) -> None:
        """What follows counts."""
        self._began_s, self._apart_s = self.busy_s(), 0.0

    def end(self) -> None:
        """What follows does not count; what came since `begin` is owed."""
        self._owed_s += max(0.0, self.busy_s() - self._began_s - self._apart_s)

    def pay(self) -> None:
        """Wait for what the rest of the frame takes longer on the slower device."""
        owed_s, self._owed_s = self._owed_s, 0.0
        if self.slowdown > 1:
            self.wait_until(time.monotonic() + owed_s * (self.slowdown - 1))

    def apart(self, busy_s: float) -> None:
        """Of what is being counted, `busy_s` seconds must not be stretched."""
        self._apart_s += busy_s

    def run(
        self, section: Callable[[], T], name: str = "", *, after_wait: bool = False
    ) -> tuple[T, float]:
        """Run a section; its result and its time in milliseconds, stretched.

        Args:
            section: what to compute.
            name: if given, the section has no side effects and may be repeated to keep
                warm, until another of this name takes its place.
            after_wait: the device has slept for an answer, where nothing keeps it warm: a
                slower one runs the section once beforehand, and only the second run counts.
        """
        if after_wait and self.slowdown > 1:
            began_busy_s = self.busy_s()
            section()
            self._apart_s += self.busy_s() - began_busy_s
        began_s, began_busy_s = time.monotonic(), self.busy_s()
        result = section()
        if self.slowdown > 1:
            busy_s = self.busy_s() - began_busy_s
            if name:
                self._repeat[name], self._takes_s[name] = section, busy_s
            self.wait_until(began_s + (time.monotonic() - began_s) + busy_s * (self.slowdown - 1))
        self._apart_s += self.busy_s() - began_busy_s
        return result, (time.monotonic() - began_s) * 1e3

    def wait_until(self, when_s: float, stop: threading.Event | None = None) -> None:
        """Return at `when_s` (`time.monotonic`) or soon after `stop` is set."""
        if self.slowdown > 1 and self._repeat:
            wait_until(when_s - WARM_S, stop)
            self._keep_warm(when_s, stop)
        wait_until(when_s, stop)

    def _keep_warm(self, until_s: float, stop: threading.Event | None) -> None:
        fitted = True
        while fitted:
            fitted = False
            for name, section in self._repeat.items():
                began_s = time.monotonic()
                if stop is not None and stop.is_set():
                    return
                if began_s + self._takes_s[name] < until_s:  # a pause must not become longer
                    section()
                    self._takes_s[name] = time.monotonic() - began_s
                    fitted = True
