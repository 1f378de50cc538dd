"""The errors a user can cause or fix, in three parts: given, expected, what to do.

Also the checks that raise them: ranges, numbers that fit their type, how a value is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, overload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, DTypeLike, NDArray


class SliproadError(Exception):
    """A failure that is not a bug: bad input, a missing file, an absent peer.

    The command line prints it as one line and exits with code 2.

    Args:
        given: the input or state found; or an error to copy, because Gymnasium's `AsyncVectorEnv`
            raises the error of a worker that way.
        expected: correct input.
        hint: how to fix it.
    """

    @overload
    def __init__(self, given: str, *, expected: str, hint: str) -> None: ...

    @overload
    def __init__(self, given: SliproadError) -> None: ...

    def __init__(self, given: str | SliproadError, *, expected: str = "", hint: str = "") -> None:
        if isinstance(given, SliproadError):
            again = given
            given, expected, hint = again.given, again.expected, again.hint
        self.given: str = given
        self.expected: str = expected
        self.hint: str = hint
        super().__init__(f"{given}; expected {expected}; {hint}")

    def __reduce__(self) -> tuple[Callable[[], SliproadError], tuple[Any, ...]]:
        """How to pickle it: worker processes send their errors to their parent."""
        return partial(type(self), self.given, expected=self.expected, hint=self.hint), ()


class DataError(SliproadError):
    """A data set, trace or record is missing or in the wrong form."""


class BundleError(SliproadError):
    """A model or policy bundle is missing, corrupt, or does not fit its partner."""


class ConfigError(SliproadError):
    """A setting is unknown or out of range."""


class RemoteError(SliproadError):
    """The other end (MEC server, link) is absent or refused."""


MAX_SEED: Final = 2**32 - 1
"""Limit of numpy's older generator, which stable-baselines3 seeds."""
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
    """A value as TOML writes it, in one line of bounded length."""
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


def _digits(value: int) -> str:
    sign = "-" if value < 0 else ""
    return f"{sign}10^{int(value.bit_length() * math.log10(2))} or so"


def narrowed(
    values: ArrayLike,
    dtype: DTypeLike,
    what: str,
    *,
    low: float | None = None,
    high: float | None = None,
) -> NDArray[Any]:
    """`values` as integers of type `dtype`; a plain ``astype`` would wrap numbers that do not fit.

    Args:
        values: whole numbers, of any numeric type.
        dtype: integer type.
        what: names them in an error, such as ``Train.csv: Width``.
        low, high: allowed range; None is that of `dtype`.

    Raises:
        DataError: if one is no whole number (missing ones included) or out of range.
    """
    import numpy as np  # not at the top: a command line's --help needs no arrays

    given = np.asarray(values)
    limits = np.iinfo(dtype)
    least = max(limits.min, limits.min if low is None else low)
    most = min(limits.max, limits.max if high is None else high)
    expected = f"whole numbers from {least:g} to {most:g}"
    if given.dtype.kind not in "iufb":
        raise DataError(
            f"{what}: values of type {given.dtype}", expected=expected, hint="correct the file"
        )
    fits = (given >= least) & (given <= most)
    if given.dtype.kind == "f":
        fits &= np.floor(given) == given  # NaN and infinity fail the comparisons
    if not fits.all():
        wrong = given[~fits]
        raise DataError(
            f"{what}: {wrong.size} of {given.size} values out of range, such as {wrong.flat[0]:g}",
            expected=expected,
            hint="correct the file, or leave these rows out",
        )
    return given.astype(dtype)


def smallest_unsigned(values: NDArray[np.integer[Any]]) -> NDArray[np.unsignedinteger[Any]]:
    """`values`, none negative, in the smallest of uint8, uint16, uint32 and uint64 that holds them.

    Raises:
        DataError: if one is negative.
    """
    import numpy as np

    dtype = np.min_scalar_type(max(0, int(values.max(initial=0))))
    return narrowed(values, dtype, "numbers that are counted from 0")
