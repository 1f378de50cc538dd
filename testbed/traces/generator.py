"""A generator of network traces, fitted to measured ones.

The capacity switches between levels (semi-Markov, Weibull dwell times). Within level k it is
``Q_k(Phi(z))``, where z is a Gaussian AR(1) process plus fresh noise and Q_k the level's
quantile function, so that each level has the measured distribution and correlation. Outages
lie over the levels: each level has its own rate of onsets and its own lengths.

The round trip is a base (drawn once a trace) times ``R(Phi(y))`` with y another such process
and R a quantile function, plus stalls: packets sent while the link stalls for h ms all arrive
when it ends, so a packet sent t ms into the stall waits h - t. (Spikes look like this in
every set.) Capacity and round trip are independent: they were never measured together.

`testbed.traces.generator_fit` fits the parameters; ``assets/trace_models.json`` holds those
shipped, and a file of `sliproad testbed traces fit` one kind of your own.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError, DataError
from cnn.common.outside import MAX_JSON_BYTES, file_bytes, json_object, refusing
from testbed.traces.measured import RoundTrips
from testbed.traces.series import Floats, Series, resample, tile
from testbed.traces.trace import Trace

KINDS: Final = ("urban-5g", "highway-lte", "poor-coverage")

GRID: Final = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
"""Probabilities at which quantile functions are kept; linear between them."""

MAX_TRACE_S: Final = 24 * 3600.0
"""Longest trace that is generated, seconds."""

KIND_SUFFIX: Final = ".json"
"""A kind with this ending is the path of a file."""

_WRITERS: Final = "`sliproad testbed traces fit`, or by benchmarks/fit_trace_models.py"
_AGAIN: Final = "fit it again"


@dataclass(frozen=True, slots=True)
class LevelModel:
    """One level of the capacity.

    Attributes:
        share: fraction of the time outside outages, also the probability to start in it.
        capacity_mbps: quantiles at `GRID`.
        steadiness: share of z's variance in an AR(1) process; the rest is fresh each step.
        persistence: correlation of that process from one step to the next.
        dwell_shape: Weibull shape of the time in the level.
        dwell_scale_s: Weibull scale, seconds.
        following: per level, probability to be the next one (0 for itself).
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
            model = cls(levels=levels, rtt=rtt, **rest)
            _check(model)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"trace model: {error}", expected=f"parameters written by {_WRITERS}", hint=_AGAIN
            ) from error
        return model


def load_models(path: Path | None = None) -> dict[str, TraceModel]:
    """Models by kind, from a file or (None) the shipped ones."""
    with refusing(
        DataError,
        f"trace models {path or 'shipped with the package'}",
        expected=f"parameters written by {_WRITERS}",
        hint="install the package again" if path is None else _AGAIN,
    ):
        if path is None:
            data = resources.files("testbed").joinpath("assets/trace_models.json").read_bytes()
        else:
            data = file_bytes(path, MAX_JSON_BYTES)
        models = [TraceModel.from_json(model) for model in json_object(data)["models"]]
    return {model.kind: model for model in models}


@cache
def shipped_models() -> dict[str, TraceModel]:
    """The shipped models, read once; do not change them."""
    return load_models()


def model_of(kind: str) -> TraceModel:
    """The model of a shipped kind, or of the file whose path (ending in .json) is given.

    Raises:
        ConfigError: unknown kind.
        DataError: the file cannot be read, or does not hold one kind.
    """
    if not kind.endswith(KIND_SUFFIX):
        models = shipped_models()
        if kind not in models:
            raise ConfigError(
                f"trace kind {kind!r}",
                expected=f"one of {', '.join(models)}, or the path of a file ({KIND_SUFFIX})",
                hint="correct the kind",
            )
        return models[kind]
    found = load_models(Path(kind))
    if len(found) != 1:
        raise DataError(
            f"{kind}: {len(found)} kinds ({', '.join(found)})",
            expected="one",
            hint="write it with `sliproad testbed traces fit`",
        )
    return next(iter(found.values()))


