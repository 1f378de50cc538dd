"""The terms of the cost models: the parts of each action on device and server, and their fits.

Blocks, exits, encoders and decoders take the same time in every action. Fits are robust and
non-negative, since a busy machine sometimes takes much longer and never much less time. They
report which sums of terms follow from the measurements, and use a base for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls

from cnn.topology import Action, Topology
from testbed.meters.cost_model import CostModel, Floats, derives_reached

Mask = NDArray[np.bool_]

OVERHEAD: Final = "overhead"
SEND: Final = "send"
"""Device cost of an exchange beyond the exchange itself: handling payload and answer."""
_SOFT: Final = 0.1
"""Relative residual beyond which soft L1 grows linearly: about the spread of a quiet CPU."""
_TIE: Final = 0.03
"""Square root of the prior's weight against the rows' (about a thousandth)."""
_HINT: Final = 0.001
"""The same of a prior that is only assumed, so that it does not bend what was measured."""
MIN_FRAMES: Final = 5
"""A pattern of stages with fewer frames is not measured: their median could be one disturbance."""
MAX_FRAMES: Final = 2000
"""Frames of one pattern that enter a fit, evenly spread: more do not change a median."""
_EXIT_OF_BLOCK: Final = 0.5
"""Assumed time of an early exit over that of a block: about that of the shipped network's."""


