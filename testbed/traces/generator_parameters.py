"""The trace generator's parameters, one set a kind, and their JSON file.

`testbed.traces.generator` says what they mean together; ``assets/trace_models.json`` holds those
shipped.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from cnn.common.errors import DataError
from cnn.common.outside import MAX_JSON_BYTES, file_bytes, json_object, refusing

KINDS: Final = ("urban-5g", "highway-lte", "poor-coverage")

GRID: Final = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
"""Probabilities at which quantile functions are kept; linear between them."""


@dataclass(frozen=True, slots=True)
class LevelModel:
    """One level of the capacity.

    Attributes:
        share: fraction of the time outside outages, also the chance to start in it.
        capacity_mbps: quantiles at `GRID`.
        steadiness: share of z's variance in an AR(1) process; the rest is fresh each step.
        persistence: correlation of that process from one step to the next.
        dwell_shape: Weibull shape of the time in the level.
        dwell_scale_s: Weibull scale, seconds.
        following: per level, chance to be the next one (0 for itself).
        outages_per_s: onsets for each second in the level outside outages.
        outage_s: quantiles of their lengths at `GRID`, seconds.
    """

    share: float
    capacity_mbps: tuple[float, ...]
    steadiness: float
    persistence: float
    dwell_shape: float
    dwell_scale_s: float
    following: tuple[float, ...]
    outages_per_s: float
    outage_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RttModel:
    """The base round trip.

    Attributes:
        step_s: spacing at which it was fitted, seconds.
        base_ms: quantiles at `GRID` of the bases of the measured series.
        ratio: quantiles at `GRID` of round trip over its series' base, outside stalls.
        steadiness: share of y's variance in an AR(1) process; the rest is fresh each step.
        persistence: correlation of that process from one step to the next.
        stalls_per_s: mean onsets a second.
        stall_clumping: shape of the gamma distribution (mean 1) of a trace's own onset rate
            over the mean one; small means few traces have most stalls.
        stall_ms: quantiles at `GRID` of their lengths.
    """

    step_s: float
    base_ms: tuple[float, ...]
    ratio: tuple[float, ...]
    steadiness: float
    persistence: float
    stalls_per_s: float
    stall_clumping: float
    stall_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TraceModel:
    """Everything the generator needs for one kind.

    Attributes:
        kind: such as ``urban-5g``.
        tech: ``5G`` or ``LTE``.
        step_s: spacing at which the capacity was fitted; it is constant within a step.
        levels: from low to high.
        rtt: round trips.
        provenance: sets, drives, counts, command and date of the fit.
    """

    kind: str
    tech: str
    step_s: float
    levels: tuple[LevelModel, ...]
    rtt: RttModel
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> TraceModel:
        """A model from `to_json`'s dictionary; raises `DataError` if it is not one."""
        try:
            levels = tuple(LevelModel(**_tuples(level)) for level in raw["levels"])
            rtt = RttModel(**_tuples(raw["rtt"]))
            rest = {k: raw[k] for k in ("kind", "tech", "step_s", "provenance")}
            return cls(levels=levels, rtt=rtt, **rest)
        except (KeyError, TypeError) as error:
            raise DataError(
                f"trace model: {error}",
                expected="parameters written by benchmarks/fit_trace_models.py",
                hint="fit the models again",
            ) from error


def load_models(path: Path | None = None) -> dict[str, TraceModel]:
    """Models by kind, from a file or (None) the ones shipped."""
    with refusing(
        DataError,
        f"trace models {path or 'shipped with the package'}",
        expected="parameters written by benchmarks/fit_trace_models.py",
        hint="install the package again, or fit the models again",
    ):
        if path is None:
            data = resources.files("testbed").joinpath("assets/trace_models.json").read_bytes()
        else:
            data = file_bytes(path, MAX_JSON_BYTES)
        models = [TraceModel.from_json(model) for model in json_object(data)["models"]]
    return {model.kind: model for model in models}


@cache
def shipped_models() -> dict[str, TraceModel]:
    """The models shipped, read once; not to be changed."""
    return load_models()


def _tuples(raw: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
