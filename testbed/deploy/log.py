"""Log lines of an unattended device: readable text, or one JSON object a line.

Libraries in C++ write to standard error without any Python logger (gRPC each failed handshake,
ONNX Runtime its remarks on the machine). In the JSON form their lines become records, too.

A slow reader of the log never blocks the device. A write to a pipe blocks once the reader is 64 KiB
behind (pipe(7)), and the writing thread with it. So one thread writes, and all others only hand
their lines to it. Lines that cannot be written to standard error are dropped, counted, and reported
once writing works again. (Python's `QueueListener` is not enough: its `stop` waits for the reader
without limit.)
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import math
import os
import re
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from cnn.common.console import EXIT_USER_ERROR
from cnn.common.errors import SliproadError

ROOT: Final = "testbed"
NATIVE: Final = "testbed.native"
"""Logger of the lines that others wrote to standard error."""
LINE_BYTES: Final = 8192
MOST_BYTES: Final = 1 << 20
"""Limit of the waiting lines, bytes."""
END_S: Final = 2.0
"""Time that the end of the device waits for lines that are not written yet."""
_ABSEIL: Final = re.compile(r"([IWEF])\d{4} \d\d:\d\d:")
"""Start of gRPC's lines (https://abseil.io/docs/cpp/guides/logging)."""
_LEVELS: Final = {
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
    "F": logging.CRITICAL,
}


def event(log: logging.Logger, level: int, message: str, **fields: Any) -> None:
    """Log a message with named fields, which stay separate in the JSON form."""
    log.log(level, message, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "message", ...fields}`` on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; a value without a JSON form becomes its text."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        try:
            return json.dumps(line, default=str, allow_nan=False)
        except ValueError:  # RFC 8259 has no NaN and no infinity
            return json.dumps(_finite(line), default=str)


class TextFormatter(logging.Formatter):
    """``LEVEL message key=value ...``; the journal adds the time."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line (and a traceback if there is one)."""
        fields = getattr(record, "fields", {})
        more = "".join(f" {key}={_short(value)}" for key, value in fields.items())
        text = f"{record.levelname} {record.getMessage()}{more}"
        return text + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


def dropped_lines() -> int:
    """Lines of the log that could not be written so far."""
    handlers = logging.getLogger(ROOT).handlers
    return sum(each.sink.dropped for each in handlers if isinstance(each, _SinkHandler))


def write_out() -> None:
    """Write the lines that wait, for at most some `END_S`: a process that ends at once would lose
    them. Standard error is then no longer taken over."""
    for each in logging.getLogger(ROOT).handlers:
        if isinstance(each, _SinkHandler):
            each.give_back()
            each.finish()


@contextlib.contextmanager
def logged(form: str, level: str) -> Iterator[None]:
    """Send the log of this package to standard error; in the JSON form, an error that ends the
    device is a line as well.

    Standard error is taken over: lines that others write there take the same way. At the end this
    waits until the lines are written, but at most `END_S` if nobody reads them.

    Args:
        form: ``text`` or ``json``.
        level: ``debug``, ``info``, ``warning`` or ``error``.

    Raises:
        SystemExit: in the JSON form instead of any error: code 2 of a `SliproadError`, else 1.
    """
    formatter = JsonFormatter() if form == "json" else TextFormatter()
    handler: logging.Handler
    if form == "json" or _is_standard_error(sys.stderr):
        handler = _SinkHandler(formatter, as_records=form == "json")
    else:  # replaced by the calling program
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    log = logging.getLogger(ROOT)
    log.addHandler(handler)
    log.setLevel(level.upper())
    log.propagate = False
    try:
        yield
    except Exception as error:
        if form != "json":
            raise
        ours = isinstance(error, SliproadError)
        log.critical("ended: %s", error, exc_info=None if ours else error)
        raise SystemExit(EXIT_USER_ERROR if ours else 1) from None
    finally:
        if isinstance(handler, _SinkHandler):
            handler.give_back()
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
        log.propagate = True
        if isinstance(handler, _SinkHandler):
            handler.finish()


