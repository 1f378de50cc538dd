"""Checks of single values of a configuration file."""

from __future__ import annotations

from typing import Final

from cnn.common import errors as checks

_MEND: Final = "correct the configuration file"


def in_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `ConfigError` unless the value is finite and within the two, both included."""
    checks.in_range(name, value, low, high, _MEND)


def if_given(name: str, value: float | None, low: float, high: float) -> None:
    """As `in_range`, for a key that may be left out."""
    if value is not None:
        in_range(name, value, low, high)


def require(ok: bool, given: str, expected: str) -> None:
    """Raise `ConfigError` unless `ok`."""
    checks.require(ok, given, expected, _MEND)
