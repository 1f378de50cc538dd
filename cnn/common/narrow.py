"""Numbers in a smaller type: every one of them fits, or all are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from cnn.common.errors import DataError


def narrowed(
    values: ArrayLike,
    dtype: DTypeLike,
    what: str,
    *,
    low: float | None = None,
    high: float | None = None,
) -> NDArray[Any]:
    """`values` as integers of type `dtype`; a plain ``astype`` would wrap what does not fit.

    Args:
        values: whole numbers, of any numeric type.
        dtype: integer type.
        what: names them in an error, such as ``Train.csv: Width``.
        low, high: range that is meant; None is that of `dtype`.

    Raises:
        DataError: if one is no whole number (missing ones included) or out of range.
    """
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
    dtype = np.min_scalar_type(max(0, int(values.max(initial=0))))
    return narrowed(values, dtype, "numbers that are counted from 0")
