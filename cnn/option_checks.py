"""The checks that every command makes of its options before it does anything."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cnn.errors import ConfigError

MAX_INT: Final = 2**63 - 1
"""Numbers end up in arrays and files of 64 bits."""


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
            f"{option} {value}" if isinstance(value, float) else f"{option} of {_digits(value)}",
            expected="a finite number" if isinstance(value, float) else "a number of 64 bits",
            mend="correct the option",
        )


def _digits(value: int) -> str:
    return f"about 10^{int(value.bit_length() * math.log10(2))}"


def require_writable(folder: Path, option: str) -> None:
    """Raise `ConfigError` unless files can be written in `folder`, or it can be made.

    Nothing is created: the nearest folder that exists is asked.

    Args:
        folder: where files will go.
        option: that named it.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is no folder" if not there.is_dir() else "is not writable"
        raise ConfigError(
            f"{option} {folder}: {there} {why}",
            expected="a folder that can be written, or made",
            mend="give another path, or the right to write there",
        )
