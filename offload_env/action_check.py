"""Whether what came as an action is in the action space: one rule, one error, for every env."""

from __future__ import annotations

import operator
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from offload_env.errors import InvalidActionError


def checked_action(action: Any, n: int) -> int:
    """An action of ``Discrete(n)`` as a Python integer.

    Args:
        action: an integer of any kind: Python's, numpy's, an array or tensor of shape ().
        n: number of actions.

    Raises:
        InvalidActionError: if it is no integer, or not in 0..n-1. A float is never rounded.
    """
    try:
        number = operator.index(action)
    except TypeError:
        _refuse(f"action {_said(action)}", f"an integer from 0 to {n - 1}")
    if not 0 <= number < n:
        _refuse(f"action {number}", f"an integer from 0 to {n - 1}")
    return number


def checked_actions(actions: Any, n_envs: int, n: int) -> NDArray[np.int64]:
    """Actions of ``MultiDiscrete([n] * n_envs)`` as int64 (n_envs,).

    Args:
        actions: an array, or a sequence, of `n_envs` integers.
        n_envs: number of drives.
        n: number of actions in each.

    Raises:
        InvalidActionError: if the shape is another, or one of them is no integer in 0..n-1.
    """
    expected = f"{n_envs} integers from 0 to {n - 1}, one a lane"
    try:
        array = np.asarray(actions)
    except (TypeError, ValueError):  # of unequal lengths, or a tensor that is not on the CPU
        _refuse(f"actions {_said(actions)}", expected)
    if array.shape != (n_envs,) or array.dtype.kind not in "iub":
        _refuse(f"actions {_said(array if array.ndim else actions)}", expected)
    numbers = array.astype(np.int64, copy=False)
    # As unsigned numbers the negative ones are large: one comparison instead of two.
    outside = numbers.view(np.uint64) >= n
    if np.count_nonzero(outside):  # several times faster than any()
        lane = int(outside.argmax())
        _refuse(f"action {array[lane]} in lane {lane}", f"an integer from 0 to {n - 1}")
    return numbers


def _said(value: Any) -> str:
    """What a value is, in words."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and len(shape):
        return f"of shape {tuple(shape)} and type {dtype}"
    if isinstance(value, str | int | float | np.number | np.ndarray):
        return f"{value} of type {type(value).__name__ if dtype is None else dtype}"
    return f"of type {type(value).__name__}"


def _refuse(given: str, expected: str) -> NoReturn:
    raise InvalidActionError(
        given, expected=expected, hint="take it from the environment's action_space"
    )
