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
from testbed.decide.observation import OBS_DIM, SCHEMA_HASH
from testbed.decide.policy_bundle import PolicyBundle


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
def other_bundle() -> Callable[[Path], str]:
    """``other_bundle(folder)`` -> hash of a bundle with the shipped weights."""
    return _other_bundle
