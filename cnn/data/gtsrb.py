"""GTSRB by path, in any of its three layouts, as arrays ready for the network.

The packed form, one Parquet file a part and one row an image (docs/data.md), is read here; the
two forms of image folders by `cnn.data.gtsrb_folders`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError, narrowed
from cnn.data.gtsrb_folders import (
    N_CLASSES,
    detect_layout,
    has_official_tracks,
    load_csv_layout,
    load_official,
)
from cnn.data.image_file import decode_rgb
from cnn.data.image_set import ImageSet, Part, load_split

_log = logging.getLogger(__name__)

_NEEDED: Final = ("image", "label", "width", "height")
_MOST: Final = 2**15 - 1


def load_gtsrb(
    root: Path, part: Literal["train", "test"], size: int, *, limit: int | None = None
) -> ImageSet:
    """Read GTSRB from `root`: packed Parquet, official folders, or the common CSV copy.

    Logs a warning with the number of differences between an annotation file and its folder.

    Args:
        root: folder of one of the layouts in docs/data.md.
        part: official training or test set.
        size: side of the resized square images, pixels.
        limit: read at most so many rows (smoke tests).

    Raises:
        DataError: if the folder or a file is missing or in the wrong form.
    """
    layout = detect_layout(root)
    if layout == "official":
        return load_official(root, part, size, limit)
    if layout == "csv":
        return load_csv_layout(root, part, size, limit)
    path = root / f"{part}.parquet"
    if not path.is_file():
        raise DataError(
            f"no {part}.parquet in {root}",
            expected="train.parquet and test.parquet",
            hint="copy the missing file there",
        )
    return load_packed(path, size, limit)


def load_tracks(root: Path, size: int) -> ImageSet:
    """The training set from `root`, if its tracks are those that the committed split names.

    Args:
        root, size: as of `load_gtsrb`.

    Raises:
        DataError: as `load_gtsrb`, and for the training set of the online competition: its
            tracks are numbered on their own, so the split would mix its parts.
    """
    if not has_official_tracks(root):
        raise DataError(
            f"{root} holds the online competition's training set (GTSRB/Training, as torchvision "
            "fetches it), whose track numbers are its own",
            expected="the official training set, whose tracks the split names",
            hint="unpack GTSRB_Final_Training_Images.zip there, or run `sliproad cnn download`",
        )
    return load_gtsrb(root, "train", size)


def split_part(data: ImageSet, part: Part) -> ImageSet:
    """The tracks of one part of the committed split.

    Args:
        data: from `load_tracks`. A logged warning counts the missing tracks of the part.
        part: one of `cnn.data.image_set.PARTS`.

    Raises:
        DataError: if it has none of them.
    """
    names = load_split()[part]
    found = data.only_tracks(names)
    missing = len(names) - len(set(found.track_names()))
    if missing == len(names):
        raise DataError(
            f"none of the {len(names)} tracks of {part}",
            expected="the whole official training set",
            hint="unpack GTSRB_Final_Training_Images.zip again, or run `sliproad cnn download`",
        )
    if missing:
        _log.warning("%d of the %d tracks of %s are missing", missing, len(names), part)
    return found


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
