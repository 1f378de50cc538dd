"""The task that a world sets, and policies that were trained for another one."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.console import warn
from cnn.common.errors import BundleError
from offload_env.preferences import Preferences
from offload_env.world import World
from testbed.policy.observer import CONSTANTS_AT, FIELDS
from testbed.policy.policy_file import PolicyBundle
from testbed.policy.task_settings import Task, differing, shown

_ROUNDING: Final = 1e-5
"""Of an element of an observation, float32 in [-1, 1]."""


def task_of(world: World, preferences: Preferences | None = None) -> Task:
    """The task of a policy that is trained in this world: what its device must be told.

    Args:
        world: of any split; the floor is that of the training frames, as the device knows it.
        preferences: what the policy's users may ask for, if it was trained to serve them.
    """
    settings, timing = world.settings, world.scenario.timing
    floor, share = settings.accuracy_floor, settings.delay_share
    if preferences is not None:  # a default that they do not serve would be none
        floor = float(np.clip(floor, *preferences.floor))
        share = float(np.clip(share, *preferences.delay_share))
    return Task(
        tech="5G" if settings.radio_5g else "LTE",
        accuracy_floor=floor,
        delay_share=share,
        full_local_ms=settings.full_local_ms,
        period_ms=timing.period_ms,
        timeout_ms=timing.timeout_ms,
        deadline_ms=timing.deadline_ms,
        max_queue_ms=timing.max_queue_ms,
        power=world.scenario.device.power,
        energy_budget_mj=settings.energy_budget_mj,
        accuracy_floors=None if preferences is None else preferences.floor,
        delay_shares=None if preferences is None else preferences.delay_share,
    )


def with_task(bundle: PolicyBundle, world: World) -> PolicyBundle:
    """The same policy, carrying the task of the world that it was trained in.

    Weights, figures and promise stay as they are.

    Args:
        bundle: of any format.
        world: the training world.

    Raises:
        BundleError: if the file shows that the policy was trained in another world.
    """
    bundle.check_fit(world.table.bundle_hash)
    manifest = bundle.manifest
    _check_origin(bundle, world)
    asked = manifest.get("preferences")
    preferences = asked and Preferences(tuple(asked["floor"]), tuple(asked["delay_share"]))
    task = task_of(world, preferences or None).to_json()
    return replace(bundle, manifest={**manifest, "task": task})


def _check_origin(bundle: PolicyBundle, world: World) -> None:
    """Raise `BundleError` unless scenario, floor and number of traces are those of training."""
    manifest = bundle.manifest
    figures, origin = manifest.get("metrics") or {}, manifest.get("provenance") or {}
    floor, traces = figures.get("accuracy_floor"), origin.get("traces")
    found: dict[str, tuple[Any, Any]] = {
        "scenario": (manifest.get("scenario"), world.scenario.name),
        "accuracy floor": (floor, world.settings.accuracy_floor),
        "number of traces": (traces, len(world.pool)),
    }
    for what, (policys, worlds) in found.items():
        if isinstance(policys, float):
            same = math.isclose(policys, worlds, abs_tol=1e-9)
        else:
            same = policys in (None, worlds)
        if not same:
            raise BundleError(
                f"policy trained with {what} {shown(policys)}",
                expected=f"{shown(worlds)}, as in this scenario",
                hint="give the --scenario (and --from-records, if any) that it was trained with",
            )


def warn_of_other_task(path: Path, bundle: PolicyBundle, world: World) -> None:
    """One line on standard error if a policy was trained for another task than a world's."""
    task, name = bundle.task, world.scenario.name
    if task is None:
        warn(
            f"policy file {path} (format 1) does not say its task, which may be another than that "
            f"of {name}; write it again with `sliproad agent export --policy {path} --out FILE`"
        )
        return
    found = differing(task, asdict(task_of(world)))
    if found:
        text = ", ".join(f"{k} {shown(v)} instead of {shown(own)}" for k, (v, own) in found.items())
        warn(f"policy file {path} was trained for another task than that of {name}: {text}")


def warn_of_other_log(path: Path, bundle: PolicyBundle, observations: NDArray[np.float32]) -> None:
    """One line on standard error if a log's device was told another task than the policy's.

    Args:
        path: policy file.
        bundle: its content.
        observations: float32 (N, OBS_DIM), logged.
    """
    task = bundle.task
    if task is None:
        return
    expected = np.array(task.settings().scaled())
    apart = np.abs(observations[:, CONSTANTS_AT:] - expected).max(0) > _ROUNDING
    names = [field.name for field in FIELDS[CONSTANTS_AT:]]
    free = {"accuracy_floor": task.accuracy_floors, "delay_share": task.delay_shares}
    said = [n for n, differs in zip(names, apart, strict=True) if differs and not free.get(n)]
    if said:
        warn(
            f"the records' device was told another {', '.join(said)} than policy file {path} is "
            "for: the figures are those of a policy that is told the same"
        )
