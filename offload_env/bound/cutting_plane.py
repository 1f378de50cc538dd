"""Maximises a concave, piecewise linear function of few multipliers by cutting planes.

Each evaluation gives a value and a gradient, that is a plane above the function. The highest
point below all planes found is tried next; the planes' own value there bounds what is left
to gain. Every value returned is one that was attained, so stopping early costs height only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Evaluate = Callable[[Floats], tuple[float, Floats]]
"""Multipliers (k,) -> value, gradient (k,)."""

_ROUNDS: Final = 60
_CLOSE: Final = 1e-7
"""Relative gain that is not worth another evaluation."""
_MOST: Final = 1e6
"""No multiplier is raised beyond this."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The best point found.

    Attributes:
        value: of the function.
        at: float64 (k,), the multipliers.
    """

    value: float
    at: Floats


def maximise(evaluate: Evaluate, k: int) -> Peak:
    """The largest value over multipliers of at least 0.

    Args:
        evaluate: concave in its argument.
        k: number of multipliers, 1 or 2.
    """
    top = np.ones(k)
    planes: list[tuple[Floats, float]] = []
    best = Peak(-np.inf, np.zeros(k))
    at = np.zeros(k)
    for _ in range(_ROUNDS):
        value, gradient = evaluate(at)
        if value > best.value:
            best = Peak(value, at)
        planes.append((gradient, value - float(gradient @ at)))
        top = np.where((at >= top) & (gradient > 0) & (top < _MOST), 4.0 * top, top)
        at, hope = _highest(planes, top)
        if hope <= best.value + _CLOSE * max(abs(best.value), _CLOSE):
            break
    return best


def _highest(planes: list[tuple[Floats, float]], top: Floats) -> tuple[Floats, float]:
    """Highest point (x, t) with t <= slope . x + offset for all planes and 0 <= x <= top.

    Tries every corner, the common point of k + 1 planes or walls.
    """
    k = len(top)
    slopes = np.array([slope for slope, _ in planes])
    offsets = np.array([offset for _, offset in planes])
    eye, nothing = np.eye(k), np.zeros((k, 1))
    # Rows: coefficients of (x, t), right-hand side.
    rows = np.concatenate(
        [
            np.hstack([-slopes, np.ones((len(planes), 1))]),
            np.hstack([eye, nothing]),
            np.hstack([eye, nothing]),
        ]
    )
    right = np.concatenate([offsets, np.zeros(k), top])
    sets = np.array(list(combinations(range(len(rows)), k + 1)))
    systems, sides = rows[sets], right[sets]
    regular = np.abs(np.linalg.det(systems)) > 1e-12
    corners = np.linalg.solve(systems[regular], sides[regular][..., None])[..., 0]
    x, t = corners[:, :k], corners[:, k]
    below = (t[:, None] <= x @ slopes.T + offsets + 1e-9).all(1)
    inside = ((x >= -1e-9) & (x <= top + 1e-9)).all(1)
    t = np.where(below & inside, t, -np.inf)
    highest = int(t.argmax())
    return np.clip(x[highest], 0.0, top), float(t[highest])
