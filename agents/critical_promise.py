"""What a certificate promises of the signs of critical classes alone, beside that for all signs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agents.certificate import Critical, sign_means, signs_needed
from agents.loss_bounds import upper_bound
from cnn.calibration_tracks import signs_of
from cnn.common.errors import DataError, require
from offload_env.world import World

_ROOM: Final = 1.25
"""Margin of a division over the least that its signs could certify, if that is above the margin."""


@dataclass(frozen=True, slots=True)
class CriticalPromise:
    """What is promised of the signs of critical classes alone, beside the promise for all.

    Attributes:
        classes: of the scenario.
        margin: highest mean loss of their signs.
        floor: accuracy of the main exit over them, each counted once, less the margin.
        signs: calibration signs of these classes.
        signs_needed: that could certify this margin, had none a loss.
        smallest_margin: upper bound of the most careful candidate's mean loss on them.
        splits_margin: margin in the divisions of the signs.
    """

    classes: tuple[int, ...]
    margin: float
    floor: float
    signs: int
    signs_needed: int
    smallest_margin: float
    splits_margin: float

    def as_json(self) -> dict[str, Any]:
        """The attributes."""
        return {**asdict(self), "classes": list(self.classes)}


def main_accuracy(world: World) -> NDArray[np.float64]:
    """Of the main exit on each sign, float64 (n_signs,)."""
    return sign_means(world, np.arange(len(world.table)), world.correct[:, world.topology.main])


def splits_margin(margin: float, signs: int, level: float) -> float:
    """Margin that half of the signs could certify, if that is above the one asked for."""
    half = signs // 2
    if not half:
        return 1.0
    least = upper_bound(np.zeros(half), level, fresh=signs - half)
    return max(margin, min(_ROOM * least, 1.0))


def critical_of(world: World, margin: float | None) -> Critical | None:
    """What is to be promised of critical classes.

    Raises:
        ConfigError: if there is a margin without such classes, or it is not between 0 and 1.
        DataError: if no calibration sign is of such a class.
    """
    constraint = world.scenario.constraint
    if not constraint.critical_classes:
        require(
            margin is None,
            f"a margin of critical classes, of which {world.scenario.name} has none",
            "[constraint] critical_classes in the scenario",
            "leave the margin out, or name the classes",
        )
        return None
    margin = constraint.critical_margin if margin is None else margin
    require(
        0.0 < margin < 1.0,
        f"margin {margin:g} of critical classes",
        "between 0 and 1",
        "give it with --critical-margin",
    )
    table = world.table
    signs = np.zeros(int(signs_of(table).max()) + 1, np.bool_)
    signs[signs_of(table)[table.track[world.critical]]] = True
    if not signs.any():
        raise DataError(
            f"frame table ({table.source}) without a sign of the critical classes",
            expected=f"signs of class {', '.join(map(str, constraint.critical_classes))}",
            hint="give a table of more tracks",
        )
    return Critical(signs, margin)


def promised(
    world: World, critical: Critical | None, careful: NDArray[np.float64], level: float
) -> tuple[CriticalPromise | None, Critical | None]:
    """What is said of the critical classes, and what is promised of them in the divisions."""
    if critical is None:
        return None, None
    n = int(critical.signs.sum())
    divided = splits_margin(critical.margin, n, level)
    promise = CriticalPromise(
        classes=world.scenario.constraint.critical_classes,
        margin=critical.margin,
        floor=float(main_accuracy(world)[critical.signs].mean()) - critical.margin,
        signs=n,
        signs_needed=signs_needed(critical.margin, level),
        smallest_margin=upper_bound(careful[critical.signs], level),
        splits_margin=divided,
    )
    return promise, replace(critical, margin=divided)
