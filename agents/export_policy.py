"""A trained policy as a file: its weights, the task it was trained for, its reference profile.

The profile has the figures of the policy's own validation drives; a device's guard compares the
policy with them (`testbed.policy.reference_profile`). torch is imported only where a model is read:
commands that evaluate a policy need the tasks here, not the models.
"""

from __future__ import annotations

import datetime
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

import cnn
from agents.rollout import simulate
from agents.run_files import named
from agents.train_config import TrainConfig
from cnn.common.errors import BundleError
from cnn.topology import SHIPPED, Topology
from offload_env.episode import episode_keys
from offload_env.preferences import Preferences
from offload_env.world import World
from testbed.meters.power import names_file, power_profile
from testbed.policy.decision_points import decision_points
from testbed.policy.network_policy import policy_from_bundle
from testbed.policy.observation_fields import schema_of
from testbed.policy.policies import Policy
from testbed.policy.policy_file import STAGED_KIND, PolicyBundle
from testbed.policy.reference_profile import WINDOW, ReferenceProfile, unscaled
from testbed.policy.task_settings import Task, shown

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from torch import nn

_OBSERVED: Final = ("uplink_mbps", "rtt_ms")
"""The device's own estimates with statistics in the reference profile."""


def layers_of(model: BaseAlgorithm) -> tuple[list[NDArray[np.float32]], list[Any], str]:
    """Weights (n_out, n_in), biases (n_out,) and activation of a model's greedy policy.

    For PPO and MaskablePPO the layers up to the action logits, for DQN those up to the action
    values; all decide by the largest output. QR-DQN's last layer gives quantiles of these values:
    its mean over the quantiles gives the values.

    Raises:
        BundleError: if the network is not a plain MLP of these.
    """
    from sb3_contrib import QRDQN, MaskablePPO
    from stable_baselines3 import DQN, PPO
    from torch import nn

    modules: list[nn.Module]
    if isinstance(model, DQN):
        modules = list(model.q_net.q_net)
    elif isinstance(model, QRDQN):
        modules = list(model.quantile_net.quantile_net)
    elif isinstance(model, PPO | MaskablePPO):
        modules = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    else:
        raise _not_exportable(type(model).__name__)
    linear = [m for m in modules if isinstance(m, nn.Linear)]
    kinds = {type(m) for m in modules if not isinstance(m, nn.Linear)}
    names: dict[type[nn.Module], str] = {nn.Tanh: "tanh", nn.ReLU: "relu"}
    if len(kinds) > 1 or not kinds <= set(names) or len(modules) != 2 * len(linear) - 1:
        raise _not_exportable(str([type(m).__name__ for m in modules]))

    def arrays(parameters: list[Any]) -> list[NDArray[np.float32]]:
        return [p.detach().cpu().numpy().astype(np.float32).copy() for p in parameters]

    activation = names[kinds.pop()] if kinds else "tanh"
    weights, biases = arrays([m.weight for m in linear]), arrays([m.bias for m in linear])
    if isinstance(model, QRDQN):
        weights[-1] = weights[-1].reshape(model.n_quantiles, -1, weights[-1].shape[1]).mean(0)
        biases[-1] = biases[-1].reshape(model.n_quantiles, -1).mean(0)
    return weights, biases, activation


def _not_exportable(what: str) -> BundleError:
    return BundleError(
        f"a policy of {what}",
        expected="PPO, MaskablePPO, DQN or QR-DQN with layers of tanh or relu",
        hint="train with `sliproad agent train`",
    )


def bundle_of(
    model: BaseAlgorithm,
    *,
    actions: Sequence[int],
    name: str,
    bundle_hash: str,
    scenario: str,
    algorithm: str,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    task: Task | None = None,
    topology: Topology = SHIPPED,
) -> PolicyBundle:
    """Policy bundle of a trained model.

    Args:
        model: PPO, DQN, QR-DQN or MaskablePPO; the latter makes a staged policy.
        actions: canonical (or staged) action number of each of the model's outputs.
        name: shown in tables and records.
        bundle_hash: model bundle whose frame table it was trained on.
        scenario: scenario's name.
        algorithm: of `agents.train_config.ALGORITHMS`.
        metrics: figures of its evaluation, and the drives that they are from.
        provenance: command, seed, steps and settings.
        task: task that it was trained for (`task_of`); None makes a file of format 1.
        topology: of the network; only one other than the shipped one is stated in the file.
    """
    weights, biases, activation = layers_of(model)
    staged = algorithm == "maskable-ppo"
    schema, points = schema_of(topology), decision_points(topology)
    manifest = {
        **({} if task is None else {"task": task.to_json()}),
        **({} if topology == SHIPPED else {"topology": topology.to_json()}),
        "name": name,
        "actions": [int(a) for a in actions],
        "action_names": [points.name(a) for a in actions],
        "observation": {
            "schema_hash": schema.staged_hash if staged else schema.hash,
            "fields": [asdict(f) for f in (schema.staged_fields if staged else schema.fields)],
        },
        "bundle_hash": bundle_hash,
        "scenario": scenario,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kind": STAGED_KIND if staged else "mlp",
        "layers": len(weights),
        "activation": activation,
        "algorithm": algorithm,
        "metrics": dict(metrics),
        "provenance": {**provenance, "versions": _versions()},
    }
    arrays = {f"weight{i}": w for i, w in enumerate(weights)}
    arrays |= {f"bias{i}": b for i, b in enumerate(biases)}
    return PolicyBundle(manifest, arrays)


