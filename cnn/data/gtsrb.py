"""GTSRB by path, in any of its three layouts, as arrays ready for the network."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnn.common.errors import DataError, narrowed
from cnn.data.track_split import Part, load_split, track_name

_log = logging.getLogger(__name__)


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

    @classmethod
    def of(
        cls,
        images: NDArray[np.uint8],
        *,
        label: ArrayLike,
        track: ArrayLike,
        frame: ArrayLike,
        width_px: ArrayLike,
        height_px: ArrayLike,
        what: str,
    ) -> ImageSet:
        """The set of these columns; `DataError`, that names `what`, if a number does not fit."""
        numbers = {"label": label, "frame": frame, "width_px": width_px, "height_px": height_px}
        small = {k: narrowed(v, np.int16, f"{what}: {k}") for k, v in numbers.items()}
        return cls(images=images, track=narrowed(track, np.int32, f"{what}: track"), **small)

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

    Logs a warning that counts what an annotation file and its folder do not agree about.

    Args:
        root: folder of one of the layouts in docs/data.md.
        part: official training or test set.
        size: side of the resized square images, pixels.
        limit: read at most so many rows (smoke tests).

    Raises:
        DataError: if the folder or a file is missing or not of its form.
    """
    # The layouts build `ImageSet`s, so they import this module.
    from cnn.data.gtsrb_layouts import detect_layout, load_csv_layout, load_official
    from cnn.data.gtsrb_packed import load_packed

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
    from cnn.data.gtsrb_layouts import has_official_tracks

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
        data: from `load_tracks`. What it lacks of the part is counted in a logged warning.
        part: one of `cnn.data.track_split.PARTS`.

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
