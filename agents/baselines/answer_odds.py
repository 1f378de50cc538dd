"""P(correct) of every action from what a frame has shown so far, measured on training frames.

Within a frame a device knows which exit it evaluated last, that exit's calibrated confidence, and
whether its class is the track's last answer. Here this is one of S states of the exit: a bin of the
confidence, and whether the class agrees. The track's last answer comes from some exit, or there is
none: that is the frame's context, which stays while the frame is decided.

Tables count training frames: how often each action is right in each state, and how often each
state of a deeper exit follows.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from agents.baselines.prediction import AccuracyTable, Floats
from offload_env.world import World

BINS: Final = 12
"""Confidence bins. Each holds the same share of all doubt (1 - confidence) about an exit: where an
exit is nearly always sure, equally filled bins would tell none of its errors apart."""
PSEUDO: Final = 10.0
"""Pseudo-frames of the mean over all states, as `AccuracyTable` has them of the mean."""

Ints = NDArray[np.int64]


class AnswerOdds:
    """See the module's text; E exits, A actions, S = 2 `BINS` states, C = E + 1 contexts.

    Context 0 is a new track, context c > 0 a last answer by exit ``exits[c - 1]``. State
    ``2 * bin + agrees``; on a new track nothing agrees.

    Args:
        world: training world.

    Attributes:
        before: of the frame's start, `AccuracyTable`.
        right: float64 (C, E, S, A), P(correct) after an exit was evaluated.
        follows: float64 (C, E, E, S, S), P(state of the second exit | state of the first), in
            every row; of use where the second exit is the deeper one.
        first: float64 (C, `BINS`, E, S), P(state of an exit | bin of the last answer's confidence),
            nothing evaluated yet.
    """

    def __init__(self, world: World) -> None:
        table, topology = world.table, world.topology
        local = np.array(topology.local)
        n, exits = len(table), len(local)
        self.before = AccuracyTable(world)
        self._edges = np.stack([_edges(table.confidence[:, a]) for a in local])
        bins = np.stack([self.bin(e, table.confidence[:, a]) for e, a in enumerate(local)])
        classes = table.prediction[:, local].T
        every, later = np.arange(n), np.flatnonzero(np.diff(table.track) == 0) + 1
        states = 2 * BINS
        self.right = np.empty((exits + 1, exits, states, topology.n_actions))
        self.follows = np.empty((exits + 1, exits, exits, states, states))
        self.first = np.empty((exits + 1, BINS, exits, states))
        for c in range(exits + 1):
            frames = later if c else every
            agrees = np.zeros((exits, len(frames)), np.int64)
            if c:
                agrees[:] = classes[:, frames] == classes[c - 1, frames - 1]
            state = 2 * bins[:, frames] + agrees
            before = bins[c - 1, frames - 1] if c else np.zeros(n, np.int64)
            # A track's first frames differ from the rest: signs are small then.
            begins = np.ones(len(frames), bool) if c else np.isin(frames, world.track_start)
            for e in range(exits):
                self.right[c, e] = _means(state[e], world.correct[frames], states)
                self.first[c, :, e] = _shares(before[begins], state[e, begins], BINS, states)
                for d in range(exits):
                    self.follows[c, d, e] = _shares(state[d], state[e], states, states)
        self.first[0] = self.first[0, :1]

    def bin(self, exit: int, confidence: NDArray[np.floating]) -> Ints:
        """Bin of the confidences of an exit, by its place; int64, as their shape."""
        found: Ints = np.searchsorted(self._edges[exit], confidence).astype(np.int64)
        return found


def _edges(confidence: NDArray[np.floating]) -> Floats:
    """Upper ends of all bins but the last, float64 (`BINS` - 1,), ascending."""
    ascending = np.sort(confidence.astype(np.float64))
    doubt = np.cumsum(1.0 - ascending)
    shares = np.arange(1, BINS) / BINS
    places = np.searchsorted(doubt, shares * doubt[-1])
    edges: Floats = ascending[np.minimum(places, len(ascending) - 1)]
    return edges


def _means(state: Ints, values: NDArray[np.generic], states: int) -> Floats:
    """Mean of `values` (n, m) in every state, drawn towards the mean of all; (states, m)."""
    columns = np.asarray(values, np.float64).T
    sums = np.stack([np.bincount(state, column, states) for column in columns], axis=1)
    overall = columns.mean(1)
    counts = np.bincount(state, minlength=states)[:, None]
    means: Floats = (sums + PSEUDO * overall) / (counts + PSEUDO)
    return means


def _shares(state: Ints, then: Ints, states: int, thens: int) -> Floats:
    """Shares of `then` in every state, drawn towards its shares in all; (states, thens)."""
    counts = np.bincount(state * thens + then, minlength=states * thens).reshape(states, thens)
    overall = np.bincount(then, minlength=thens) / len(then)
    shares: Floats = (counts + PSEUDO * overall) / (counts.sum(1, keepdims=True) + PSEUDO)
    return shares
