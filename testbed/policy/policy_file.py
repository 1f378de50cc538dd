"""The policy file: arrays and a manifest in one zip, checked before use.

The file is a numpy ``.npz`` archive whose member ``manifest`` holds JSON. It is read with
bounds on its size (`cnn.common.outside`), and every number that a device would follow is checked
(`check_manifest`), so a file from elsewhere can be refused but cannot do harm.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import BundleError, ConfigError, shown
from cnn.common.files import replacing
from cnn.common.outside import MAX_JSON_BYTES, file_bytes, json_object, npz_arrays, refusing
from cnn.topology import Topology
from testbed.policy.decision_points import DecisionSpace, decision_points
from testbed.policy.observation_fields import schema_of
from testbed.policy.reference_profile import ReferenceProfile
from testbed.policy.task_settings import Task

FORMAT: Final = 2
"""Format of a file with its policy's task."""
TASKLESS_FORMAT: Final = 1
"""Format of a file without one: still read, and written for a policy without a task."""
MAX_UNPACKED_BYTES: Final = 64 * 2**20
"""A policy of two hidden layers of 128 is about 0.1 MB; 64 MB leaves room for any MLP."""

STAGED_KIND: Final = "mlp-staged"
MAX_LAYERS: Final = 16
MAX_WIDTH: Final = 4096
"""Width of a layer, which bounds a decision's time; trained ones have 3 layers of 64 or 128."""
_MAX_TEXT: Final = 200
KINDS: Final[dict[str, Literal["frame", "staged"]]] = {
    "static": "frame",
    "mlp": "frame",
    STAGED_KIND: "staged",
}
"""The decision space of each kind of policy."""
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Names of arrays that end where a shape begins."""
_MEND: Final = "export the policy again with `sliproad agent export`"


@dataclass(frozen=True, slots=True)
class PolicyBundle:
    """A policy with all the data needed to check that it fits a device.

    Attributes:
        manifest: JSON object: ``format``, ``kind``, ``name``, ``actions`` (canonical
            number of each output), ``action_names``, ``observation`` (``schema_hash``
            and ``fields``), ``bundle_hash`` (model bundle), ``topology`` (of its network; absent
            for the shipped one), ``scenario``, ``algorithm``,
            ``metrics``, ``provenance``, ``created``, in format 2 ``task``
            (`testbed.policy.task_settings.Task`), for an MLP ``layers`` and ``activation``, and
            ``certificate`` if `sliproad agent certify` wrote it: ``level`` and ``margin`` of what
            is promised, the ``floor`` that it makes, on how many ``signs`` of which ``frames``,
            the ``price`` on disagreement in the weights, the device's ``monitor``
            (`testbed.deploy.loss_monitor.MonitorTerms`), and the same promise of ``critical``
            classes where the scenario has any. ``control`` if `sliproad agent control` wrote it:
            the price, and figures on training drives with and without it.
        arrays: float32 arrays by name (``weight0``, ``bias0``, ...).
    """

    manifest: Mapping[str, Any]
    arrays: Mapping[str, NDArray[np.float32]]

    @property
    def content_hash(self) -> str:
        """SHA-256 over the manifest and every array, hexadecimal.

        No two contents have the same bytes under it: the manifest is one JSON object, a plain name
        ends at the parenthesis of its shape, and the shape gives the number of bytes that follow.
        If a name is not plain (no file has such a one), every part has its length before it.
        """
        plain = {k: v for k, v in self.manifest.items() if k != "content_hash"}
        arrays = {k: np.ascontiguousarray(self.arrays[k], np.float32) for k in sorted(self.arrays)}
        parts = [json.dumps(plain, sort_keys=True).encode()]
        for name, array in arrays.items():
            parts += [name.encode(), str(array.shape).encode(), array.tobytes()]
        if not all(_PLAIN.fullmatch(name) for name in arrays):
            parts = [b"%d:%b" % (len(part), part) for part in parts]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    @property
    def topology(self) -> Topology:
        """Topology of the network that the policy decides for.

        Raises:
            ValueError: if the entry is not a topology.
        """
        return Topology.stored_in(self.manifest)

    @property
    def space(self) -> DecisionSpace:
        """The decision space of the policy; the frame space if its kind is not known."""
        return _space_of(self.manifest)

    @property
    def task(self) -> Task | None:
        """The task of the policy; None if the file is of format 1, without a task.

        Raises:
            BundleError: if the entry is not a task.
        """
        raw = self.manifest.get("task")
        if raw is None:
            return None
        try:
            return Task.of_json(raw)
        except ConfigError as error:
            raise BundleError(
                f"policy file with {error.given}", expected=error.expected, hint=_MEND
            ) from error

    def save(self, path: Path) -> None:
        """Write the file, of format 2 if there is a task; written whole or not at all."""
        told = self.manifest.get("task") is not None
        manifest = {**self.manifest, "format": FORMAT if told else TASKLESS_FORMAT}
        sealed = PolicyBundle(manifest, self.arrays)
        text = json.dumps({**manifest, "content_hash": sealed.content_hash}, indent=1)
        members: dict[str, Any] = {"manifest": np.frombuffer(text.encode(), np.uint8)}
        members |= {k: np.ascontiguousarray(v, np.float32) for k, v in self.arrays.items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **members)

    @classmethod
    def load(cls, path: Path) -> PolicyBundle:
        """Read and check a file.

        Raises:
            BundleError: if it is missing, damaged, too large, of another format, its content
                does not have the hash it states, or a number in it is out of its range.
        """
        with refusing(
            BundleError,
            f"policy file {path}",
            expected="a .policy file written by `sliproad agent export`",
            hint="give another path, or export the policy again",
        ):
            bundle = cls(*_read_members(path))
            bundle._check(path)
            return bundle

    def _check(self, path: Path) -> None:
        format = self.manifest.get("format")
        if type(format) is not int or format not in (TASKLESS_FORMAT, FORMAT):
            raise BundleError(
                f"policy file {path} of format {shown(format)}",
                expected=f"format {FORMAT}, or {TASKLESS_FORMAT}",
                hint=_MEND,
            )
        if self.content_hash != self.manifest.get("content_hash"):
            raise BundleError(
                f"policy file {path} with content hash {self.content_hash[:12]}",
                expected=f"{str(self.manifest.get('content_hash'))[:12]}, as its manifest states",
                hint="the file was changed or damaged: copy or export it again",
            )
        if format == FORMAT and self.task is None:
            raise BundleError(
                f"policy file {path} of format {FORMAT} without a task",
                expected="the policy's task in its manifest",
                hint=_MEND,
            )
        check_manifest(self.manifest, self.arrays)
        ReferenceProfile.of_manifest(self.manifest)  # raises if there is an invalid one

    def check_fit(self, bundle_hash: str | None, topology: Topology | None = None) -> None:
        """Raise `BundleError` unless the policy fits the observation and model bundle.

        Args:
            bundle_hash: hash of the model bundle in use; None does not check it.
            topology: of that bundle; None does not check it.
        """
        stated = (self.manifest.get("observation") or {}).get("schema_hash")
        schema = schema_of(self.topology)
        schema_hash = schema.staged_hash if self.space.is_staged else schema.hash
        if stated != schema_hash:
            raise BundleError(
                f"policy that reads observation schema {str(stated)[:12]}",
                expected=f"schema {schema_hash[:12]} of this version",
                hint="train and export the policy with this version of sliproad",
            )
        if topology is not None and self.topology != topology:
            raise BundleError(
                f"policy for {self.topology}",
                expected=f"{topology}, as this device's model bundle",
                hint="use the policy's own bundle, or train a policy for this one",
            )
        model = self.manifest.get("bundle_hash")
        if bundle_hash is not None and model != bundle_hash:
            raise BundleError(
                f"policy trained for model bundle {str(model)[:12]}",
                expected=f"{bundle_hash[:12]}, the bundle this device runs",
                hint="use the policy's own bundle, or train a policy for this one",
            )


def _space_of(manifest: Mapping[str, Any]) -> DecisionSpace:
    points = decision_points(Topology.stored_in(manifest))
    return points.space(KINDS.get(manifest.get("kind", ""), "frame"))


def _read_members(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    members = npz_arrays(file_bytes(path, MAX_UNPACKED_BYTES), MAX_UNPACKED_BYTES)
    text = members.pop("manifest").tobytes()
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"a manifest of {len(text)} bytes")
    for name, array in members.items():
        if array.dtype != np.float32:
            raise ValueError(f"array {name} has type {array.dtype}")
    return json_object(text), members


def check_manifest(manifest: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise ValueError unless the manifest and the arrays are those of a policy.

    The task and the reference profile have classes of their own and are not checked here, nor are
    figures for people only. A file of an unknown kind is not checked further: it cannot be run.
    """
    for key in ("kind", "name", "bundle_hash", "scenario", "activation"):
        _text(key, manifest.get(key, ""))
    for key in ("observation", "metrics", "provenance"):
        if not isinstance(manifest.get(key) or {}, Mapping):
            raise ValueError(f"{key} is no JSON object")
    _certificate(manifest.get("certificate"))
    kind = manifest.get("kind")
    if kind not in KINDS:
        return
    space = _space_of(manifest)
    n_inputs, n_actions = space.obs_dim, space.n_actions
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


def _certificate(promise: Any) -> None:
    if promise is None:
        return
    if not isinstance(promise, Mapping):
        raise ValueError("certificate is no JSON object")
    for key in ("level", "margin"):
        value = promise.get(key)
        if type(value) is not float or not 0.0 < value < 1.0:
            raise ValueError(f"certificate's {key} {shown(value)}, not between 0 and 1")


def _text(key: str, value: Any) -> None:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise ValueError(f"{key} is no line of at most {_MAX_TEXT} characters")


def _whole(key: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{key} {shown(value)}, no whole number from {low} to {high}")
    return value
