"""Stopping on a signal, without ever missing it."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Final

_NAP_S: Final = 0.1
"""Longest time between a signal and its effect."""


class StopFlag:
    """A flag that a signal handler sets and the main thread waits for.

    `threading.Event` is not enough: a signal that arrives after the interpreter has checked
    for one and before the main thread blocks in ``wait()`` is not acted on until something
    else wakes that thread (https://docs.python.org/3/library/signal.html, "Execution of
    Python signal handlers"), and a handler that runs while the main thread holds the
    event's own lock blocks for ever. A plain attribute checked ten times a second has
    neither fault.
    """

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        """Ask to stop."""
        self._set = True

    def is_set(self) -> bool:
        """True once asked to stop."""
        return self._set

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until asked to stop or for `timeout_s` seconds; True if asked to stop."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._set:
            left_s = _NAP_S if until_s is None else until_s - time.monotonic()
            if left_s <= 0:
                break
            time.sleep(min(left_s, _NAP_S))
        return self._set


def stop_on_signals(flag: StopFlag | None = None) -> StopFlag:
    """A flag that SIGTERM and SIGINT set; from the second signal on they interrupt.

    Must be called by the main thread.

    Args:
        flag: the flag to set; None makes one.
    """
    flag = flag or StopFlag()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return flag