def _versions() -> dict[str, str]:
    packages = ("stable-baselines3", "sb3-contrib", "torch", "gymnasium", "numpy")
    found = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "sliproad": cnn.__version__, **found}


def write(bundle: PolicyBundle, path: Path) -> Path:
    """Save as `path` (with the ending ``.policy`` if it has none) and say where."""
    path = named(path)
    bundle.save(path)
    return path


def task_of(world: World, preferences: Preferences | None = None) -> Task:
    """The task of a policy that is trained in this world: its device's settings.

    Args:
        world: of any split; the floor is that of the training frames, as the device knows it.
        preferences: range of preferences, if the policy was trained to serve them.
    """
    settings, timing = world.settings, world.scenario.timing
    floor, share = settings.accuracy_floor, settings.delay_share
    if preferences is not None:  # the default must lie within their range
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
        power="" if names_file(world.scenario.device.power) else world.scenario.device.power,
        energy_budget_mj=settings.energy_budget_mj,
        accuracy_floors=None if preferences is None else preferences.floor,
        delay_shares=None if preferences is None else preferences.delay_share,
    )


def with_task(bundle: PolicyBundle, world: World) -> PolicyBundle:
    """The same policy, carrying the task of the world that it was trained in.

    Weights, figures and reference profile stay as they are.

    Args:
        bundle: of any format.
        world: the training world.

    Raises:
        BundleError: if the file shows that the policy was trained in another world.
    """
    bundle.check_fit(world.table.bundle_hash, world.topology)
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


def reference_profile_of(
    world: World, policy: Policy, keys: NDArray[np.uint64], window: int = WINDOW
) -> ReferenceProfile:
    """Drive the policy through the episodes `keys` (uint64 (B,)) and record the figures.

    The energies count as those of the model meter with the scenario's power profile; a
    scenario that keeps the cost model's own powers is comparable with no meter.
    """
    topology = world.topology
    fields = [f for f in schema_of(topology).fields if f.name in _OBSERVED]
    columns = [field.index for field in fields]
    seen: list[NDArray[np.float32]] = []
    driven = simulate(world, policy, keys, seen=lambda x: seen.append(x[:, columns]))
    observed = np.stack(seen, axis=1)
    power = world.scenario.device.power
    return ReferenceProfile.of_drives(
        {
            "delay_ms": driven.delay_ms,
            "energy_mj": driven.energy_mj,
            "confidence": driven.confidence,
            "miss_rate": driven.miss,
            **{f.name: unscaled(f, observed[:, :, i]) for i, f in enumerate(fields)},
        },
        driven.action,
        n_actions=topology.n_actions,
        window=min(window, len(seen)),
        energy_source=f"model:{power_profile(power).name}"
        if power
        else f"cost model {world.cost.name}",
    )


def policy_of(
    model: Any, config: TrainConfig, world: World, validation: dict[str, float]
) -> PolicyBundle:
    """Policy bundle of a model trained with `config` in `world`, with task and profile."""
    bundle = bundle_of(
        model,
        actions=config.outputs(world.topology),
        name="staged-agent" if config.env == "staged" else "agent",
        bundle_hash=world.table.bundle_hash,
        scenario=world.scenario.name,
        algorithm=config.algo,
        metrics={
            "validation": validation,
            "validated_on": f"{config.validate_drives} drives over {world.table.source}",
            "accuracy_floor": world.accuracy_floor,
        },
        provenance={
            "config": asdict(config),
            "frames": world.table.source,
            "cost_model": world.cost.name,
            "traces": len(world.pool),
            "numpy": np.__version__,
        },
        task=task_of(world),
        topology=world.topology,
    )
    keys = episode_keys(config.validation_seed, config.validate_drives)
    reference = reference_profile_of(world, policy_from_bundle(bundle), keys)
    metrics = {**bundle.manifest["metrics"], "promise": reference.to_json()}
    return replace(bundle, manifest={**bundle.manifest, "metrics": metrics})
