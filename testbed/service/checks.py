"""Checks of single values of a configuration file."""

from __future__ import annotations

import math

from cnn.errors import ConfigError


def in_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `ConfigError` unless the value is finite and within the two, both included."""
    require(math.isfinite(value) and low <= value <= high, f"{name} {value}", f"{low:g}..{high:g}")


def if_given(name: str, value: float | None, low: float, high: float) -> None:
    """As `in_range`, for a key that may be left out."""
    if value is not None:
        in_range(name, value, low, high)


def require(ok: bool, given: str, expected: str) -> None:
    """Raise `ConfigError` unless `ok`."""
    if not ok:
        raise ConfigError(given, expected=expected, mend="correct the configuration file")
