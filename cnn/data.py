"""GTSRB by path, in any of its three layouts, as arrays ready for the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cnn.errors import DataError
from cnn.preprocess import decode_rgb
from cnn.tracks import track_name


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Road-sign crops in a fixed order (tracks contiguous, frames ascending).

    Attributes:
        images: uint8 (N, H, W, 3), RGB, resized to the network's input.
        label: int16 (N,), official class 0..42.
        track: int32 (N,), the class's own track number; -1 where there are no tracks.
        frame: int16 (N,), frame number in its track; -1 where there are no tracks.
        width_px: int16 (N,), width of the original crop, pixels.
        height_px: int16 (N,), height of the original crop, pixels.
    """

    images: NDArray[np.uint8]
    label: NDArray[np.int16]
    track: NDArray[np.int32]
    frame: NDArray[np.int16]
    width_px: NDArray[np.int16]
    height_px: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.label)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> ImageSet:
        """The rows `index` (positions or mask), in that order."""
        return ImageSet(
            self.images[index],
            self.label[index],
            self.track[index],
            self.frame[index],
            self.width_px[index],
            self.height_px[index],
        )

    def track_names(self) -> list[str]:
        """Track name of every row, ``class/track``."""
        return [track_name(int(c), int(t)) for c, t in zip(self.label, self.track, strict=True)]

    def only_tracks(self, names: Iterable[str]) -> ImageSet:
        """The rows whose track is in `names`."""
        wanted = set(names)
        return self.take(np.array([n in wanted for n in self.track_names()], dtype=bool))


def load_gtsrb(
    root: Path, part: Literal["train", "test"], size: int, *, limit: int | None = None
) -> ImageSet:
    """Read GTSRB from `root`: packed Parquet, official folders, or the common CSV copy.

    Args:
        root: folder of one of the layouts in docs/data.md.
        part: official training or test set.
        size: side of the resized square images, pixels.
        limit: read at most so many rows (smoke tests).

    Raises:
        DataError: if the folder or a file is missing or not of its form.
    """
    # The layouts build `ImageSet`s, so they import this module.
    from cnn.gtsrb_layouts import detect_layout, load_csv_layout, load_official

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
            mend="copy the missing file there",
        )
    return _load_packed(path, size, limit)


def _load_packed(path: Path, size: int, limit: int | None) -> ImageSet:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path}: {error}", expected="a Parquet file", mend="copy the file again"
        ) from error
    is_train = "track" in table.column_names and "number" not in table.column_names
    needed = {"image", "label", "width", "height"}
    missing = needed - set(table.column_names)
    if missing:
        raise DataError(
            f"{path}: columns {table.column_names}",
            expected=f"also {sorted(missing)}",
            mend="use the packed GTSRB form described in docs/data.md",
        )
    column = {
        c: table[c].to_numpy() for c in table.column_names if c != "image" and c in _INT_COLUMNS
    }
    n = table.num_rows
    minus_one = np.full(n, -1)
    track, frame = column.get("track", minus_one), column.get("frame", minus_one)
    number = column.get("number", minus_one)
    order = np.lexsort((frame, track, column["label"])) if is_train else np.argsort(number)
    order = order[:limit]
    encoded = table["image"]
    images = np.empty((len(order), size, size, 3), np.uint8)
    for row, i in enumerate(order):
        images[row] = decode_rgb(encoded[int(i)].as_py(), size, name=f"{path}, row {i}")
    return ImageSet(
        images,
        column["label"][order].astype(np.int16),
        track[order].astype(np.int32),
        frame[order].astype(np.int16),
        column["width"][order].astype(np.int16),
        column["height"][order].astype(np.int16),
    )


_INT_COLUMNS = ("label", "track", "frame", "number", "width", "height")