class Terms:
    """The terms of one network, by name, and how often each runs in each action.

    The last block and its exit always run together, so they are one term.

    Attributes:
        topology: of the network.
        segments: blocks, then early exits; ``block5_exit5`` is the last block of five.
        device: terms on the device: overhead, sending, `segments` and encoders.
        server: terms on the server: overhead, `segments` and decoders.
        head_rows, rest_rows: float64 (n_actions, n_segments), what of `segments` runs on the device
            before the encoder, and after a failed exchange.
        device_rows, fallback_rows: float64 (n_actions, n_device), the same of `device`; the first
            with everything else that runs without failures.
        server_rows: float64 (n_actions, n_server). All rows are read-only.
        sent_split: intp (n_actions,), the split whose payload an action sends; also 0 if it sends
            none.
        exit_at: place in `segments` of each of the exits, ascending.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        n, cuts = topology.n_blocks, [s for s in topology.splits if s > 0]
        self._last = f"block{n}_exit{n}"
        blocks = [f"block{b}" for b in range(1, n)]
        self.segments = (*blocks, self._last, *(f"exit{e}" for e in topology.exits[:-1]))
        self.device = (OVERHEAD, SEND, *self.segments, *(f"enc{s}" for s in cuts))
        self.server = (OVERHEAD, *self.segments, *(f"dec{s}" for s in cuts))
        self.head_rows = self._rows(self.of_head, self.segments)
        self.rest_rows = self._rows(self.of_fallback, self.segments)
        self.device_rows = self._rows(self.of_device, self.device)
        self.fallback_rows = self._rows(self.of_fallback, self.device)
        self.server_rows = self._rows(self.of_server, self.server)
        self.sent_split = np.where(topology.is_local, 0, topology.split_of)
        self.exit_at = tuple(self.segments.index(self.exit_term(e)) for e in topology.exits)

    def exit_term(self, exit: int) -> str:
        """The segment that an exit is, or is part of."""
        return self._last if exit == self.topology.n_blocks else f"exit{exit}"

    def of_head(self, action: Action) -> list[str]:
        """Terms on the device before the encoder."""
        return self._between(0, action.split, action.exit if action.is_local else None)

    def of_device(self, action: Action) -> list[str]:
        """Terms on the device without failures."""
        send = [] if action.is_local else [SEND]
        encoder = [] if action.is_local or not action.split else [f"enc{action.split}"]
        return [OVERHEAD, *send, *self.of_head(action), *encoder]

    def of_fallback(self, action: Action) -> list[str]:
        """Terms on the device after a failed exchange."""
        return [] if action.is_local else self._between(action.split, action.exit, action.exit)

    def of_server(self, action: Action) -> list[str]:
        """Terms on the server."""
        if action.is_local:
            return []
        decoder = [f"dec{action.split}"] if action.split else []
        return [OVERHEAD, *decoder, *self.of_fallback(action)]

    def _between(self, start: int, end: int, exit: int | None) -> list[str]:
        """Blocks after `start` up to `end`, and exit `exit` unless it is None."""
        blocks = [f"block{b}" for b in range(start + 1, min(end + 1, self.topology.n_blocks))]
        return blocks if exit is None else [*blocks, self.exit_term(exit)]

    def _rows(self, terms: Callable[[Action], Sequence[str]], names: Sequence[str]) -> Floats:
        table = np.zeros((self.topology.n_actions, len(names)))
        for action in self.topology.actions:
            for name in terms(action):
                table[action.index, names.index(name)] += 1
        table.setflags(write=False)
        return table

    def reached_rows(self) -> Floats:
        """float64 (n_blocks + 1, n_segments): blocks 1..p, p = 0..n_blocks."""
        n = self.topology.n_blocks
        return np.tri(n + 1, len(self.segments), -1) * (np.arange(len(self.segments)) < n)

    def reached_ms(self, overhead_ms: float, segments: Floats) -> Floats:
        """As in `CostModel`; empty where the model derives it from the actions."""
        if derives_reached(self.topology):
            return np.zeros(0)
        times: Floats = overhead_ms + self.reached_rows() @ segments
        return times

    def reached_filled(self, heads: Measured) -> tuple[str, ...]:
        """Figures of `reached_ms` that do not follow from measured heads, as in `CostModel`."""
        if derives_reached(self.topology):
            return ()
        unknown = np.flatnonzero(~heads.identify(self.reached_rows()))
        return tuple(f"reached_ms {p}" for p in unknown)

    def fit_segments(self, heads: Measured, base: Floats | None = None) -> Floats:
        """Time of each of `segments`, from measured heads and perhaps a base.

        What the heads leave open without a base is assumed: blocks take the same time, and an
        early exit half of it.
        """
        if base is not None or heads.identify(np.eye(len(self.segments))).all():
            return heads.fit(base)
        alike = np.ones(len(self.segments))
        alike[self.topology.n_blocks :] = _EXIT_OF_BLOCK
        return heads.fit((heads.scale(alike) or 0.0) * alike, _HINT)


@lru_cache(maxsize=64)
def terms_of(topology: Topology) -> Terms:
    """The terms of one network; the same object for equal topologies."""
    return Terms(topology)


def fit_terms(
    rows: Floats, values: Floats, prior: Floats | None = None, tie: float = _TIE
) -> Floats:
    """Non-negative x with rows @ x near `values`, robust against values that are too large.

    Args:
        rows: float64 (N, n_terms).
        values: float64 (N,), positive.
        prior: float64 (n_terms,), determines directions that the rows leave open. Terms with
            prior 0 have none.
        tie: square root of the prior's weight against the rows'.
    """
    patterns, which = np.unique(rows, axis=0, return_inverse=True)
    which = which.ravel()
    scale = np.array([np.median(values[which == k]) for k in range(len(patterns))])
    weight = 1 / np.maximum(scale, 1e-3)[which]
    matrix = rows * (weight / _SOFT)[:, None]
    target = values * weight / _SOFT
    if prior is not None:
        held = np.flatnonzero(prior > 0)
        ties = np.zeros((len(held), rows.shape[1]))
        ties[np.arange(len(held)), held] = tie * np.sqrt(len(rows)) / prior[held]
        matrix = np.concatenate([matrix, ties])
        target = np.concatenate([target, ties @ prior])

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

    def fit(self, prior: Floats | None, tie: float = _TIE) -> Floats:
        """Every term, float64 (n_terms,); `prior` determines what the measurements leave open."""
        if len(self.rows):
            return fit_terms(self.rows, self.values, prior, tie)
        return np.zeros(self.rows.shape[1]) if prior is None else prior


@dataclass(frozen=True, slots=True)
class BaseTerms:
    """A cost model as terms, milliseconds at slowdown 1.

    Attributes:
        device: by name in `Terms.device`. They all follow from the model's device times, except
            those of sending and encoding where no frame is sent whole: only their sums do.
        server: by name in `Terms.server`. A server's times of actions do not determine all its
            terms: the others are in proportion to the device's.
    """

    device: dict[str, float]
    server: dict[str, float]

    @classmethod
    def of(cls, base: CostModel) -> Self:
        """The terms of a model."""
        terms = terms_of(base.topology)
        rows = np.concatenate([terms.device_rows, terms.fallback_rows])
        figures = [*base.device_ms, *base.fallback_ms]
        if base.reached_ms:  # at the last block its exit may be in it or not
            reached = np.zeros((base.topology.n_blocks, len(terms.device)))
            reached[:, 0] = 1.0
            reached[:, 2 : 2 + len(terms.segments)] = terms.reached_rows()[:-1]
            rows, figures = np.concatenate([rows, reached]), [*figures, *base.reached_ms[:-1]]
        values = base.slowdown * np.array(figures)
        solution, _, rank, _ = np.linalg.lstsq(rows, values, rcond=None)
        device = np.maximum(solution, 0.0) if rank == rows.shape[1] else nnls(rows, values)[0]
        named = dict(zip(terms.device, device.tolist(), strict=True))
        alike = np.array([0.0 if n == OVERHEAD else named.get(n, 0.0) for n in terms.server])
        sent = ~base.topology.is_local
        table, took = terms.server_rows[sent], np.array(base.server_ms)[sent]
        if not len(took):
            return cls(_named(terms.device, device), _named(terms.server, alike))
        speed = float(np.median(took / np.maximum(table @ alike, 1e-9)))
        server = fit_terms(table, took, prior=speed * alike)
        return cls(_named(terms.device, device), _named(terms.server, server))

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
