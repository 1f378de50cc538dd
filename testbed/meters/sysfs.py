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


def why_unreadable(path: Path) -> str:
    """Why `read_int` gives None for a file, in words; empty if it gives a number."""
    try:
        text = path.read_text().strip()
    except PermissionError:
        return f"{path.name} is not readable without root"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, UnicodeDecodeError):
        return f"{path.name} gives an error"
    return "" if read_int(path) is not None else f"{path.name} holds {text[:20]!r}, no number"
