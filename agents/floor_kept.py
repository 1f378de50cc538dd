"""Whether a policy keeps its accuracy floor, and how well: by drive, by track and by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from offload_env.outcome import Number
from offload_env.world import World

Floats = NDArray[np.float64]

ROUNDING: Final = 1e-9
"""Means of the same answers in another order differ by this at most; one wrong answer in a
billion frames would be as much."""


def keeps(accuracy: float, floor: float) -> bool:
    """Whether an accuracy is at least a floor, up to the rounding of the two means."""
    return accuracy >= floor - ROUNDING


def rank(cost: float, accuracy: float, floor: float) -> tuple[bool, float]:
    """Sorts the best first: the cheapest that keeps the floor, or else the most accurate."""
    kept = keeps(accuracy, floor)
    return not kept, cost if kept else -accuracy


@dataclass(frozen=True, slots=True)
class FloorKept:
    """Accuracies above or below what is required, each on the very frames driven.

    Required is full local processing's accuracy on the same frames less the scenario's margin, or
    the scenario's explicit floor.

    Attributes:
        drives_below: share of single drives whose accuracy is below the required one.
        worst_drive: number of the drive that is furthest below, or least above.
        worst_drive_over: its accuracy less the required one.
        tracks_below: share of the resamplings of whole tracks, with replacement, in which the mean
            accuracy is below the required one.
        worst_class: the class that loses most against full local processing; None if the frames
            have no classes.
        worst_class_loss: full local processing's accuracy on its frames less the policy's; 0
            without classes.
        classes: accuracy by class, for every class that was driven past.
    """

    drives_below: float
    worst_drive: int
    worst_drive_over: float
    tracks_below: float
    worst_class: int | None
    worst_class_loss: float
    classes: dict[int, float]

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {name: getattr(self, name) for name in self.__slots__}


def floor_kept(
    world: World, rows: NDArray[np.int64], correct: NDArray[Any], weights: Floats
) -> FloorKept:
    """See `FloorKept`.

    Args:
        world: whose table the rows are of.
        rows: int64 (B, T), frames of B drives.
        correct: (B, T), whether the answers are right, or their qualities.
        weights: float64 (n, tracks driven past), each row one resampling of the tracks.
    """
    main = world.correct[rows, world.topology.main].astype(np.float64)
    over = correct - required(world, main)
    drives = over.mean(1)
    track = track_places(world, rows)
    by_track = np.bincount(track, over.ravel())
    resampled = (weights @ by_track) / (weights @ np.bincount(track))
    worst = int(drives.argmin())
    accuracy, loss = _by_class(world.table.label[rows], correct, main)
    worst_class = max(loss, key=lambda label: loss[label], default=None)
    return FloorKept(
        drives_below=float((drives < -ROUNDING).mean()),
        worst_drive=worst,
        worst_drive_over=float(drives[worst]),
        tracks_below=float((resampled < -ROUNDING).mean()),
        worst_class=worst_class,
        worst_class_loss=0.0 if worst_class is None else loss[worst_class],
        classes=accuracy,
    )


def track_places(world: World, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of each frame's track among the tracks driven past, int64 (frames,), for all `rows`."""
    _, track = np.unique(world.table.track[rows], return_inverse=True)
    places: NDArray[np.int64] = track.ravel()
    return places


def tracks_driven(world: World, rows: NDArray[np.int64]) -> int:
    """Number of different tracks among the frames `rows`."""
    return len(np.unique(world.table.track[rows]))


def required(world: World, main: Number) -> Number | float:
    """Accuracy required on frames, from the main exit's on them (a mean, or one a frame)."""
    constraint = world.scenario.constraint
    if constraint.accuracy_floor > 0:
        return constraint.accuracy_floor
    return main - constraint.accuracy_margin


def _by_class(
    label: NDArray[np.int16], correct: NDArray[Any], main: Floats
) -> tuple[dict[int, float], dict[int, float]]:
    """Accuracy of each class, and how much of the main exit's it loses."""
    known = label >= 0
    classes, at = np.unique(label[known], return_inverse=True)
    frames = np.bincount(at)
    right, local = np.bincount(at, correct[known]), np.bincount(at, main[known])
    accuracy, loss = right / frames, (local - right) / frames
    names = classes.tolist()
    return (
        dict(zip(names, accuracy.tolist(), strict=True)),
        dict(zip(names, loss.tolist(), strict=True)),
    )