def _check(model: TraceModel) -> None:
    """Raise `ValueError` for parameters with which no trace can be made."""
    levels, rtt = model.levels, model.rtt
    for name in (model.kind, model.tech):
        if not isinstance(name, str):
            raise ValueError(f"{name} instead of a text")
    if model.tech not in ("5G", "LTE") or not isinstance(model.provenance, dict):
        raise ValueError(f"tech {model.tech}, or provenance that is no table")
    grids = [g for one in levels for g in (one.capacity_mbps, one.outage_s)]
    for grid in (*grids, rtt.base_ms, rtt.ratio, rtt.stall_ms):
        if len(grid) != len(GRID) or not (np.diff(grid) >= 0).all() or not grid[0] >= 0:
            raise ValueError(f"{len(grid)} quantiles, or not rising from 0 up")
    follow = [p for one in levels for p in one.following]
    numbers = np.array(
        [value for one in levels for value in (one.share, one.outages_per_s)]
        + [*follow, *(g[-1] for g in grids), rtt.base_ms[-1], rtt.ratio[-1], rtt.stall_ms[-1]]
        + [rtt.stalls_per_s],
        np.float64,
    )
    above_0 = np.array(
        [value for one in levels for value in (one.dwell_shape, one.dwell_scale_s)]
        + [model.step_s, rtt.step_s, rtt.stall_clumping],
        np.float64,
    )
    processes: list[LevelModel | RttModel] = [*levels, rtt]
    within = np.array(
        [value for one in processes for value in (one.steadiness, one.persistence)], np.float64
    )
    if not (np.isfinite(numbers).all() and (numbers >= 0).all()):
        raise ValueError("a number that is negative or not finite")
    if not (np.isfinite(above_0).all() and (above_0 > 0).all()):
        raise ValueError("a time, a shape or a spacing that is not above 0")
    if min(model.step_s, rtt.step_s) < 1e-3:
        raise ValueError("a spacing below 1 ms")
    if not ((within >= 0) & (within <= 1)).all():
        raise ValueError("a correlation outside 0..1")
    if any(len(one.following) != len(levels) or not sum(one.following) > 0 for one in levels):
        raise ValueError("levels that do not say which one follows")
    if not any(one.share > 0 and one.capacity_mbps[-1] > 0 for one in levels):
        raise ValueError("no level with any capacity")


def _tuples(raw: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}


def generate_trace(kind: str, seed: int, duration_s: float = 120.0, period_s: float = 0.1) -> Trace:
    """A trace of a kind; equal arguments give equal traces.

    Args:
        kind: one of `testbed.traces.generator.KINDS`, or the path of a file, see `model_of`.
        seed: any whole number from 0 up.
        duration_s: length of one pass, at least one period.
        period_s: spacing of the samples, seconds.

    Raises:
        ConfigError: unknown kind, or a duration or period out of range.
        DataError: the kind's file cannot be read.
    """
    model = model_of(kind)
    if seed < 0:
        raise ConfigError(f"seed {seed}", expected="0 or more", hint="give another seed")
    return generate(model, seed, duration_s, period_s)


def generate(model: TraceModel, seed: int, duration_s: float, period_s: float) -> Trace:
    """As `generate_trace`, from a given model."""
    if not (0 < period_s <= duration_s <= MAX_TRACE_S):
        raise ConfigError(
            f"duration {duration_s} s, period {period_s} s",
            expected=f"0 < period <= duration <= {MAX_TRACE_S:.0f} s",
            hint="correct them",
        )
    capacity_rng, rtt_rng = np.random.default_rng(seed).spawn(2)
    samples = round(duration_s / period_s)
    capacity = np.zeros(0)
    while capacity.max(initial=0.0) <= 0:  # a short trace may be one outage: draw again
        capacity = _evenly(_capacity(model, capacity_rng, duration_s), model.step_s, period_s)
    rtt = _evenly(_rtt(model.rtt, rtt_rng, duration_s), model.rtt.step_s, period_s)
    return Trace(
        uplink_mbps=capacity[:samples],
        rtt_ms=rtt[:samples],
        period_s=period_s,
        name=f"generated:{model.kind}:{seed}",
        tech=model.tech,
        source=f"generated: model {model.kind}, seed {seed}",
    )


def round_trips_of(model: TraceModel) -> RoundTrips:
    """Base round trips as a model generates them, for traces without their own.

    A trace's name is the seed. Traces above `MAX_TRACE_S` repeat them.
    """

    def made(name: str, count: int, period_s: float) -> tuple[Floats, str]:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        duration_s = min(count * period_s, MAX_TRACE_S)
        rtt = _evenly(_rtt(model.rtt, rng, duration_s), model.rtt.step_s, period_s)
        return tile(rtt, count), f"round trips generated by the model of {model.kind}"

    return made


