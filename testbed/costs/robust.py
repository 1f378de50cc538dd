"""Robust, non-negative least squares of times: a busy machine now and then takes much longer."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.optimize import least_squares

from testbed.costs.terms import Floats

_SOFT: Final = 0.1
"""Relative residual beyond which soft L1 grows linearly: about the spread of a quiet CPU."""
_TIE: Final = 0.03
"""Square root of the prior's weight against the rows' (about a thousandth)."""


def fit_terms(rows: Floats, values: Floats, prior: Floats | None = None) -> Floats:
    """Non-negative x with rows @ x near `values`, robust against values that are too large.

    Args:
        rows: float64 (N, n_terms).
        values: float64 (N,), positive.
        prior: float64 (n_terms,), decides in directions that the rows leave open; its
            weight is that of a thousandth of the rows. Terms with prior 0 have none.
    """
    patterns, which = np.unique(rows, axis=0, return_inverse=True)
    which = which.ravel()
    scale = np.array([np.median(values[which == k]) for k in range(len(patterns))])
    weight = 1 / np.maximum(scale, 1e-3)[which]
    matrix = rows * (weight / _SOFT)[:, None]
    target = values * weight / _SOFT
    if prior is not None:
        held = np.flatnonzero(prior > 0)
        tie = np.zeros((len(held), rows.shape[1]))
        tie[np.arange(len(held)), held] = _TIE * np.sqrt(len(rows)) / prior[held]
        matrix = np.concatenate([matrix, tie])
        target = np.concatenate([target, tie @ prior])

    def residuals(x: Floats) -> Floats:
        out: Floats = matrix @ x - target
        return out

    solution = least_squares(
        residuals,
        np.full(rows.shape[1], 0.1 * float(np.median(values))),
        jac=lambda x: matrix,
        bounds=(0, np.inf),
        loss="soft_l1",
    )
    fitted: Floats = solution.x
    return fitted
