"""The checks of options and keys that stand before any work: ranges, numbers, folders."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Final

from cnn.common.errors import ConfigError

MAX_SEED: Final = 2**32 - 1
"""Of numpy's older generator, which stable-baselines3 seeds."""
MAX_INT: Final = 2**63 - 1
"""Numbers end up in arrays and files of 64 bits."""


def require(ok: bool, given: str, expected: str, hint: str = "correct it") -> None:
    """Raise `ConfigError` unless `ok`."""
    if not ok:
        raise ConfigError(given, expected=expected, hint=hint)


def in_range(name: str, value: float, low: float, high: float, hint: str = "correct it") -> None:
    """Raise `ConfigError` unless a number is finite and within the two, both included."""
    fine = low <= value <= high  # also false for NaN
    require(fine, f"{name} {shown(value)}", f"{shown(low)}..{shown(high)}", hint)


def shown(value: object) -> str:
    """A value as it stands in a TOML file, in one line of bounded length."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, int):
        return str(value) if abs(value) <= MAX_INT else _digits(value)
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(shown(v) for v in value[:8])
        return f"[{inside}{', ...' if len(value) > 8 else ''}]"
    if isinstance(value, str):
        text = value if len(value) <= 80 else f"{value[:77]}..."
        plain = text.isprintable() and "'" not in text
        return f"'{text}'" if plain else json.dumps(text, ensure_ascii=False)
    return str(value)


def check_numbers(command: Any) -> None:
    """Make a command and all below it refuse numbers that are not finite or beyond 64 bits.

    Ranges of single options (``min``, ``max``) do not: every comparison with NaN is false.

    Args:
        command: command or group, as `typer.main.get_command` gives it.
    """
    for sub in getattr(command, "commands", {}).values():
        check_numbers(sub)
    for parameter in command.params:
        parameter.callback = _checking(parameter.callback)


def _checking(then: Callable[..., Any] | None) -> Callable[..., Any]:
    def check(context: Any, parameter: Any, value: Any) -> Any:
        for each in value if isinstance(value, (tuple, list)) else (value,):
            _check_number(parameter.opts[0], each)
        return value if then is None else then(context, parameter, value)

    return check


def _check_number(option: str, value: Any) -> None:
    fine = True
    if isinstance(value, float):
        fine = math.isfinite(value)
    elif isinstance(value, int):
        fine = abs(value) <= MAX_INT
    if not fine:
        raise ConfigError(
            f"{option} {shown(value)}",
            expected="a finite number" if isinstance(value, float) else "a number of 64 bits",
            hint="correct the option",
        )


def _digits(value: int) -> str:
    sign = "-" if value < 0 else ""
    return f"{sign}10^{int(value.bit_length() * math.log10(2))} or so"