def _evenly(values: Floats, step_s: float, period_s: float) -> Floats:
    time: Floats = step_s * np.arange(len(values), dtype=np.float64)
    return resample(Series("", "", "ul", "", "", "", time, values, step_s), period_s)


def _steps(duration_s: float, step_s: float) -> int:
    return math.ceil(duration_s / step_s) + 1  # one extra, so that no sample is missing


def _capacity(model: TraceModel, rng: np.random.Generator, duration_s: float) -> Floats:
    count = _steps(duration_s, model.step_s)
    level = _levels(model, rng, count)
    steadiness = np.array([one.steadiness for one in model.levels])[level]
    persistence = np.array([one.persistence for one in model.levels])[level]
    u = phi(scores(rng, steadiness, persistence))
    capacity = np.zeros(count)
    for k, one in enumerate(model.levels):
        here = level == k
        capacity[here] = np.interp(u[here], GRID, one.capacity_mbps)
    capacity[_outages(model, rng, level)] = 0.0
    return capacity


def _levels(model: TraceModel, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """The level of each step."""
    shares = np.array([one.share for one in model.levels])
    k = int(rng.choice(len(shares), p=shares / shares.sum()))
    level = np.empty(count, np.int64)
    at = 0
    dwell_s = _started_earlier(model.levels[k], rng)
    while at < count:
        end = at + max(1, round(dwell_s / model.step_s))
        level[at:end] = k
        at = end
        chance = np.array(model.levels[k].following)
        k = int(rng.choice(len(shares), p=chance / chance.sum()))
        dwell_s = model.levels[k].dwell_scale_s * rng.weibull(model.levels[k].dwell_shape)
    return level


def _started_earlier(level: LevelModel, rng: np.random.Generator) -> float:
    """The rest of a stay that began before the trace: long stays are more likely."""
    stays = level.dwell_scale_s * rng.weibull(level.dwell_shape, 64)
    return float(rng.choice(stays, p=stays / stays.sum()) * rng.random())


def _outages(
    model: TraceModel, rng: np.random.Generator, level: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which steps are outages."""
    chance = np.array([one.outages_per_s * model.step_s for one in model.levels])
    out = np.zeros(len(level), bool)
    draws = rng.random(len(level))
    at = 0
    while at < len(level):
        onsets = np.flatnonzero(draws[at:] < chance[level[at:]])
        if len(onsets) == 0:
            break
        start = at + int(onsets[0])
        length_s = np.interp(rng.random(), GRID, model.levels[level[start]].outage_s)
        end = start + max(1, round(length_s / model.step_s))
        out[start:end] = True
        at = end + 1  # the step after an outage is by definition none
    return out


def _rtt(model: RttModel, rng: np.random.Generator, duration_s: float) -> Floats:
    count = _steps(duration_s, model.step_s)
    base_ms = float(np.interp(rng.random(), GRID, model.base_ms))
    steady, persistent = np.full(count, model.steadiness), np.full(count, model.persistence)
    u = phi(scores(rng, steady, persistent))
    rtt = base_ms * np.interp(u, GRID, model.ratio)
    rate = model.stalls_per_s * rng.gamma(model.stall_clumping, 1 / model.stall_clumping)
    step_ms = model.step_s * 1e3
    wait_ms = 0.0
    onset = rng.random(count) < 1 - math.exp(-rate * model.step_s)
    lengths = np.interp(rng.random(count), GRID, model.stall_ms)
    for i in range(count):
        wait_ms = max(wait_ms - step_ms, lengths[i] if onset[i] else 0.0)
        rtt[i] += wait_ms
    return rtt


def scores(rng: np.random.Generator, steadiness: Floats, persistence: Floats) -> Floats:
    """Standard normal scores: an AR(1) process and fresh noise, weighted by `steadiness`.

    Args:
        rng: source of the noise.
        steadiness: float64 (n,), share of the variance that is the AR(1) process.
        persistence: float64 (n,), `persistence[i]` links its element i to the one before.
    """
    push = rng.standard_normal(len(persistence)) * np.sqrt(1 - persistence**2)
    slow = np.empty(len(persistence))
    last = rng.standard_normal()
    for i, (keep, new) in enumerate(zip(persistence.tolist(), push.tolist(), strict=True)):
        last = keep * last + new
        slow[i] = last
    fresh = rng.standard_normal(len(persistence))
    return np.asarray(np.sqrt(steadiness) * slow + np.sqrt(1 - steadiness) * fresh)


def phi(z: Floats) -> Floats:
    """Standard normal distribution function."""
    return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in z.tolist()])
