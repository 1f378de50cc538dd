"""Log lines of an unattended device: readable text, or one JSON object a line.

Libraries in C++ write to standard error past every Python logger (gRPC each handshake that fails,
ONNX Runtime what it thinks of the machine). In the JSON form their lines become records, too.

Nobody waits for who reads the log: lines that standard error does not take are dropped, counted,
and told of once it takes lines again (`testbed.deploy.log_sink`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from cnn.common.console import EXIT_USER_ERROR
from cnn.common.errors import SliproadError
from testbed.deploy.log_sink import CapturedStderr, LineSink, silence

ROOT: Final = "testbed"
NATIVE: Final = "testbed.native"
"""Logger of what came to standard error by itself."""
LINE_BYTES: Final = 8192
END_S: Final = 2.0
"""How long the end of the device waits for lines that are not written yet."""
_ABSEIL: Final = re.compile(r"([IWEF])\d{4} \d\d:\d\d:")
"""Start of gRPC's lines (https://abseil.io/docs/cpp/guides/logging)."""
_LEVELS: Final = {
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
    "F": logging.CRITICAL,
}


def event(log: logging.Logger, level: int, message: str, **fields: Any) -> None:
    """Log a message with named fields, which the JSON form keeps apart."""
    log.log(level, message, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "message", ...fields}`` on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; a value that JSON has no form for becomes its text."""
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


def set_up(form: str, level: str, stream: TextIO | None = None) -> logging.Handler:
    """Send the log of this package to `stream` (standard error); the handler, for removal.

    Standard error is taken over: lines that others write there go the same way.

    Args:
        form: ``text`` or ``json``.
        level: ``debug``, ``info``, ``warning`` or ``error``.
        stream: where to.
    """
    formatter = JsonFormatter() if form == "json" else TextFormatter()
    handler: logging.Handler
    if stream is not None:
        handler = logging.StreamHandler(stream)
    elif form == "json" or _is_standard_error(sys.stderr):
        handler = _SinkHandler(formatter, as_records=form == "json")
    else:  # replaced by a program that calls us
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    log = logging.getLogger(ROOT)
    log.addHandler(handler)
    log.setLevel(level.upper())
    log.propagate = False
    return handler


def take_down(handler: logging.Handler) -> None:
    """Undo `set_up`, once what was logged is written, or nobody has read it for `END_S`."""
    if isinstance(handler, _SinkHandler):
        handler.give_back()
    log = logging.getLogger(ROOT)
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)
    log.propagate = True
    if isinstance(handler, _SinkHandler):
        handler.finish()


def dropped_lines() -> int:
    """Lines of the log that could not be written so far."""
    handlers = logging.getLogger(ROOT).handlers
    return sum(each.sink.dropped for each in handlers if isinstance(each, _SinkHandler))


@contextlib.contextmanager
def logged(form: str, level: str) -> Iterator[None]:
    """`set_up` and `take_down`; in the JSON form, an error that ends the device is a line as well.

    Raises:
        SystemExit: in the JSON form instead of any error: code 2 of a `SliproadError`, else 1.
    """
    handler = set_up(form, level)
    try:
        yield
    except Exception as error:
        if form != "json":
            raise
        ours = isinstance(error, SliproadError)
        log = logging.getLogger(ROOT)
        log.critical("ended: %s", error, exc_info=None if ours else error)
        raise SystemExit(EXIT_USER_ERROR if ours else 1) from None
    finally:
        take_down(handler)


def quiet_libraries() -> None:
    """Keep gRPC's own lines off standard error, unless the user asks for them; what matters of them
    is said by us. Takes effect only before gRPC is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


class _SinkHandler(logging.Handler):
    """Writes to standard error alone, by a thread: what others write there comes to it as well.

    Args:
        formatter: of the line that says how many were dropped, as of any other.
        as_records: whether lines of others become records; otherwise they stay as they are.
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
        # A native crash has no time for threads: it is told past them.
        self._tells_crash = not as_records and not faulthandler.is_enabled()
        if self._tells_crash:
            faulthandler.enable(self._stderr.real)

    def emit(self, record: logging.LogRecord) -> None:
        """Leave the record's line to be written."""
        try:
            self.sink.put(_line(self.format(record)))
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say nothing: it would be said on standard error, and come back as a record."""

    def give_back(self) -> None:
        """Give standard error back, once what was written has come here."""
        if self._tells_crash:
            faulthandler.disable()
        sys.stderr.flush()
        self._stderr.give_back(1.0)

    def finish(self) -> None:
        """Wait a little for the last lines; if nobody takes them, nothing more is said."""
        if self.sink.close(END_S):
            os.close(self._stderr.real)
        else:
            silence()

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