def quiet_libraries() -> None:
    """Keep gRPC's own lines off standard error, unless the user asks for them; we report the
    important ones ourselves. Takes effect only before gRPC is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


class _SinkHandler(logging.Handler):
    """Writes to standard error alone, by a thread; also takes the lines that others write there.

    Args:
        formatter: of all lines, also of the one with the number of dropped lines.
        as_records: whether lines of others become records; otherwise they are unchanged.
    """

    def __init__(self, formatter: logging.Formatter, as_records: bool) -> None:
        super().__init__()

        def notice(lines: int) -> bytes:
            message = "%d lines of the log dropped: standard error did not take them"
            record = logging.makeLogRecord(
                {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
                | {"msg": message, "args": (lines,), "fields": {}}
            )
            return _line(formatter.format(record))

        sys.stderr.flush()
        self._stderr = CapturedStderr()
        self.sink = LineSink(self._stderr.real, notice)
        self._stderr.take(self._record if as_records else self.sink.put, LINE_BYTES)
        # A native crash cannot wait for threads: it is reported without them.
        self._tells_crash = not as_records and not faulthandler.is_enabled()
        if self._tells_crash:
            faulthandler.enable(self._stderr.real)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line for writing."""
        try:
            self.sink.put(_line(self.format(record)))
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Do nothing: a report on standard error would come back as a record."""

    def give_back(self) -> None:
        """Restore standard error, once the lines written to it have arrived here."""
        if self._tells_crash:
            faulthandler.disable()
        sys.stderr.flush()
        self._stderr.give_back(1.0)

    def finish(self) -> None:
        """Wait a little for the last lines; if nobody reads them, nothing more is written."""
        if self.sink.close(END_S):
            os.close(self._stderr.real)
        else:  # a process must be able to end: later lines are discarded
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)

    def _record(self, raw: bytes) -> None:
        text = raw.decode("utf-8", "replace").rstrip()
        if text:
            kind = _ABSEIL.match(text)
            level = _LEVELS[kind[1]] if kind else logging.WARNING
            logging.getLogger(NATIVE).log(level, "%s", text)


def _is_standard_error(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError, AttributeError):
        return False


def _line(text: str) -> bytes:
    return (text + "\n").encode("utf-8", "replace")


def _finite(value: Any) -> Any:
    """The value with None for each number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class LineSink:
    """Accepts lines without ever blocking; a thread writes them to a descriptor.

    A line is dropped and counted if too many wait, or if it cannot be written (nobody has the pipe
    open any more, no room on the disk). Once lines can be written again, a line in place of the
    dropped ones gives their number.

    Args:
        descriptor: the destination; it stays open.
        notice: makes the line with the number of dropped lines, with its end.
        most_bytes: limit of the waiting lines.
    """

    def __init__(
        self, descriptor: int, notice: Callable[[int], bytes], most_bytes: int = MOST_BYTES
    ) -> None:
        self.dropped = 0
        self._descriptor, self._notice, self._most_bytes = descriptor, notice, most_bytes
        self._lines: deque[tuple[bytes, int]] = deque()
        """Lines, each with the number of dropped ones that it reports."""
        self._bytes = 0
        self._untold = 0
        """Dropped lines that no line reports yet."""
        self._failing = self._torn = self._closed = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Queue a line, which ends with a line feed, for writing."""
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
        """Accept no more lines; returns whether all were written within `timeout_s`."""
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
        """The next line and the number of dropped ones that it reports; None at the end."""
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
        left = b"\n" + line if self._torn else line  # half a line was written before
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
    """Descriptor 2 as a pipe of our own; a thread passes on each line that is written to it.

    Libraries in C++ write there without any Python logger, and so does Python's own output.

    Attributes:
        real: a descriptor of the original standard error; the caller closes it.
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
        """Restore descriptor 2, once the lines written to it have been passed on."""
        os.dup2(self.real, 2)  # ends the pipe, unless a child process holds it, too
        if self._thread is not None:
            self._thread.join(timeout_s)
