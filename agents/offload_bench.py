"""OffloadBench: frozen scenarios, and what a submission costs beside the bound and the baselines.

All figures are those of `agents.evaluation.evaluate`; added are the hashes of every input,
intervals by track, the distances, and a record from which a submission's figures follow again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agents.baselines.tuning import choose, measure
from agents.evaluation import (
    CLAIRVOYANT,
    Evaluation,
    Interval,
    evaluate,
    interval,
    resamples,
)
from agents.floor_kept import required
from agents.submission import NAME, Recorded, Replayed, Submission
from agents.train_config import MARGIN
from offload_env.episode import episode_keys
from offload_env.world import World
from testbed.policy.policies import Policy

Floats = NDArray[np.float64]
VERSION: Final = "1"
"""Changes whenever a frozen input or a rule of the figures does."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is driven.

    Attributes:
        drives: test drives of a scenario.
        tuning_drives: training drives a baseline's candidates are measured on.
        seed: of both and of the bootstrap.
    """

    drives: int
    tuning_drives: int
    seed: int = 0


WHOLE: Final = Size(128, 64)
QUICK: Final = Size(24, 12)
"""Its test drives are the first of `WHOLE`'s."""

Worlds = tuple[World, World]
"""Training and test world of a scenario."""


def input_hashes(worlds: Worlds) -> dict[str, str]:
    """SHA-256 of everything that goes into a scenario's figures, by name, hexadecimal.

    An array counts with its type, shape and bytes (little-endian), a number with all its digits.
    What is drawn through exponentials counts with its first 16 bits: processors compute the last
    one differently.
    """
    train = worlds[0]
    scenario = asdict(train.scenario)
    del scenario["description"]
    cost = {k: v for k, v in asdict(train.cost).items() if k not in ("source", "power_source")}
    if not cost["radio"]["promotion_ms"]:  # hashed as before there was this figure
        del cost["radio"]["promotion_ms"]
    out = {"scenario": _hash(scenario), "cost_model": _hash(cost)}
    for world in worlds:
        table, split = world.table, world.split
        frames: list[NDArray[Any]] = [
            table.label,
            table.track,
            table.frame,
            table.prediction,
            table.confidence,
        ]
        frames += [table.payload_bytes, table.features]
        if table.quality is not None:
            frames.append(table.quality)
        network = [table.bundle_hash, table.topology.to_json()]
        out[f"{split}_frames"] = _hash(network, *frames)
        links = [_coarse(array) for t in world.traces for array in (t.uplink_mbps, t.rtt_ms)]
        out[f"{split}_traces"] = _hash([(t.period_s, t.tech) for t in world.traces], *links)
        noise = (world.server_work_ms, world.device_jitter, world.server_jitter)
        out[f"{split}_noise"] = _hash([], *map(_coarse, noise))
    out["drives"] = _hash([], drive_keys(WHOLE), tuning_keys(WHOLE))
    return out


def _coarse(array: NDArray[Any]) -> NDArray[np.float64]:
    mantissa, exponent = np.frexp(array.astype(np.float64))
    coarse: NDArray[np.float64] = np.ldexp(np.rint(mantissa * 2**16), exponent - 16)
    return coarse


