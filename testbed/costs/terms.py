"""The terms of the cost models: the parts of each action on device and server, and their fits.

Blocks, exits, encoders and decoders take the same time in every action. Fits are robust and
non-negative, since a busy machine sometimes takes much longer and never much less time. They
report which sums of terms follow from the measurements, and use a base for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from cnn.topology import ACTIONS, N_ACTIONS, N_EXITS, Action
from testbed.meters.cost_model import CostModel, Floats

Mask = NDArray[np.bool_]

OVERHEAD: Final = "overhead"
SEND: Final = "send"
"""Device cost of an exchange beyond the exchange itself: handling payload and answer."""
SEGMENTS: Final = (
    "block1",
    "block2",
    "block3",
    "block4",
    "block5_exit5",
    *(f"exit{e}" for e in range(1, N_EXITS)),
)
"""Blocks and exits. Block 5 and exit 5 always run together, so they are one term."""
DEVICE_TERMS: Final = (OVERHEAD, SEND, *SEGMENTS, *(f"enc{s}" for s in range(1, N_EXITS)))
SERVER_TERMS: Final = (OVERHEAD, *SEGMENTS, *(f"dec{s}" for s in range(1, N_EXITS)))
_SOFT: Final = 0.1
"""Relative residual beyond which soft L1 grows linearly: about the spread of a quiet CPU."""
_TIE: Final = 0.03
"""Square root of the prior's weight against the rows' (about a thousandth)."""
MIN_FRAMES: Final = 5
"""A pattern of stages with fewer frames is not measured: their median could be one disturbance."""
MAX_FRAMES: Final = 2000
"""Frames of one pattern that enter a fit, evenly spread: more do not change a median."""
IS_LOCAL: Final[Mask] = np.array([a.is_local for a in ACTIONS])


def segment_terms(first: int, last: int, exit: int | None) -> list[str]:
    """Blocks `first`..`last`, and exit `exit` unless it is None."""
    blocks = [f"block{b}" for b in range(first, min(last, 4) + 1)]
    if exit is None:
        return blocks
    return [*blocks, "block5_exit5" if exit == N_EXITS else f"exit{exit}"]


def head_terms(action: Action) -> list[str]:
    """Terms on the device before the encoder."""
    return segment_terms(1, action.split, action.exit if action.is_local else None)


def device_terms(action: Action) -> list[str]:
    """Terms on the device without failures."""
    send = [] if action.is_local else [SEND]
    encoder = [] if action.is_local or not action.split else [f"enc{action.split}"]
    return [OVERHEAD, *send, *head_terms(action), *encoder]


def fallback_terms(action: Action) -> list[str]:
    """Terms on the device after a failed exchange."""
    return [] if action.is_local else segment_terms(action.split + 1, action.exit, action.exit)


def server_terms(action: Action) -> list[str]:
    """Terms on the server."""
    if action.is_local:
        return []
    decoder = [f"dec{action.split}"] if action.split else []
    return [OVERHEAD, *decoder, *fallback_terms(action)]


def design(terms: Callable[[Action], Sequence[str]], names: Sequence[str]) -> Floats:
    """float64 (20, n_terms): how often each term runs in each action."""
    table = np.zeros((N_ACTIONS, len(names)))
    for action in ACTIONS:
        for name in terms(action):
            table[action.index, names.index(name)] += 1
    return table


def fit_terms(rows: Floats, values: Floats, prior: Floats | None = None) -> Floats:
    """Non-negative x with rows @ x near `values`, robust against values that are too large.

    Args:
        rows: float64 (N, n_terms).
        values: float64 (N,), positive.
        prior: float64 (n_terms,), determines directions that the rows leave open; its weight
            is a thousandth of that of the rows. Terms with prior 0 have none.
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


def spread(measured: Floats, modelled: Floats) -> float:
    """Half the central 68 % interval of ln(measured / modelled)."""
    low, high = np.percentile(np.log(np.maximum(measured, 1e-6) / modelled), [15.87, 84.13])
    return float(high - low) / 2


@dataclass(frozen=True, slots=True)
class Measured:
    """Times of stages that ran together.

    Attributes:
        rows: float64 (N, n_terms), how often each term ran.
        values: float64 (N,), their times, milliseconds.
    """

    rows: Floats
    values: Floats

    @classmethod
    def of(cls, rows: Floats, values: Floats) -> Self:
        """Rows of patterns that ran often enough, limited to the frames that a fit needs."""
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
        """Mask of the sums of terms, rows of float64 (M, n_terms), that the data determine."""
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
        """Measured times over those of `terms`, median over the patterns; None without any."""
        patterns, which = np.unique(self.rows, axis=0, return_inverse=True)
        told = patterns @ terms
        ratios = [
            float(np.median(self.values[which.ravel() == k])) / told[k]
            for k in range(len(patterns))
            if told[k] > 0
        ]
        return float(np.median(ratios)) if ratios else None

    def fit(self, prior: Floats | None) -> Floats:
        """Every term, float64 (n_terms,); `prior` determines what the measurements leave open."""
        if len(self.rows):
            return fit_terms(self.rows, self.values, prior)
        return np.zeros(self.rows.shape[1]) if prior is None else prior


@dataclass(frozen=True, slots=True)
class BaseTerms:
    """A cost model as terms, milliseconds at slowdown 1.

    Attributes:
        device: by name in `DEVICE_TERMS`; they all follow from the model's forty device times.
        server: by name in `SERVER_TERMS`. A server's times of actions do not determine all its
            terms: the others are in proportion to the device's.
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
        """Some terms of the device, multiplied by `scale`."""
        return scale * np.array([self.device[name] for name in names])

    def of_server(self, scale: float = 1.0) -> Floats:
        """The terms of the server, multiplied by `scale`."""
        return scale * np.array(list(self.server.values()))


def _named(names: tuple[str, ...], terms: Floats) -> dict[str, float]:
    """Terms by name; a term of 0 could not be a prior, so it becomes a thousandth of the others."""
    least = 1e-3 * float(np.median(terms[terms > 0]))
    return dict(zip(names, np.maximum(terms, least).tolist(), strict=True))
