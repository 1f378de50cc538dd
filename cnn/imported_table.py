"""A frame table from a Parquet file of one's own: what a user's pipeline measured, frame by action.

Nothing is known of the network but what these rows say: its exits and splits are those that occur,
its last block is its last exit, and its payloads have bytes but no shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.frame_table import FEATURES, FrameTable
from cnn.imported_rows import Ints, Rows, wrong
from cnn.topology import MAX_PAYLOAD_BYTES, Topology

NEUTRAL: Final = {
    "brightness": 0.5,
    "contrast": 0.2,
    "sharpness": 0.0316,
    "width_px": 54.8,
    "height_px": 54.8,
}
"""Of every frame, if the file has no such column: the middle of what an observation can show."""
_MOST_IN_TRACK: Final = 2**15
"""Frames of a track are numbered in int16."""


@dataclass(frozen=True, slots=True)
class Imported:
    """An imported table.

    Attributes:
        table: with qualities; its ``bundle_hash`` follows from the topology, as there is no bundle.
        neutral: names of what the file did not state, and is the same for all frames
            (`NEUTRAL`; predictions are 0).
    """

    table: FrameTable
    neutral: tuple[str, ...]


def import_table(path: Path) -> Imported:
    """Read a Parquet file with one row a frame and action.

    Raises:
        DataError: if it cannot be read, has unknown columns or lacks one, holds a number that is
            missing or out of range, lacks an action of a frame or has it twice, or says two
            things about one frame.
    """
    rows = Rows(path)
    topology, grid = _laid_out(rows)
    track = grid.tracks()
    grid, track = grid.in_order(np.argsort(track, kind="stable")), np.sort(track)
    starts = np.flatnonzero(np.diff(track, prepend=-1))
    in_track = np.arange(len(track)) - np.repeat(starts, np.diff(starts, append=len(track)))
    if in_track.max() >= _MOST_IN_TRACK:
        raise wrong(f"{path}: a track of {in_track.max() + 1} frames", f"at most {_MOST_IN_TRACK}")
    payload = grid.payloads()
    topology = _with_payloads(topology, payload)
    features, neutral = grid.features(in_track)
    if "prediction" in rows.names:
        prediction = grid.values(rows.whole("prediction", 0, 2**15 - 1))
    else:
        prediction, neutral = np.zeros_like(payload), (*neutral, "prediction")
    table = FrameTable(
        label=np.full(len(track), -1, np.int16),
        track=track.astype(np.int32),
        frame=in_track.astype(np.int16),
        prediction=prediction.astype(np.int16),
        confidence=grid.share("confidence"),
        payload_bytes=payload.astype(np.int32),
        features=features,
        bundle_hash=f"imported-{topology.hash}",
        source=f"{path.name}, imported",
        topology=topology,
        quality=grid.share("quality"),
    )
    return Imported(table, neutral)


def _laid_out(rows: Rows) -> tuple[Topology, _Grid]:
    """The network that the rows are of, and the rows by frame and action."""
    frame, (exit, split) = rows.whole("frame", low=0), rows.pairs()
    topology = _topology(exit, split)
    number = np.zeros((topology.n_blocks + 1, topology.n_blocks + 1), np.int64)
    for action in topology.actions:
        number[action.exit, action.split] = action.index
    frames, at = np.unique(frame, return_inverse=True)
    order = _in_order(rows.path, frames, at, number[exit, split], topology)
    return topology, _Grid(rows, frames, topology, order)


def _topology(exit: Ints, split: Ints) -> Topology:
    """The network with these exits and splits, payloads left open."""
    exits, splits = np.unique(exit), np.unique(split[split < exit])
    shapes = ((1, 1, 1),) * len(splits)
    return Topology(int(exits[-1]), tuple(exits.tolist()), tuple(splits.tolist()), shapes)


def _with_payloads(topology: Topology, payload: Ints) -> Topology:
    """The same network with flat payloads where all frames send the same number of bytes.

    Elsewhere they stay at one byte: tables of one network must have one topology, whichever frames
    they hold.
    """
    shapes = []
    for s in topology.splits:
        sent = payload[:, (topology.split_of == s) & ~topology.is_local]
        same = bool((sent == sent.flat[0]).all())
        shapes.append((1, 1, max(1, int(sent.flat[0])) if same else 1))
    return Topology(topology.n_blocks, topology.exits, topology.splits, tuple(shapes))


def _in_order(
    path: Path, frames: Ints, at: NDArray[np.intp], action: Ints, topology: Topology
) -> NDArray[np.intp]:
    """Row of every frame and action, intp (N, A); each must be there once.

    Args:
        path: for errors.
        frames: int64 (N,), frame numbers, ascending.
        at: intp (R,), which of `frames` a row is of.
        action: int64 (R,), canonical number of its action.
        topology: of all actions.
    """
    n_actions = topology.n_actions
    cell = at.astype(np.int64) * n_actions + action
    order = np.argsort(cell, kind="stable")
    found = cell[order]

    def named(k: int) -> str:
        return f"frame {frames[k // n_actions]}, action {topology.actions[k % n_actions].name}"

    twice = np.flatnonzero(found[1:] == found[:-1])
    if twice.size:
        raise wrong(f"{path}: two rows of {named(int(found[twice[0]]))}", "one row of each")
    missing = len(frames) * n_actions - len(found)
    if missing:
        gap = np.flatnonzero(found != np.arange(len(found)))
        first = int(gap[0]) if gap.size else len(found)
        raise wrong(
            f"{path}: no row of {named(first)} ({missing} missing in all)",
            f"every frame with all {n_actions} actions of its exits "
            f"({', '.join(map(str, topology.exits))}) and splits "
            f"({', '.join(map(str, topology.splits)) or 'none'})",
        )
    return order.reshape(len(frames), n_actions)


class _Grid:
    """Columns as arrays by frame and action.

    Args:
        rows: of the file.
        frames: int64 (N,), frame numbers, ascending.
        topology: with A actions.
        order: intp (N, A), row of every frame and action.
    """

    def __init__(
        self, rows: Rows, frames: Ints, topology: Topology, order: NDArray[np.intp]
    ) -> None:
        self._rows, self._frames, self._topology, self._order = rows, frames, topology, order

    def in_order(self, frames: NDArray[np.intp]) -> _Grid:
        """The same frames in another order, intp (N,)."""
        return _Grid(self._rows, self._frames[frames], self._topology, self._order[frames])

    def values(self, column: NDArray[Any]) -> NDArray[Any]:
        """A column (R,) as (N, A)."""
        return column[self._order]

    def _refuse(self, name: str, values: NDArray[Any], odd: NDArray[np.bool_], wanted: str) -> None:
        """Name the first of the `values` (N, A) that are `odd`, if any is."""
        for i, a in np.argwhere(odd)[:1]:
            raise wrong(
                f"{self._rows.path}: {name} {values[i, a]:g} of frame {self._frames[i]}, "
                f"action {self._topology.actions[a].name}",
                wanted,
            )

    def share(self, name: str) -> NDArray[np.float32]:
        """A column of numbers from 0 to 1, float32 (N, A)."""
        values = self.values(self._rows.numbers(name)).astype(np.float32)
        odd = ~((values >= 0) & (values <= 1))  # NaN as well
        self._refuse(name, values, odd, "a number from 0 to 1")
        return values

    def payloads(self) -> Ints:
        """Bytes of every frame and action, int64 (N, A); none of the local actions."""
        values = self.values(self._rows.whole("payload_bytes", 0, MAX_PAYLOAD_BYTES))
        odd = (values > 0) & self._topology.is_local
        self._refuse("payload_bytes", values, odd, "0 of an action that sends nothing")
        return values

    def of_frame(self, name: str, column: NDArray[Any]) -> NDArray[Any]:
        """A column (R,) that says the same in all rows of a frame, (N,)."""
        values = self.values(column)
        odd = np.flatnonzero((values != values[:, :1]).any(1))
        if odd.size:
            raise wrong(
                f"{self._rows.path}: frame {self._frames[odd[0]]} has two values of {name}",
                f"one {name} for all actions of a frame, and frame numbers that run through the "
                "whole file",
            )
        return values[:, 0]

    def tracks(self) -> Ints:
        """Track of every frame, numbered in order of first frames, int64 (N,)."""
        if "track" not in self._rows.names:
            return np.arange(len(self._frames))  # frames that have nothing to do with each other
        whole = self._rows.is_whole("track")
        column = self._rows.whole("track") if whole else self._rows.words("track")[1]
        _, first, which = np.unique(
            self.of_frame("track", column), return_index=True, return_inverse=True
        )
        return first.argsort().argsort()[which]

    def features(self, in_track: Ints) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """Features of every frame, float32 (N, 6), and the names of those that are `NEUTRAL`.

        Args:
            in_track: int64 (N,), frames of the track before each.
        """
        out = np.zeros((len(self._frames), len(FEATURES)), np.float32)
        for k, name in enumerate(FEATURES):
            if name in self._rows.names:
                column = self._rows.numbers(name)
                if not np.isfinite(column).all():
                    raise wrong(f"{self._rows.path}: a {name} that is missing", "finite numbers")
                out[:, k] = self.of_frame(name, column)
            else:
                out[:, k] = NEUTRAL.get(name, in_track)
        return out, tuple(name for name in NEUTRAL if name not in self._rows.names)
