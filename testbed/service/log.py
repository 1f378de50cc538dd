"""Log lines of an unattended device: readable text, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

ROOT: Final = "testbed"


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
        return json.dumps(line, default=str)


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
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    log = logging.getLogger(ROOT)
    log.addHandler(handler)
    log.setLevel(level.upper())
    log.propagate = False
    return handler


def take_down(handler: logging.Handler) -> None:
    """Undo `set_up`."""
    log = logging.getLogger(ROOT)
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)
    log.propagate = True


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
