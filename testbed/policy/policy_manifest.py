"""Whatever a device would follow of a policy file's manifest, checked in one place.

Figures that only people read (validation, provenance) are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import shown
from cnn.topology import N_ACTIONS
from testbed.policy.decision_points import N_STAGED
from testbed.policy.observer import OBS_DIM, STAGED_OBS_DIM

STAGED_KIND: Final = "mlp-staged"
MAX_LAYERS: Final = 16
MAX_WIDTH: Final = 4096
"""Of a layer, which bounds what a decision takes; trained ones have 3 layers of 64 or 128."""
_MAX_TEXT: Final = 200
_SIZES: Final = {
    "static": (OBS_DIM, N_ACTIONS),
    "mlp": (OBS_DIM, N_ACTIONS),
    STAGED_KIND: (STAGED_OBS_DIM, N_STAGED),
}
"""Elements of the observation, and actions, of each kind of policy."""


def check_manifest(manifest: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise ValueError unless the manifest and the arrays are those of a policy.

    The task and the promise, which have classes of their own, are not looked at here. Of a kind
    that is not known nothing else is checked: nobody can run it.
    """
    for key in ("kind", "name", "bundle_hash", "scenario", "activation"):
        _text(key, manifest.get(key, ""))
    for key in ("observation", "metrics", "provenance"):
        if not isinstance(manifest.get(key) or {}, Mapping):
            raise ValueError(f"{key} is no JSON object")
    kind = manifest.get("kind")
    if kind not in _SIZES:
        return
    n_inputs, n_actions = _SIZES[kind]
    actions = manifest.get("actions")
    if not isinstance(actions, list) or not 0 < len(actions) <= n_actions:
        raise ValueError(f"actions is no list of 1 to {n_actions} numbers")
    for action in actions:
        _whole("action", action, 0, n_actions - 1)
    n_layers = 0
    if kind != "static":
        n_layers = _whole("layers", manifest.get("layers"), 1, MAX_LAYERS)
    if arrays.keys() != {f"{part}{i}" for part in ("weight", "bias") for i in range(n_layers)}:
        raise ValueError(f"arrays other than the weight and bias of {n_layers} layers")
    if any(max(array.shape, default=0) > MAX_WIDTH for array in arrays.values()):
        raise ValueError(f"a layer wider than {MAX_WIDTH}")
    if n_layers and arrays["weight0"].shape[-1:] != (n_inputs,):
        raise ValueError(f"a network that does not read {n_inputs} numbers")


def _text(key: str, value: Any) -> None:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise ValueError(f"{key} is no line of at most {_MAX_TEXT} characters")


def _whole(key: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{key} {shown(value)}, no whole number from {low} to {high}")
    return value
