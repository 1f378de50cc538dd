"""Which frames look as few of the training frames do.

Brightness, contrast and sharpness of a frame are known before any decision. Blur, fog, night or a
dirty lens change how they go together, often long before the network's confidence falls. The
training frames give a centre and a spread of the three, and a frame beyond the distance that one
in twenty of them exceeds is *strange*. Whether too many are strange is the monitor's
question (`testbed.deploy.loss_monitor`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import BundleError
from cnn.common.outside import refusing

PICTURES: Final = "share of a track's frames that look as few of training"
"""Name of the evidence in a policy file."""
_USED: Final = 3
"""Brightness, contrast and sharpness; the size of the crop says nothing about the picture."""
_STRANGE: Final = 0.05
"""Share of the training frames that count as strange."""
_LEAST_SPREAD: Final = 1e-3
"""Standard deviation. Features that do not vary were not measured (imported tables)."""
_DARK: Final = 5e-3
"""Of the scaled contrast's 0 to 2: a spread of luma of 0.001, below which its logarithm tells
nothing."""


@dataclass(frozen=True, slots=True)
class PictureReference:
    """Centre, spread and edge of the training frames' features.

    Attributes:
        centre: float64 (3,).
        precision: float64 (3, 3), inverse covariance.
        edge: squared Mahalanobis distance beyond which a frame is strange.
    """

    centre: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    edge: float

    @classmethod
    def of(cls, features: NDArray[np.float32]) -> Self | None:
        """Of training frames; None if their features do not vary.

        Args:
            features: float32 (N, 3 or more), scaled as in the observation: brightness, contrast,
                sharpness.
        """
        seen = _logs(features)
        if len(seen) < 2 or seen.std(0).min() < _LEAST_SPREAD:
            return None
        centre = seen.mean(0)
        covariance = np.cov(seen.T) + _LEAST_SPREAD**2 * np.eye(_USED)
        precision = np.asarray(np.linalg.inv(covariance), np.float64)
        edge = np.quantile(_distances(seen - centre, precision), 1.0 - _STRANGE)
        return cls(tuple(centre.tolist()), tuple(map(tuple, precision.tolist())), float(edge))

    def strange(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """1 for each frame beyond the edge, else 0: float64 (N,).

        Args:
            features: as in `of`.
        """
        away = _logs(features) - np.array(self.centre)
        return (_distances(away, np.array(self.precision)) > self.edge).astype(np.float64)

    def to_json(self) -> dict[str, Any]:
        """The attributes."""
        return {"centre": self.centre, "precision": self.precision, "edge": self.edge}

    @classmethod
    def of_json(cls, raw: Mapping[str, Any]) -> Self:
        """What `to_json` gave.

        Raises:
            BundleError: if it is something else.
        """
        with refusing(
            BundleError,
            "policy file with unusable pictures in its certificate's monitor",
            expected="what `sliproad agent certify` writes",
            hint="certify the policy again",
        ):
            centre = np.array(raw["centre"], np.float64)
            precision = np.array(raw["precision"], np.float64)
            edge = float(raw["edge"])
            if centre.shape != (_USED,) or precision.shape != (_USED, _USED):
                raise ValueError(f"centre {centre.shape} and precision {precision.shape}")
            if not (np.isfinite(centre).all() and np.isfinite(precision).all() and edge > 0):
                raise ValueError("a figure that is not finite, or an edge that is not above 0")
            np.linalg.cholesky(precision)
            return cls(tuple(centre.tolist()), tuple(map(tuple, precision.tolist())), edge)


def _logs(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Brightness, the logarithm of the contrast, and the scaled logarithm of sharpness: (N, 3).

    Blur halves sharpness in dark and bright pictures alike, and contrast spreads over decades.
    """
    used = np.asarray(features, np.float64)[:, :_USED].copy()
    used[:, 1] = np.log(used[:, 1] + 1.0 + _DARK)
    return used


def _distances(away: NDArray[np.float64], precision: NDArray[np.float64]) -> NDArray[np.float64]:
    squared: NDArray[np.float64] = np.einsum("ni,ij,nj->n", away, precision, away)
    return squared
