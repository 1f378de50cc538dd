"""Reading one value from a sysfs file."""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str | None:
    """Stripped content of a file; None if it is absent or may not be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def read_int(path: Path) -> int | None:
    """Content of a file as an integer; None if it is absent, unreadable or no integer."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
