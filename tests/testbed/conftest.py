"""Policies and bundles for the tests of a deployed device."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn.action import N_ACTIONS, Action
from cnn.bundle import embedded_bundle_path, manifest_hash
from testbed.decide.observation import (
    OBS_DIM,
    SCHEMA_HASH,
    STAGED_FIELDS,
    STAGED_OBS_DIM,
    STAGED_SCHEMA_HASH,
)
from testbed.decide.policy_bundle import STAGED_KIND, PolicyBundle
from testbed.decide.staged_policy import StagedNetworkPolicy
from testbed.decide.stages import ANSWER, N_STAGED


def _manifest(bundle_hash: str, name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "actions": list(range(N_ACTIONS)),
        "observation": {"schema_hash": SCHEMA_HASH},
        "bundle_hash": bundle_hash,
        "metrics": {},
        **more,
    }


def _write_policy(path: Path, bundle_hash: str, action: Action, **metrics: Any) -> str:
    """A linear policy that always takes `action`; replaced in one step. Its hash."""
    bias = np.zeros(N_ACTIONS, np.float32)
    bias[action.index] = 1.0
    arrays = {"weight0": np.zeros((N_ACTIONS, OBS_DIM), np.float32), "bias0": bias}
    about = _manifest(bundle_hash, f"always {action.name}", kind="mlp", layers=1, activation="tanh")
    bundle = PolicyBundle({**about, "metrics": metrics}, arrays)
    beside = path.with_name(path.name + ".new")
    bundle.save(beside)
    os.replace(beside, path)
    return PolicyBundle.load(path).content_hash[:12]


def _threshold_arrays(look: Action, send: Action, threshold: float) -> dict[str, np.ndarray]:
    """One linear layer that looks at `look`, answers above the threshold and else does `send`."""
    weight, bias = np.zeros((N_STAGED, STAGED_OBS_DIM), np.float32), np.full(N_STAGED, -9.0)
    bias[look.index], bias[send.index], bias[ANSWER] = 9.0, 2 * threshold - 1, 0.0
    (confidence,) = (f.index for f in STAGED_FIELDS if f.name == "stage_confidence")
    weight[ANSWER, confidence] = 1.0
    return {"weight0": weight, "bias0": bias.astype(np.float32)}


def _write_staged_policy(
    path: Path, bundle_hash: str, look: Action, send: Action, threshold: float, **metrics: Any
) -> str:
    """The file of such a policy, as `_write_policy`; 2 as threshold never answers, -1 always."""
    about = _manifest(bundle_hash, "threshold", kind=STAGED_KIND, layers=1, activation="tanh")
    about |= {"actions": list(range(N_STAGED)), "metrics": metrics}
    about |= {"observation": {"schema_hash": STAGED_SCHEMA_HASH}}
    bundle = PolicyBundle(about, _threshold_arrays(look, send, threshold))
    beside = path.with_name(path.name + ".new")
    bundle.save(beside)
    os.replace(beside, path)
    return PolicyBundle.load(path).content_hash[:12]


def _other_bundle(folder: Path) -> str:
    """The shipped network under another hash; its hash."""
    shutil.copytree(embedded_bundle_path(), folder)
    file = folder / "manifest.json"
    about = {**json.loads(file.read_text()), "note": "another export of the same weights"}
    about["hash"] = manifest_hash(about)
    file.write_text(json.dumps(about))
    return str(about["hash"])


@pytest.fixture(scope="session")
def write_policy() -> Callable[..., str]:
    """``write_policy(path, bundle_hash, action, **metrics)`` -> hash of the policy file."""
    return _write_policy


@pytest.fixture(scope="session")
def write_staged_policy() -> Callable[..., str]:
    """``write_staged_policy(path, bundle_hash, look, send, threshold)`` -> hash of the file."""
    return _write_staged_policy


@pytest.fixture(scope="session")
def threshold_policy() -> Callable[..., StagedNetworkPolicy]:
    """``threshold_policy(look, send, threshold)`` -> such a policy in memory."""

    def make(look: Action, send: Action, threshold: float) -> StagedNetworkPolicy:
        arrays = _threshold_arrays(look, send, threshold)
        return StagedNetworkPolicy([arrays["weight0"]], [arrays["bias0"]])

    return make


@pytest.fixture(scope="session")
def other_bundle() -> Callable[[Path], str]:
    """``other_bundle(folder)`` -> hash of a bundle with the shipped weights."""
    return _other_bundle
