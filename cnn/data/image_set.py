"""Road-sign crops with their tracks, and the split of the GTSRB training tracks.

A track is one physical sign filmed as the car approaches it; its frames are near-duplicates,
so splits are by track and never by frame.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnn.common.errors import narrowed

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


def track_name(label: int, track: int) -> str:
    """Name of a track, ``class/track``, as used in the committed split."""
    return f"{label}/{track}"


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
        """The set of these columns; raises `DataError`, which names `what`, if a number does not
        fit."""
        numbers = {"label": label, "frame": frame, "width_px": width_px, "height_px": height_px}
        small = {k: narrowed(v, np.int16, f"{what}: {k}") for k, v in numbers.items()}
        return cls(images=images, track=narrowed(track, np.int32, f"{what}: track"), **small)

    def __len__(self) -> int:
        return len(self.label)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> ImageSet:
        """The rows `index` (positions or mask), in that order."""
        return ImageSet(*(getattr(self, column.name)[index] for column in fields(self)))

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
