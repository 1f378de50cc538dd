"""Log lines of an unattended device: readable text, or one JSON object a line.

Libraries in C++ write to standard error past every Python logger (gRPC each handshake that fails,
ONNX Runtime what it thinks of the machine). In the JSON form their lines become records, too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from cnn.entry import EXIT_USER_ERROR
from cnn.errors import SliproadError

ROOT: Final = "testbed"
NATIVE: Final = "testbed.native"
"""Logger of what came to standard error by itself."""
LINE_BYTES: Final = 8192
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

    Args:
        form: ``text`` or ``json``.
        level: ``debug``, ``info``, ``warning`` or ``error``.
        stream: where to.
    """
    handler: logging.Handler
    if stream is None and form == "json":
        handler = _CapturingHandler()
    else:
        handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    log = logging.getLogger(ROOT)
    log.addHandler(handler)
    log.setLevel(level.upper())
    log.propagate = False
    return handler


def take_down(handler: logging.Handler) -> None:
    """Undo `set_up`."""
    if isinstance(handler, _CapturingHandler):
        handler.give_back()
    log = logging.getLogger(ROOT)
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)
    log.propagate = True
    if isinstance(handler, _CapturingHandler):
        handler.stream.close()


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


class _CapturingHandler(logging.StreamHandler[TextIO]):
    """Writes to standard error alone: what others write there comes to it as records.

    Descriptor 2 becomes a pipe, and a thread makes a record of each line that arrives.
    """

    def __init__(self) -> None:
        sys.stderr.flush()
        super().__init__(os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace"))
        read_end, write_end = os.pipe()
        os.dup2(write_end, 2)
        os.close(write_end)
        self._thread = threading.Thread(
            target=self._read, args=(read_end,), name="stderr", daemon=True
        )
        self._thread.start()

    def give_back(self) -> None:
        """Give standard error back, once what was written has become records."""
        sys.stderr.flush()
        os.dup2(self.stream.fileno(), 2)  # ends the pipe, unless a child process holds it, too
        self._thread.join(1.0)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say nothing: it would be said on standard error, and come back as a record."""

    def _read(self, read_end: int) -> None:
        log = logging.getLogger(NATIVE)
        with open(read_end, "rb") as lines:
            while raw := lines.readline(LINE_BYTES):
                text = raw.decode("utf-8", "replace").rstrip()
                if text:
                    kind = _ABSEIL.match(text)
                    log.log(_LEVELS[kind[1]] if kind else logging.WARNING, "%s", text)


def _finite(value: Any) -> Any:
    """The value with None for each number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
