"""A CSV of paths, labels and perhaps tracks, as an image set (columns: `image_columns`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.csv_table import read_csv_table
from cnn.data.found_images import FoundImages, files_reader
from cnn.data.image_columns import (
    FRAME,
    LABEL,
    PATH,
    TRACK,
    class_numbers,
    empty_cell,
    frame_numbers,
    refuse_twice,
)

_NUMBER: Final = re.compile(r"-?\d{1,18}", re.ASCII)


def find_csv(path: Path) -> FoundImages:
    """The images that a CSV lists: columns path, label and, if there are tracks, track and frame.

    Raises:
        DataError: if it cannot be read, lacks a column, or has an empty cell in one.
    """
    table = read_csv_table(path, needed=(PATH, LABEL), wanted=(TRACK, FRAME))
    lines = table.lines()
    texts = {name: table.texts(name) for name in (PATH, LABEL)}
    for name, cells in texts.items():
        if "" in cells:
            raise empty_cell(f"{path}, line {lines[cells.index('')]}", name)
    paths = [path.parent / cell for cell in texts[PATH]]
    n = len(paths)
    track = table.texts(TRACK) if TRACK in table.cells else [""] * n
    frame: NDArray[np.int64] | None = None
    if FRAME in table.cells:
        (numbers,) = table.numbers(FRAME)
        frame = frame_numbers(numbers, track, [f"{path}, line {line}" for line in lines])

    def name_of(number: int) -> str:
        return f"{path}, line {lines[number]} ({texts[PATH][number]})"

    refuse_twice(track, frame, name_of)
    return FoundImages(
        path=path,
        label=_labels(texts[LABEL]),
        class_names=(),
        track=track,
        frame=np.arange(n) if frame is None else frame,
        given=[""] * n,
        read=files_reader(paths, name_of),
        name=name_of,
    )


def _labels(cells: list[str]) -> list[str] | NDArray[np.int64]:
    """Class numbers if all cells are such, else class names."""
    if all(_NUMBER.fullmatch(cell) for cell in cells):
        return class_numbers([int(cell) for cell in cells])
    return cells
