"""Lines for standard error that nobody may read: what waits is bounded, what is too much is lost.

A write to a pipe blocks once the reader is 64 KiB behind (pipe(7)), and with it whoever logs. So
one thread writes, and all others only leave their lines with it. Python's own `QueueListener` does
not do: its `stop` waits for the reader without end.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

MOST_BYTES: Final = 1 << 20
"""Of the lines that wait."""


class LineSink:
    """Takes lines without ever blocking; a thread writes them to a descriptor.

    A line is dropped and counted while too many wait, and if it cannot be written (nobody has
    the pipe open any more, no room on the disk). How many were dropped is said in a line of its
    own, where they would have stood, once lines can be written again.

    Args:
        descriptor: where to; it stays open.
        notice: the line that says how many were dropped, with its end.
        most_bytes: of lines that wait.
    """

    def __init__(
        self, descriptor: int, notice: Callable[[int], bytes], most_bytes: int = MOST_BYTES
    ) -> None:
        self.dropped = 0
        self._descriptor, self._notice, self._most_bytes = descriptor, notice, most_bytes
        self._lines: deque[tuple[bytes, int]] = deque()
        """Lines, each with the number of dropped ones that it tells of."""
        self._bytes = 0
        self._untold = 0
        """Lines that were dropped and of which no line tells yet."""
        self._failing = self._torn = self._closed = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Leave a line, which ends with a line feed, to be written."""
        with self._change:
            if self._closed or self._bytes + len(line) > self._most_bytes:
                self.dropped += 1
                self._untold += 1
                return
            if self._untold:
                self._append(self._notice(self._untold), self._untold)
                self._untold = 0
            self._append(line, 0)
            self._change.notify()

    def close(self, timeout_s: float) -> bool:
        """Take no more lines; whether all that were taken were written within `timeout_s`."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _append(self, line: bytes, tells_of: int) -> None:
        self._lines.append((line, tells_of))
        self._bytes += len(line)

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            line, tells_of = taken
            written = self._write(line)
            with self._change:
                self._failing = not written
                if not written:
                    self._untold += tells_of or 1
                    self.dropped += not tells_of

    def _take(self) -> tuple[bytes, int] | None:
        """The next line and how many dropped ones it tells of; None at the end."""
        with self._change:
            while True:
                if self._lines:
                    taken = self._lines.popleft()
                    self._bytes -= len(taken[0])
                    return taken
                if self._untold and not self._failing:
                    untold, self._untold = self._untold, 0
                    return self._notice(untold), untold
                if self._closed:
                    return None
                self._change.wait()

    def _write(self, line: bytes) -> bool:
        """Write a line, however long that takes; False if it cannot be written."""
        left = b"\n" + line if self._torn else line  # half a line stands there
        whole = len(left)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # another process has made it non-blocking
                select.select([], [self._descriptor], [], 1.0)
            except OSError:
                self._torn |= len(left) < whole
                return False
        self._torn = False
        return True


class CapturedStderr:
    """Descriptor 2 as a pipe of our own; a thread hands on each line that anybody writes to it.

    Libraries in C++ write there past every Python logger, and so does whatever Python prints.

    Attributes:
        real: a descriptor of what standard error was; the caller closes it.
    """

    def __init__(self) -> None:
        self.real = os.dup(2)
        self._thread: threading.Thread | None = None

    def take(self, on_line: Callable[[bytes], object], line_bytes: int) -> None:
        """From now on call `on_line` with each line, its end included; longer ones are cut."""

        def read(descriptor: int) -> None:
            with os.fdopen(descriptor, "rb") as lines:
                while line := lines.readline(line_bytes):
                    on_line(line)

        read_end, write_end = os.pipe()
        os.dup2(write_end, 2)
        os.close(write_end)
        self._thread = threading.Thread(target=read, args=(read_end,), name="stderr", daemon=True)
        self._thread.start()

    def give_back(self, timeout_s: float) -> None:
        """Give descriptor 2 back, once what was written to it has been handed on."""
        os.dup2(self.real, 2)  # ends the pipe, unless a child process holds it, too
        if self._thread is not None:
            self._thread.join(timeout_s)


def silence() -> None:
    """Let what is still said on standard error go nowhere: a process must be able to end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
