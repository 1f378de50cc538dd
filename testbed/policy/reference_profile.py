"""The reference profile of a policy: figures of validation drives, window by window.

A single frame says little, so the profile holds means over `window` successive frames:
how high the delay and energy of a window, and how low its confidence, went in drives that
the policy was not trained on. It is stored in the policy file (``metrics.promise``), and a
device's guard compares the policy with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnn.common.errors import MAX_INT, BundleError
from cnn.common.outside import refusing
from cnn.topology import Topology

if TYPE_CHECKING:
    from testbed.policy.observation_fields import Field

RANGES: Final = {
    "delay_ms": (0.0, 1e9),
    "energy_mj": (0.0, 1e12),
    "confidence": (0.0, 1.0),
    "miss_rate": (0.0, 1.0),
    "uplink_mbps": (0.0, 1e6),
    "rtt_ms": (0.0, 1e9),
}
"""Smallest and largest window mean of each quantity that a profile may state."""
QUANTITIES: Final = tuple(RANGES)
LEVELS: Final = (0.01, 0.05, 0.5, 0.95, 0.99)
"""Quantiles of window means that are kept; the guard's limits are the outer ones."""
WINDOW: Final = 30
MAX_WINDOW: Final = 10_000
"""Maximum frames of a window; a guard keeps them in memory and adds them up at every frame."""
_MAX_NAME: Final = 200
_ROUNDED: Final = 1e-6
"""Tolerance of a share beyond 0..1: sums of shares are rounded."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ReferenceProfile:
    """Quantiles (at `LEVELS`) of window means, and the mix of actions.

    Attributes:
        window: frames of a window.
        windows: number of windows behind the figures.
        quantiles: five figures for each of `QUANTITIES`; a quantity that was not
            available is absent. ``uplink_mbps`` and ``rtt_ms`` are the device's own estimates.
        actions: share of each of the network's actions.
        action_shift: total variation distance between a window's mix and `actions` that
            99 % of windows kept within.
        energy_source: meter of the energies; other sources are not comparable.

    Raises:
        ValueError: if a figure is missing, of another type, not finite, or out of its range.
    """

    window: int
    windows: int
    quantiles: Mapping[str, tuple[float, ...]]
    actions: tuple[float, ...]
    action_shift: float
    energy_source: str = ""

    def __post_init__(self) -> None:
        for name, value, most in (
            ("window", self.window, MAX_WINDOW),
            ("windows", self.windows, MAX_INT),
        ):
            if type(value) is not int or not 0 < value <= most:
                raise ValueError(f"{name} is no whole number from 1 to {most}")
        if not set(self.quantiles) <= set(QUANTITIES):
            raise ValueError("a quantity that is not known")
        for name, figures in self.quantiles.items():
            low, high = RANGES[name]
            _check(name, figures, len(LEVELS), low - _ROUNDED, high + _ROUNDED)
            if any(after < before for before, after in pairwise(figures)):
                raise ValueError(f"quantiles of {name} that do not ascend")
        if not self.actions:
            raise ValueError("no share of any action")
        _check("actions", self.actions, len(self.actions), -_ROUNDED, 1 + _ROUNDED)
        _check("action_shift", (self.action_shift,), 1, -_ROUNDED, 1 + _ROUNDED)
        if type(self.energy_source) is not str or len(self.energy_source) > _MAX_NAME:
            raise ValueError("energy_source is no short text")

    def low(self, quantity: str) -> float | None:
        """The window mean that 1 % of windows fell below; None if not in the profile."""
        found = self.quantiles.get(quantity)
        return None if found is None else found[0]

    def high(self, quantity: str) -> float | None:
        """The window mean that 1 % of windows exceeded; None if not in the profile."""
        found = self.quantiles.get(quantity)
        return None if found is None else found[-1]

    def to_json(self) -> dict[str, Any]:
        """Its form in a policy file."""
        return {**asdict(self), "levels": list(LEVELS)}

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> Self | None:
        """The reference profile in a policy file's manifest; None if it has none.

        Raises:
            BundleError: if the entry is not a reference profile of the policy's network.
        """
        with refusing(
            BundleError,
            "policy file with an unusable promise",
            expected="the figures that `sliproad agent train` writes",
            hint="train or export the policy again",
        ):
            metrics = manifest.get("metrics") or {}
            raw = metrics.get("promise")
            if raw is None:
                return None
            n_actions = Topology.stored_in(manifest).n_actions
            if len(raw["actions"]) != n_actions:
                raise ValueError(f"shares of {len(raw['actions'])} actions, not of {n_actions}")
            return cls(
                window=raw["window"],
                windows=raw["windows"],
                quantiles={name: tuple(figures) for name, figures in raw["quantiles"].items()},
                actions=tuple(raw["actions"]),
                action_shift=raw["action_shift"],
                energy_source=raw.get("energy_source", ""),
            )

    @classmethod
    def of_drives(
        cls,
        quantities: Mapping[str, ArrayLike],
        actions: ArrayLike,
        *,
        n_actions: int,
        window: int = WINDOW,
        energy_source: str = "",
    ) -> Self:
        """The reference profile of drives of T frames, B of them.

        Args:
            quantities: (B, T) for each of `QUANTITIES` that is known; NaN where a frame
                has no value.
            actions: int (B, T), canonical numbers.
            n_actions: of the network.
            window: frames of a window, at most T.
            energy_source: meter of the energies.
        """
        taken = np.asarray(actions, np.int64)
        means = {name: window_means(values, window) for name, values in quantities.items()}
        mix = np.stack([window_means(taken == a, window) for a in range(n_actions)])
        overall = np.bincount(taken.ravel(), minlength=n_actions) / taken.size
        shift = 0.5 * np.abs(mix - overall[:, None]).sum(0)
        return cls(
            window=window,
            windows=mix.shape[1],
            quantiles={
                name: tuple(float(x) for x in np.nanquantile(values, LEVELS))
                for name, values in means.items()
            },
            actions=tuple(float(x) for x in overall),
            action_shift=float(np.quantile(shift, 0.99)),
            energy_source=energy_source,
        )


def unscaled(field: Field, scaled: Any) -> Any:
    """Raw values of an observation's element in [-1, 1]; clipped values stay clipped."""
    share = (scaled + 1) / 2
    if field.scale == "log":
        return field.low * (field.high / field.low) ** share
    return field.low + share * (field.high - field.low)


def _check(name: str, figures: tuple[float, ...], n: int, low: float, high: float) -> None:
    """Raise ValueError unless there are `n` figures, each a number from `low` to `high`."""
    numbers = all(type(x) in (int, float) for x in figures)  # a bool is no figure
    if len(figures) != n or not numbers or not all(low <= x <= high for x in figures):
        raise ValueError(f"{name} is not {n} number(s) from {low:g} to {high:g}")


def window_means(values: ArrayLike, window: int) -> Floats:
    """Means over every run of `window` successive frames of a drive, float64 (N,).

    Args:
        values: (B, T); a NaN is left out of its windows' means.
        window: at most T. A window of NaN alone is left out.
    """
    x = np.asarray(values, np.float64)
    if not 0 < window <= x.shape[1]:
        raise ValueError(f"window of {window} frames in drives of {x.shape[1]}")
    known = ~np.isnan(x)
    total, count = (
        np.diff(np.pad(np.cumsum(part, axis=1), ((0, 0), (1, 0))), axis=1, n=0)
        for part in (np.where(known, x, 0.0), known)
    )
    total, count = total[:, window:] - total[:, :-window], count[:, window:] - count[:, :-window]
    kept = count > 0
    means: Floats = total[kept] / count[kept]
    return means
