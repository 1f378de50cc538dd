"""The packed form of GTSRB: one Parquet file a part, one row an image (docs/data.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError, narrowed
from cnn.data.gtsrb import ImageSet
from cnn.data.gtsrb_layouts import N_CLASSES
from cnn.data.preprocess import decode_rgb

_NEEDED: Final = ("image", "label", "width", "height")
_MOST: Final = 2**15 - 1


def load_packed(path: Path, size: int, limit: int | None = None) -> ImageSet:
    """Read ``train.parquet`` or ``test.parquet``.

    Args:
        path: the file. One with the column ``number`` is a test set.
        size: side of the resized square images, pixels.
        limit: read at most so many images, the first in order.

    Raises:
        DataError: if it cannot be read, lacks a column, holds a number that is missing or
            out of range, the same frame twice, or an image that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: {error}", expected="a Parquet file", hint="copy the file again"
        ) from error
    needed = {*_NEEDED, *({"frame"} if "track" in table.column_names else ())}
    missing = sorted(needed - set(table.column_names))
    if missing:
        raise DataError(
            f"{path}: columns {', '.join(table.column_names) or 'none'}",
            expected=f"also {', '.join(missing)}",
            hint="use the packed GTSRB form described in docs/data.md",
        )
    if not (
        pa.types.is_binary(table["image"].type) or pa.types.is_large_binary(table["image"].type)
    ):
        raise DataError(
            f"{path}: column image of type {table['image'].type}",
            expected="binary: encoded images",
            hint="use the packed GTSRB form described in docs/data.md",
        )

    def column(name: str, low: int, high: int) -> NDArray[np.int64]:
        return narrowed(
            table[name].to_numpy(), np.int64, f"{path}: column {name}", low=low, high=high
        )

    label = column("label", 0, N_CLASSES - 1)
    track = frame = np.full(table.num_rows, -1)
    if "number" in table.column_names:
        keys = [column("number", 0, 2**31 - 1)]
    elif "track" in table.column_names:
        track, frame = column("track", 0, 2**31 - 1), column("frame", 0, _MOST)
        keys = [label, track, frame]
    else:  # a test set whose images have no numbers keeps the order of the file
        keys = [np.arange(table.num_rows)]
    order = np.lexsort(keys[::-1])
    _refuse_twice(np.stack(keys, 1)[order], path)
    width, height = column("width", 1, _MOST), column("height", 1, _MOST)
    order = order[:limit]
    return ImageSet.of(
        _images(table["image"], order, size, path),
        label=label[order],
        track=track[order],
        frame=frame[order],
        width_px=width[order],
        height_px=height[order],
        what=str(path),
    )


def _refuse_twice(keys: NDArray[np.int64], path: Path) -> None:
    """Refuse a set in which two rows, sorted, are the same frame."""
    twice = np.flatnonzero((keys[1:] == keys[:-1]).all(1))
    if len(twice):
        which = "/".join(str(k) for k in keys[twice[0]])
        raise DataError(
            f"{path}: {len(twice)} frames that come twice, such as {which}",
            expected="each class/track/frame, or number, once",
            hint="remove the second rows",
        )


def _images(encoded: Any, order: NDArray[np.intp], size: int, path: Path) -> NDArray[np.uint8]:
    images = np.empty((len(order), size, size, 3), np.uint8)
    for row, i in enumerate(order):
        data = encoded[int(i)].as_py()
        images[row] = decode_rgb(data or b"", size, name=f"{path}, row {i}")
    return images
