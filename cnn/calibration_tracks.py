"""Tracks set aside for calibration, on which a certified floor is measured.

Frames of one track look alike, and so do drives past the same sign
(`cnn.make_frame_table.make_varied_table`). The unit is therefore the *sign*: all drives past it
calibrate, or none does. Policies that are to be certified must not learn on these tracks.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import MAX_SEED, ConfigError, DataError, in_range
from cnn.frame_table import FrameTable

SHARE: Final = 0.3
"""Share of a table's signs that calibrate."""
_MORE_DRIVES: Final = re.compile(r" and (\d{1,6}) more drives, strength ")
"""In the source of a table that `make_varied_table` made."""
_BY_FRAME: Final = (
    "label",
    "frame",
    "prediction",
    "confidence",
    "payload_bytes",
    "features",
    "quality",
)


def signs_of(table: FrameTable) -> NDArray[np.int64]:
    """The sign that each track passes, numbered from 0, int64 (n_tracks,).

    A table of several drives past the same signs repeats its tracks in the same order, drive by
    drive. In every other table each track is a sign of its own.

    Raises:
        DataError: if the table states several drives, but its tracks do not repeat.
    """
    found = _MORE_DRIVES.search(table.source)
    drives = 1 + (int(found[1]) if found else 0)
    starts = table.track_starts()
    n_signs = len(starts) // drives
    tracks = np.stack([table.label[starts], np.diff(starts, append=len(table))])
    if not np.array_equal(np.tile(tracks[:, :n_signs], drives), tracks):
        raise DataError(
            f"frame table ({table.source}) whose tracks differ from drive to drive",
            expected=f"the same tracks in each of its {drives} drives",
            hint="choose all drives past a sign or none, or make the table again",
        )
    return np.arange(len(starts)) % n_signs


def calibration_tracks(table: FrameTable, share: float = SHARE, seed: int = 0) -> NDArray[np.bool_]:
    """The tracks that calibrate, bool (n_tracks,); policies learn on the others.

    Signs are shuffled within their class, laid out class by class, and taken at equal distances
    from a random start (systematic sampling). So each sign is taken with the same probability, and
    each class has its share within one sign.

    Args:
        table: the frames on which policies learn.
        share: of the signs, between 0 and 1; rounded so that each side has one at least.
        seed: equal seeds give equal tracks.

    Raises:
        ConfigError: if the share or the seed is out of range.
        DataError: if there are fewer than two signs, or `signs_of` refuses the table.
    """
    if not 0.0 < share < 1.0:
        raise ConfigError(f"share {share:g}", expected="between 0 and 1", hint="try 0.3")
    in_range("seed", seed, 0, MAX_SEED)
    sign = signs_of(table)
    n = int(sign.max()) + 1
    if n < 2:
        raise DataError(
            f"frame table ({table.source}) of one sign",
            expected="two or more, to learn on some and calibrate on others",
            hint="make a table of more tracks",
        )
    count = min(max(round(share * n), 1), n - 1)
    rng = np.random.default_rng(seed)
    label = table.label[table.track_starts()[:n]]
    by_class = np.lexsort((rng.random(n), label))
    at = ((np.arange(count) + rng.random()) * n / count).astype(np.int64)
    chosen = np.zeros(n, bool)
    chosen[by_class[np.minimum(at, n - 1)]] = True
    return chosen[sign]


def some_tracks(table: FrameTable, keep: NDArray[np.bool_]) -> FrameTable:
    """A table of some of its tracks, numbered anew.

    Args:
        table: the frames.
        keep: bool (n_tracks,).

    Raises:
        DataError: if no track is left, or `keep` has another length.
    """
    if keep.shape != (table.n_tracks,) or not keep.any():
        raise DataError(
            f"a choice of {int(keep.sum())} among {keep.size} tracks",
            expected=f"one track or more of the {table.n_tracks} of {table.source}",
            hint="give one bool for every track",
        )
    rows = keep[table.track]
    arrays = {name: getattr(table, name) for name in _BY_FRAME}
    return replace(
        table,
        track=(np.cumsum(keep) - 1)[table.track[rows]].astype(np.int32),
        source=f"{table.source}, {int(keep.sum())} of its {table.n_tracks} tracks",
        **{name: of[rows] for name, of in arrays.items() if of is not None},
    )
