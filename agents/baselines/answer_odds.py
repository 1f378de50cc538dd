"""P(correct) of every action from what a frame has shown so far, measured on training frames.

Within a frame a device knows which exit it evaluated last, that exit's calibrated confidence, and
whether its class is the track's last answer. Here this is one of S states of the exit: a bin of the
confidence, and whether the class agrees. The track's last answer came from some exit, or there is
none: that is the frame's context, which stays while the frame is decided.

Tables count training frames: how often each action is right in each state, and how often each
state of a deeper exit follows.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agents.baselines.prediction import Floats
from offload_env.world import World

BINS: Final = 12
"""Confidence bins. Each holds the same share of all doubt (1 - confidence) about an exit: where an
exit is nearly always sure, equally filled bins would tell none of its errors apart."""
STATES: Final = 2 * BINS
PSEUDO: Final = 10.0
"""Pseudo-frames of the mean of all states; they steady states with few frames."""

Ints = NDArray[np.int64]


class AnswerOdds:
    """See the module's text; E exits, A actions, S = `STATES`, C = E + 1 contexts.

    Context 0 is a new track, context c > 0 a last answer by exit ``exits[c - 1]``. A state is
    ``2 * bin + agrees``; on a new track nothing agrees. Exits go by their places, from 0.

    Args:
        world: training world.

    Attributes:
        right_before: float64 (C, `BINS`, A), P(correct) before any exit is evaluated, by the bin
            of the last answer's confidence; on a new track the same in every bin.
        shown_before: float64 (C, `BINS`, E, S), P(state of an exit), likewise.
        right: float64 (C, E, S, A), P(correct) after an exit was evaluated.
        shown: float64 (C, E, S, E, S), P(state of a deeper exit | state of an exit). Of other pairs
            of exits it has no use.
    """

    def __init__(self, world: World) -> None:
        table, topology = world.table, world.topology
        local = np.array(topology.local)
        exits, actions = len(local), topology.n_actions
        self._edges = [_edges(table.confidence[:, a]) for a in local]
        self._edge_lists: list[list[float]] = [edges.tolist() for edges in self._edges]
        bins = np.stack([self.bins(e, table.confidence[:, a]) for e, a in enumerate(local)])
        classes = table.prediction[:, local].T
        self.right_before = np.empty((exits + 1, BINS, actions))
        self.shown_before = np.empty((exits + 1, BINS, exits, STATES))
        self.right = np.empty((exits + 1, exits, STATES, actions))
        self.shown = np.empty((exits + 1, exits, STATES, exits, STATES))

        every, starts = np.arange(len(table)), world.track_start
        # A track's first frames differ from the rest: signs are small then.
        self._count_before(0, np.zeros(len(starts), np.int64), 2 * bins[:, starts], world, starts)
        self._count(0, 2 * bins, world, every)
        self.right_before[0], self.shown_before[0] = (
            self.right_before[0, 0],
            self.shown_before[0, 0],
        )
        later = np.flatnonzero(np.diff(table.track) == 0) + 1
        for c in range(1, exits + 1):
            if not len(later):  # no track has a second frame, so nothing is known of one
                for tables in (self.right_before, self.shown_before, self.right, self.shown):
                    tables[c] = tables[0]
                continue
            agrees = classes[:, later] == classes[c - 1, later - 1]
            states = 2 * bins[:, later] + agrees
            self._count_before(c, bins[c - 1, later - 1], states, world, later)
            self._count(c, states, world, later)

    def _count_before(
        self, context: int, last: Ints, states: Ints, world: World, frames: NDArray[np.integer[Any]]
    ) -> None:
        """From `frames` (n,), by the last answer's bin (n,) and the exits' states (E, n)."""
        self.right_before[context] = _means(last, world.correct[frames], BINS)
        for e, state in enumerate(states):
            self.shown_before[context, :, e] = _shares(last, state, BINS)

    def _count(
        self, context: int, states: Ints, world: World, frames: NDArray[np.integer[Any]]
    ) -> None:
        """From `frames` (n,), by the exits' states (E, n)."""
        for e, state in enumerate(states):
            self.right[context, e] = _means(state, world.correct[frames], STATES)
            for d, deeper in enumerate(states):
                self.shown[context, e, :, d] = _shares(state, deeper, STATES)

    def bins(self, exit: int, confidence: NDArray[np.floating[Any]]) -> Ints:
        """Bins of confidences of an exit; int64, as their shape."""
        found: Ints = np.searchsorted(self._edges[exit], confidence).astype(np.int64)
        return found

    def bin(self, exit: int, confidence: float) -> int:
        """Bin of one confidence of an exit."""
        return bisect_left(self._edge_lists[exit], confidence)


def _edges(confidence: NDArray[np.floating[Any]]) -> Floats:
    """Upper ends of all bins but the last, float64 (`BINS` - 1,), ascending."""
    ascending = np.sort(confidence.astype(np.float64))
    doubt = np.cumsum(1.0 - ascending)
    places = np.searchsorted(doubt, np.arange(1, BINS) / BINS * doubt[-1])
    edges: Floats = ascending[np.minimum(places, len(ascending) - 1)]
    return edges


def _means(state: Ints, values: NDArray[Any], states: int) -> Floats:
    """Mean of `values` (n, m) in every state, drawn towards the mean of all; (states, m)."""
    columns = np.asarray(values, np.float64).T
    sums = np.stack([np.bincount(state, column, states) for column in columns], axis=1)
    counts = np.bincount(state, minlength=states)[:, None]
    means: Floats = (sums + PSEUDO * columns.mean(1)) / (counts + PSEUDO)
    return means


def _shares(state: Ints, then: Ints, states: int) -> Floats:
    """Shares of `then` in every state, drawn towards its shares in all; (states, `STATES`)."""
    counts = np.bincount(state * STATES + then, minlength=states * STATES)
    by_state = counts.reshape(states, STATES)
    overall = np.bincount(then, minlength=STATES) / len(then)
    frames = by_state.sum(1, keepdims=True)
    shares: Floats = (by_state + PSEUDO * overall) / (frames + PSEUDO)
    return shares
