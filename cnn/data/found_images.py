"""A user's set of images before it is decoded: labels, tracks, and how to read each image.

The readers (`class_folders`, `image_csv`, `image_parquet`) give `FoundImages` in the order of their
files; `listed` puts them into one that depends only on the images and their labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from cnn.common.outside import file_bytes, said
from cnn.data.image_file import read_image, resize_rgb
from cnn.data.image_set import ImageSet, numbered_classes

Given = Literal["", "train", "validation", "test"]
GIVEN: Final[dict[str, Given]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of folders and files that say to which part of a set they belong."""
MAX_CLASSES: Final = 2**15
MAX_FILE_BYTES: Final = 512 * 2**20
"""Of one encoded image; 64 million pixels of 16-bit RGB, uncompressed, have 384 MB."""
MAX_SET_BYTES: Final = 32 * 2**30
"""Of the decoded images of one part, all in memory."""


@dataclass(frozen=True, slots=True)
class FoundImages:
    """A set of images in the order of its files.

    Attributes:
        path: of the set, for messages.
        label: class of each image: its name, or its number.
        class_names: by class number, where the set states them; else empty.
        track: name of each image's track; empty if it stands alone.
        frame: order of each image within its track, int64 (N,).
        given: part that the set itself puts each image in; empty if it does not say.
        read: (image's number, its encoded content) of the images with these ascending numbers,
            intp (n,).
        name: an image's name in messages, by its number.
    """

    path: Path
    label: list[str] | NDArray[np.int64]
    class_names: tuple[str, ...]
    track: list[str]
    frame: NDArray[np.int64]
    given: list[Given]
    read: Callable[[NDArray[np.intp]], Iterator[tuple[int, bytes]]]
    name: Callable[[int], str]


@dataclass(frozen=True, slots=True)
class ListedImages:
    """A set of images in an order that depends only on its content.

    By class and content; where there are tracks, these come first, one after the other, frames
    ascending.

    Attributes:
        found: the set as it was found.
        at: intp (N,), number of each image in `found`.
        class_names: by class number; names of classes known by number are these numbers.
        label: int64 (N,), class number.
        track: int64 (N,), running track number; an image that stands alone is a track of one.
        frame: int64 (N,), frame number within its track.
        key: uint64 (N,), equal for images that belong together: those of one track, and
            copies of one image. From SHA-256 of the track's name, or of the encoded image.
    """

    found: FoundImages
    at: NDArray[np.intp]
    class_names: tuple[str, ...]
    label: NDArray[np.int64]
    track: NDArray[np.int64]
    frame: NDArray[np.int64]
    key: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def given(self) -> NDArray[np.str_]:
        """Part that the set itself puts each image in, text (N,); empty if it does not say."""
        return np.array(self.found.given, dtype=np.str_)[self.at]

    def load(self, rows: NDArray[np.intp], size: int) -> ImageSet:
        """Decode the images `rows`, resized to `size` x `size` pixels, in that order.

        Raises:
            DataError: if one cannot be read, which names it, or they need too much memory.
        """
        needed = len(rows) * size * size * 3
        if needed > MAX_SET_BYTES:
            raise DataError(
                f"{self.found.path}: {len(rows)} images of {size} x {size} pixels, "
                f"{needed / 1e9:.0f} GB",
                expected=f"at most {MAX_SET_BYTES / 1e9:.0f} GB in memory",
                hint="give --limit",
            )
        images = np.empty((len(rows), size, size, 3), np.uint8)
        width, height = np.empty((2, len(rows)), np.int64)
        order = np.argsort(self.at[rows])
        numbers = self.at[rows][order]
        read = self.found.read(numbers)
        for row, (number, content) in zip(order, read, strict=True):
            image = read_image(content, self.found.name(number))
            images[row] = resize_rgb(image, size)
            width[row], height[row] = image.size
        return ImageSet.of(
            images,
            label=self.label[rows],
            track=self.track[rows],
            frame=self.frame[rows],
            width_px=width,
            height_px=height,
            class_names=self.class_names,
            what=str(self.found.path),
        )


def listed(found: FoundImages) -> ListedImages:
    """`found` in an order of its own; reads every image's content once, without decoding it.

    Raises:
        DataError: if an image cannot be read, or the classes are none.
    """
    names, label = _classes(found)
    n = len(label)
    key = np.empty(n, np.uint64)
    for number, content in found.read(np.arange(n)):
        key[number] = _number(content)
    alone = np.array([not track for track in found.track])
    # A set's own parts may number their tracks from 0 each.
    names_of_tracks = [
        f"{part}/{name}" for part, name in zip(found.given, found.track, strict=True)
    ]
    runs, run = np.unique(np.array(names_of_tracks), return_inverse=True)
    keys = np.array([_number(r.encode()) for r in runs.tolist()], np.uint64)
    run = np.where(alone, len(runs), run)
    content_key, frame = key.copy(), np.where(alone, 0, found.frame)
    key[~alone] = keys[run[~alone]]
    at = np.lexsort((content_key, np.where(alone, label, 0), frame, run))
    starts = alone[at] | (np.diff(run[at], prepend=-1) != 0)
    track = np.cumsum(starts) - 1
    first = np.flatnonzero(starts)[track]
    return ListedImages(
        found=found,
        at=at,
        class_names=names,
        label=label[at],
        track=track,
        frame=np.arange(n) - first,
        key=key[at],
    )


def _number(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


def _classes(found: FoundImages) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Class names, and the class number of each image."""
    if not len(found.label):
        raise DataError(
            f"{found.path} without images", expected="at least one", hint="give another set"
        )
    if isinstance(found.label, list):
        names = tuple(sorted(set(found.label)))
        number = {name: i for i, name in enumerate(names)}
        label = np.array([number[name] for name in found.label])
    else:
        label = found.label
        known = len(found.class_names) or MAX_CLASSES
        wrong = np.flatnonzero((label < 0) | (label >= known))
        if len(wrong):
            at = int(wrong[0])
            hidden = " (a label that is kept back)" if label[at] == -1 else ""
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise DataError(
                f"{found.name(at)}: label {label[at]}{hidden}{more}",
                expected=f"a class from 0 to {known - 1}",
                hint="correct the label, or leave the image out",
            )
        names = found.class_names or numbered_classes(int(label.max()) + 1)
    if len(names) > MAX_CLASSES:
        raise DataError(
            f"{found.path}: {len(names)} classes",
            expected=f"at most {MAX_CLASSES}",
            hint="check that the labels are classes, not names of images",
        )
    return names, label


def files_reader(
    paths: Sequence[Path], name: Callable[[int], str]
) -> Callable[[NDArray[np.intp]], Iterator[tuple[int, bytes]]]:
    """The `FoundImages.read` of images that are files of their own."""

    def read(numbers: NDArray[np.intp]) -> Iterator[tuple[int, bytes]]:
        for number in numbers.tolist():
            yield number, image_bytes(paths[number], name(number))

    return read


def image_bytes(path: Path, name: str) -> bytes:
    """The content of an image file; raises `DataError`, which says `name`."""
    try:
        return file_bytes(path, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name}: {said(error)}",
            expected="a readable image file",
            hint="check the path and its permissions, or leave the image out",
        ) from error
