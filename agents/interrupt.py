"""Ctrl-C and SIGTERM during a training: the work is kept, and the run can be resumed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from testbed.common.signals import StopFlag

_SAID: Final = (
    b"\nstopping: this update is finished and kept; Ctrl-C again ends at once and loses it\n"
)


class TrainingInterrupted(KeyboardInterrupt):
    """A training was told to stop, and everything up to `step` is kept in `out`.

    Args:
        out: folder of the run, with the checkpoint to resume from.
        step: decisions done.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.out, self.step = out, step
        super().__init__(f"interrupted at step {step}; everything up to it is kept in {out}")


@contextmanager
def stop_when_told() -> Iterator[StopFlag]:
    """Within the block the first SIGINT or SIGTERM sets the flag, the second interrupts.

    Outside the main thread, where Python delivers no signals, the flag is never set.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()
        os.write(2, _SAID)

    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
