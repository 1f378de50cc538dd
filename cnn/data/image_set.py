"""Images with labels and tracks, and the split of the GTSRB training tracks.

A track is one physical sign filmed as the car approaches it; its frames are near-duplicates,
so splits are by track and never by frame.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnn.common.errors import DataError, narrowed, shown

Part = Literal["cnn-fit", "cnn-val", "policy-train", "policy-test"]
PARTS: Final[tuple[Part, ...]] = ("cnn-fit", "cnn-val", "policy-train", "policy-test")
SHARES: Final[Mapping[Part, float]] = {
    "cnn-fit": 0.63,
    "cnn-val": 0.07,
    "policy-train": 0.15,
    "policy-test": 0.15,
}
"""70 % fit the CNN (a tenth of them held out for early stopping and calibration)."""

TEST_LEAK_TRACK: Final = "14/23"
"""Eight official test images are exact frames of this track: it never fits the CNN."""

SPLICED: Final[Mapping[str, int]] = {"1/4": 12, "17/4": 18}
"""Tracks that join two approaches, with the frame at which the second one starts."""


def numbered_classes(n: int) -> tuple[str, ...]:
    """Names of classes that are known by number alone: ``0``, ``1``, ..."""
    return tuple(map(str, range(n)))


def track_name(label: int, track: int) -> str:
    """Name of a track, ``class/track``, as used in the committed split."""
    return f"{label}/{track}"


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images in a fixed order (tracks contiguous, frames ascending).

    Attributes:
        images: uint8 (N, H, W, 3), RGB, resized to the network's input.
        label: int16 (N,), class from 0; of GTSRB the official one, 0..42.
        track: int32 (N,), track number; of GTSRB its class's own, -1 in its test set. An image
            that stands alone is a track of one frame.
        frame: int16 (N,), frame number in its track; -1 where there are no tracks.
        width_px: int16 (N,), width of the original image, pixels.
        height_px: int16 (N,), height of the original image, pixels.
        class_names: by class, of a user's own set; empty means the classes and tracks of GTSRB.
    """

    images: NDArray[np.uint8]
    label: NDArray[np.int16]
    track: NDArray[np.int32]
    frame: NDArray[np.int16]
    width_px: NDArray[np.int16]
    height_px: NDArray[np.int16]
    class_names: tuple[str, ...] = ()

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
        class_names: tuple[str, ...] = (),
        what: str,
    ) -> ImageSet:
        """The set of these columns; raises `DataError`, which names `what`, if a number does not
        fit."""
        numbers = {"label": label, "frame": frame, "width_px": width_px, "height_px": height_px}
        small = {k: narrowed(v, np.int16, f"{what}: {k}") for k, v in numbers.items()}
        tracks = narrowed(track, np.int32, f"{what}: track")
        return cls(images=images, track=tracks, class_names=class_names, **small)

    def __len__(self) -> int:
        return len(self.label)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> ImageSet:
        """The rows `index` (positions or mask), in that order."""
        columns = [column.name for column in fields(self) if column.name != "class_names"]
        return replace(self, **{name: getattr(self, name)[index] for name in columns})

    def in_classes(self, names: Sequence[str], n_classes: int) -> ImageSet:
        """The same images with a network's class numbers, found by name.

        Args:
            names: the network's class names; if it has none, names that are numbers are taken as
                its class numbers.
            n_classes: the network's number of classes.

        Raises:
            DataError: if the network does not know one of the classes.
        """
        if self.class_names and names:
            known = {name: number for number, name in enumerate(names)}
            there = {int(c): self.class_names[c] for c in np.unique(self.label)}
            missing = [name for name in there.values() if name not in known]
            if missing:
                more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
                raise DataError(
                    f"images of class {', '.join(map(shown, missing[:3]))}{more}",
                    expected=f"the network's classes, such as {shown(list(names[:3]))}",
                    hint="leave those images out, or rename their class",
                )
            numbers = np.full(len(self.class_names), -1, np.int16)
            for own, name in there.items():
                numbers[own] = known[name]
            return replace(self, label=numbers[self.label], class_names=tuple(names))
        if self.class_names and self.class_names != numbered_classes(len(self.class_names)):
            raise DataError(
                f"images with class names, such as {shown(self.class_names[0])}, and a network "
                "that knows its classes by number alone",
                expected="labels that are the network's class numbers",
                hint="give a CSV whose labels are numbers, or a network with class names",
            )
        highest = int(self.label.max(initial=-1))
        if highest >= n_classes:
            raise DataError(
                f"images of class {highest}, and a network of {n_classes} classes",
                expected=f"classes 0 to {n_classes - 1}",
                hint="give the images that the network was trained for",
            )
        return self

    def track_names(self) -> list[str]:
        """Track name of every row, ``class/track``."""
        return [track_name(int(c), int(t)) for c, t in zip(self.label, self.track, strict=True)]

    def only_tracks(self, names: Iterable[str]) -> ImageSet:
        """The rows whose track is in `names`."""
        wanted = set(names)
        return self.take(np.array([n in wanted for n in self.track_names()], dtype=bool))


def make_split(names: Iterable[str], seed: int) -> dict[Part, list[str]]:
    """Assign every track to one part, stratified by class, reproducibly.

    Every class gets at least one track in each part as long as it has four.
    """
    by_class: dict[int, list[str]] = defaultdict(list)
    for name in sorted(set(names), key=_sort_key):
        by_class[int(name.split("/")[0])].append(name)
    rng = np.random.default_rng(seed)
    parts: dict[Part, list[str]] = {part: [] for part in PARTS}
    for label in sorted(by_class):
        tracks = by_class[label]
        rng.shuffle(tracks)
        if TEST_LEAK_TRACK in tracks:
            tracks.remove(TEST_LEAK_TRACK)
            parts["policy-train"].append(TEST_LEAK_TRACK)
        at = 0
        for part in ("cnn-val", "policy-train", "policy-test"):
            n = max(1, round(SHARES[part] * len(tracks)))
            parts[part] += tracks[at : at + n]
            at += n
        parts["cnn-fit"] += tracks[at:]
    return {part: sorted(parts[part], key=_sort_key) for part in PARTS}


def load_split() -> dict[Part, list[str]]:
    """The committed split (`cnn/assets/track_split.json`)."""
    text = (resources.files("cnn") / "assets" / "track_split.json").read_text()
    raw = json.loads(text)
    return {part: list(raw["parts"][part]) for part in PARTS}


def _sort_key(name: str) -> tuple[int, int]:
    label, track = name.split("/")
    return int(label), int(track)
