"""Sums of terms that were measured, what follows from them, and a base for what does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from testbed.costs.cost_model import CostModel
from testbed.costs.robust import fit_terms
from testbed.costs.terms import (
    DEVICE_TERMS,
    IS_LOCAL,
    OVERHEAD,
    SERVER_TERMS,
    Floats,
    design,
    device_terms,
    fallback_terms,
    server_terms,
)

Mask = NDArray[np.bool_]

MIN_FRAMES: Final = 5
"""A pattern of stages with fewer frames is not measured: their median could be one disturbance."""
MAX_FRAMES: Final = 2000
"""Frames of one pattern that enter a fit, evenly spread: more do not change a median."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Times of stages that ran together.

    Attributes:
        rows: float64 (N, n_terms), how often each term ran.
        values: float64 (N,), what they took, milliseconds.
    """

    rows: Floats
    values: Floats

    @classmethod
    def of(cls, rows: Floats, values: Floats) -> Self:
        """Of patterns that ran often enough, and of those no more frames than a fit needs."""
        runs = np.flatnonzero(rows.any(axis=1))
        _, which = np.unique(rows[runs], axis=0, return_inverse=True)
        kept: list[NDArray[Any]] = [np.zeros(0, np.int64)]
        for k in range(which.max(initial=-1) + 1):
            at = runs[which.ravel() == k]
            if len(at) >= MIN_FRAMES:
                kept.append(at[np.linspace(0, len(at) - 1, min(len(at), MAX_FRAMES)).astype(int)])
        every = np.sort(np.concatenate(kept))
        return cls(rows[every], values[every])

    def identify(self, sums: Floats) -> Mask:
        """Which sums of terms, the rows of float64 (M, n_terms), follow from what was measured."""
        if not len(self.rows):
            nothing: Mask = np.abs(sums).sum(axis=1) == 0
            return nothing
        patterns = np.unique(self.rows, axis=0)
        _, singular, directions = np.linalg.svd(patterns, full_matrices=False)
        basis = directions[singular > 1e-9 * singular[0]]
        rest = sums - (sums @ basis.T) @ basis
        known: Mask = np.abs(rest).max(axis=1, initial=0.0) < 1e-6
        return known

    def scale(self, terms: Floats) -> float | None:
        """Measured over what `terms` say, median over the patterns; None if there are none."""
        patterns, which = np.unique(self.rows, axis=0, return_inverse=True)
        told = patterns @ terms
        ratios = [
            float(np.median(self.values[which.ravel() == k])) / told[k]
            for k in range(len(patterns))
            if told[k] > 0
        ]
        return float(np.median(ratios)) if ratios else None

    def fit(self, prior: Floats | None) -> Floats:
        """Every term, float64 (n_terms,); `prior` decides where the measurements leave it open."""
        if len(self.rows):
            return fit_terms(self.rows, self.values, prior)
        return np.zeros(self.rows.shape[1]) if prior is None else prior


@dataclass(frozen=True, slots=True)
class BaseTerms:
    """A cost model as terms, milliseconds at slowdown 1.

    Attributes:
        device: by name in `DEVICE_TERMS`; they all follow from the model's forty device times.
        server: by name in `SERVER_TERMS`. A server's terms do not all follow from its times of
            actions: where they do not, they are in proportion to the device's.
    """

    device: dict[str, float]
    server: dict[str, float]

    @classmethod
    def of(cls, base: CostModel) -> Self:
        """The terms of a model."""
        rows = np.concatenate([design(t, DEVICE_TERMS) for t in (device_terms, fallback_terms)])
        values = base.slowdown * np.array([*base.device_ms, *base.fallback_ms])
        device = np.maximum(np.linalg.lstsq(rows, values, rcond=None)[0], 0.0)
        named = dict(zip(DEVICE_TERMS, device.tolist(), strict=True))
        alike = np.array([0.0 if n == OVERHEAD else named.get(n, 0.0) for n in SERVER_TERMS])
        table, took = design(server_terms, SERVER_TERMS)[~IS_LOCAL], np.array(base.server_ms)
        took = took[~IS_LOCAL]
        speed = float(np.median(took / np.maximum(table @ alike, 1e-9)))
        server = fit_terms(table, took, prior=speed * alike)
        return cls(_named(DEVICE_TERMS, device), _named(SERVER_TERMS, server))

    def of_device(self, names: tuple[str, ...], scale: float = 1.0) -> Floats:
        """Some terms of the device, times `scale`."""
        return scale * np.array([self.device[name] for name in names])

    def of_server(self, scale: float = 1.0) -> Floats:
        """The terms of the server, times `scale`."""
        return scale * np.array(list(self.server.values()))


def _named(names: tuple[str, ...], terms: Floats) -> dict[str, float]:
    """By name; a term of 0 could not act as a prior, and becomes a thousandth of the others."""
    least = 1e-3 * float(np.median(terms[terms > 0]))
    return dict(zip(names, np.maximum(terms, least).tolist(), strict=True))