def _hash(values: object, *arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
    for array in arrays:
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{little.dtype.str}{little.shape}".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


def drive_keys(size: Size) -> NDArray[np.uint64]:
    """Keys of the test drives, as `evaluate` draws them."""
    return episode_keys(size.seed + 7, size.drives)


def tuning_keys(size: Size) -> NDArray[np.uint64]:
    """Keys of the training drives on which candidates are measured."""
    return episode_keys(size.seed, size.tuning_drives)


def chosen(submission: Submission, world: World, size: Size) -> Policy:
    """The submission's policy: the best of its candidates on training drives, as of a baseline."""
    candidates = submission.candidates(world)
    if len(candidates) == 1:
        return candidates[0]
    keys, floor = tuning_keys(size), world.accuracy_floor + MARGIN
    return choose((measure(world, policy, keys) for policy in candidates), floor).policy


def run_scenario(
    worlds: Worlds,
    size: Size,
    policy: Recorded | Replayed | None,
    progress: Callable[[str], object] = lambda name: None,
) -> dict[str, Any]:
    """One scenario's part of the result.

    Args:
        worlds: training and test world.
        size: drives.
        policy: the submission or its record; None gives bound and baselines alone.
        progress: called with each policy's name when it is done.

    Raises:
        ConfigError: if the submission fails.
        DataError: if a record does not fit the drives.
    """
    train, test = worlds
    submitted: dict[str, Policy] = {} if policy is None else {NAME: policy}
    result = evaluate(
        train,
        test,
        submitted,
        drives=size.drives,
        seed=size.seed,
        tuning_drives=size.tuning_drives,
        progress=progress,
    )
    rows = {n: {**f, "keeps_floor": result.keeps_floor(n)} for n, f in result.policies.items()}
    out: dict[str, Any] = {
        "inputs": input_hashes(worlds),
        "floor": result.floor,
        "measure": result.measure,
        "bound_cost": result.bound_cost,
        "clairvoyant_cost": rows.pop(CLAIRVOYANT)["cost"],
        "best_baseline": best_baseline(result),
        "baselines": {name: row for name, row in rows.items() if name != NAME},
    }
    if policy is None:
        return out
    if isinstance(policy, Replayed):
        policy.check_end()
    floors = result.floors[NAME].as_json()
    out["submission"] = {
        **rows[NAME],
        **{name: value for name, value in floors.items() if name != "classes"},
        **_distances(result),
        **_intervals(result, test),
    }
    return out


def best_baseline(result: Evaluation) -> str | None:
    """The cheapest baseline that keeps the floor on these drives; None if none does.

    It is chosen on the test drives, which favours the baselines.
    """
    names = [n for n in result.rollouts if n != NAME and result.keeps_floor(n)]
    return min(names, key=lambda name: result.policies[name]["cost"], default=None)


def _distances(result: Evaluation) -> dict[str, Any]:
    """The submission's cost over the bound and over the best baseline."""
    cost, best = result.policies[NAME]["cost"], best_baseline(result)
    of_cost = result.intervals[NAME]
    bounds = Interval(*(value / result.bound_cost for value in asdict(of_cost).values()))
    out: dict[str, Any] = {"over_bound": cost / result.bound_cost}
    out["over_bound_interval"] = asdict(bounds)
    out["over_best_baseline"] = None
    out["less_best_baseline"] = None
    if best is not None:
        less = result.differences[NAME][best]
        out["over_best_baseline"] = cost / result.policies[best]["cost"]
        out["less_best_baseline"] = asdict(Interval(-less.mean, -less.high, -less.low))
    return out


def _intervals(result: Evaluation, world: World) -> dict[str, Any]:
    """95 % intervals of cost and of accuracy above the floor, by drive and by track."""
    rollout = result.rollouts[NAME]
    main = world.correct[rollout.row, world.topology.main].astype(np.float64)
    above = rollout.correct - required(world, main)
    weights = resamples(result.drives, result.seed)
    tracks = world.table.track[rollout.row]
    return {
        "cost_by_drive": asdict(result.intervals[NAME]),
        "cost_by_track": _over_tracks(rollout.cost, tracks, result.seed),
        "accuracy_above_floor_by_drive": asdict(interval(above.mean(1), weights)),
        "accuracy_above_floor_by_track": _over_tracks(above, tracks, result.seed),
    }


def _over_tracks(values: Floats, tracks: NDArray[np.int32], seed: int) -> dict[str, float]:
    """Bootstrap interval of the mean over all frames by whole tracks: frames of one are alike."""
    _, place = np.unique(tracks.ravel(), return_inverse=True)
    sums, frames = np.bincount(place, values.ravel()), np.bincount(place)
    weights = resamples(len(frames), seed)
    means = (weights @ sums) / (weights @ frames)
    low, high = np.percentile(means, (2.5, 97.5))
    return asdict(Interval(float(values.mean()), float(low), float(high)))
