"""The columns of a table of images, one row an image, and what may be wrong in them.

``path`` of the image's file, relative to the table's folder; ``label``, a class's name or its
number; perhaps ``track``, any text or number (nothing: the image stands alone), and ``frame``, the
order within the track.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError, shown

PATH, LABEL, TRACK, FRAME = "path", "label", "track", "frame"
_MOST: Final = 2**53


def class_numbers(numbers: list[int]) -> NDArray[np.int64]:
    """Labels that are whole numbers; those of absurd size stay wrong, and fit."""
    return np.array([min(max(n, -_MOST), _MOST) for n in numbers], np.int64)


def frame_numbers(
    numbers: NDArray[np.float64], track: list[str], places: list[str]
) -> NDArray[np.int64]:
    """Frame numbers as integers, 0 where there is no track.

    Raises:
        DataError: if one is missing or no whole number from 0, which names its place.
    """
    numbers = np.where([not name for name in track], 0.0, numbers)
    wrong = np.flatnonzero(~((numbers >= 0) & (numbers < _MOST) & (np.floor(numbers) == numbers)))
    if len(wrong):
        raise DataError(
            f"{places[wrong[0]]}: frame {numbers[wrong[0]]:g}",
            expected="a whole number from 0",
            hint="correct the file",
        )
    return numbers.astype(np.int64)


def refuse_twice(
    track: list[str], frame: NDArray[np.int64] | None, name: Callable[[int], str]
) -> None:
    """Refuse two images that say they are the same frame of one track."""
    if frame is None:
        return
    seen: dict[tuple[str, int], int] = {}
    for number, of_track in enumerate(track):
        first = seen.setdefault((of_track, int(frame[number])), number)
        if of_track and first != number:
            raise DataError(
                f"{name(number)}: frame {frame[number]} of track {shown(of_track)} again, "
                f"as in {name(first)}",
                expected="each frame of a track once",
                hint="number the frames of a track, or leave the column frame out",
            )


def empty_cell(place: str, column: str) -> DataError:
    """The error of a row without a value in a column."""
    return DataError(
        f"{place}: nothing in column {column}",
        expected="every cell filled",
        hint="fill it, or leave the row out",
    )
