"""Turn a trained stable-baselines3 model into a policy file that needs numpy alone."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

import cnn
from agents.run_files import named
from cnn.action import Action
from cnn.common.errors import BundleError
from testbed.policy.decision_points import staged_name
from testbed.policy.observer import FIELDS, SCHEMA_HASH, STAGED_FIELDS, STAGED_SCHEMA_HASH
from testbed.policy.policy_file import PolicyBundle
from testbed.policy.policy_manifest import STAGED_KIND
from testbed.policy.task_settings import Task

_ACTIVATIONS: Final[Mapping[type[nn.Module], str]] = {nn.Tanh: "tanh", nn.ReLU: "relu"}


def layers_of(model: BaseAlgorithm) -> tuple[list[NDArray[np.float32]], list[Any], str]:
    """Weights (n_out, n_in), biases (n_out,) and activation of a model's greedy policy.

    For PPO and MaskablePPO the layers up to the action logits, for DQN those up to the
    action values; all decide by the largest output.

    Raises:
        BundleError: if the network is not a plain MLP of these.
    """
    modules: list[nn.Module]
    if isinstance(model, DQN):
        modules = list(model.q_net.q_net)
    elif isinstance(model, PPO | MaskablePPO):
        modules = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    else:
        raise _not_exportable(type(model).__name__)
    linear = [m for m in modules if isinstance(m, nn.Linear)]
    kinds = {type(m) for m in modules if not isinstance(m, nn.Linear)}
    if len(kinds) > 1 or not kinds <= set(_ACTIVATIONS) or len(modules) != 2 * len(linear) - 1:
        raise _not_exportable(str([type(m).__name__ for m in modules]))
    activation = _ACTIVATIONS[kinds.pop()] if kinds else "tanh"
    return [_array(m.weight) for m in linear], [_array(m.bias) for m in linear], activation


def _array(parameter: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = parameter.detach().cpu().numpy().astype(np.float32).copy()
    return array


def _not_exportable(what: str) -> BundleError:
    return BundleError(
        f"a policy of {what}",
        expected="PPO, MaskablePPO or DQN with a multi-layer perceptron of tanh or relu layers",
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
) -> PolicyBundle:
    """Policy bundle of a trained model.

    Args:
        model: PPO, DQN or MaskablePPO; the latter makes a staged policy.
        actions: canonical (or staged) action number of each of the model's outputs.
        name: shown in tables and records.
        bundle_hash: model bundle whose frame table it was trained on.
        scenario: scenario's name.
        algorithm: of `agents.train_config.ALGORITHMS`.
        metrics: figures of its evaluation, with what they were measured on.
        provenance: command, seed, steps and settings.
        task: what it was trained for (`agents.world_task.task_of`); None makes a file that does not
            say, of format 1.
    """
    weights, biases, activation = layers_of(model)
    staged = isinstance(model, MaskablePPO)
    manifest = {
        **_manifest(actions, name, bundle_hash, scenario, task, staged),
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


def static_bundle(
    action: Action, bundle_hash: str, scenario: str, task: Task | None = None
) -> PolicyBundle:
    """Policy bundle that always takes `action`, for comparing on a live device."""
    manifest = {
        **_manifest([action.index], f"static {action.name}", bundle_hash, scenario, task),
        "kind": "static",
        "algorithm": "static",
        "metrics": {},
        "provenance": {},
    }
    return PolicyBundle(manifest, {})


def _manifest(
    actions: Sequence[int],
    name: str,
    bundle_hash: str,
    scenario: str,
    task: Task | None,
    staged: bool = False,
) -> dict[str, Any]:
    return {
        **({} if task is None else {"task": task.to_json()}),
        "name": name,
        "actions": [int(a) for a in actions],
        "action_names": [staged_name(a) for a in actions],
        "observation": {
            "schema_hash": STAGED_SCHEMA_HASH if staged else SCHEMA_HASH,
            "fields": [asdict(field) for field in (STAGED_FIELDS if staged else FIELDS)],
        },
        "bundle_hash": bundle_hash,
        "scenario": scenario,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str]:
    packages = ("stable-baselines3", "sb3-contrib", "torch", "gymnasium", "numpy")
    found = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "sliproad": cnn.__version__, **found}


def write(bundle: PolicyBundle, path: Path) -> Path:
    """Save as `path` (with the ending ``.policy`` if it has none) and say where."""
    path = named(path)
    bundle.save(path)
    return path
