"""The three-way split of the GTSRB training tracks, and the cuts of spliced tracks.

A track is one physical sign filmed as the car approaches it; its frames are
near-duplicates, so splits are by track and never by frame.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Final, Literal

import numpy as np

from cnn.common.errors import DataError

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


def part_of_tracks(split: Mapping[Part, list[str]]) -> dict[str, Part]:
    """Invert a split: track name -> part; raises `DataError` if a track is in two parts."""
    out: dict[str, Part] = {}
    for part, names in split.items():
        for name in names:
            if name in out:
                raise DataError(
                    f"track {name} in both {out[name]} and {part}",
                    expected="every track in one part",
                    hint="make the split anew with `make_split`",
                )
            out[name] = part
    return out


def _sort_key(name: str) -> tuple[int, int]:
    label, track = name.split("/")
    return int(label), int(track)
