"""The policy file: arrays and a manifest in one zip, checked before anything is used.

The file is a numpy ``.npz`` archive whose member ``manifest`` holds JSON. It is read
with ``allow_pickle=False`` and a bound on its unpacked size, so a file from elsewhere
can be refused but cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.errors import BundleError, ConfigError
from cnn.files import replacing
from testbed.decide.observation import SCHEMA_HASH, STAGED_SCHEMA_HASH
from testbed.decide.task import Task

FORMAT: Final = 2
"""The format of a file that carries its policy's task."""
TASKLESS_FORMAT: Final = 1
"""The format of a file that does not: still read, and written for a policy without a task."""
STAGED_KIND: Final = "mlp-staged"
MAX_UNPACKED_BYTES: Final = 64 * 2**20
"""A policy of two hidden layers of 128 is about 0.1 MB; 64 MB leaves room for any MLP."""

_UNREADABLE: Final = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile, numpy and json raise for damaged or hostile files."""

_MEND: Final = "export the policy again with `sliproad agent export`"


@dataclass(frozen=True, slots=True)
class PolicyBundle:
    """A policy with everything needed to refuse it where it does not fit.

    Attributes:
        manifest: JSON object: ``format``, ``kind``, ``name``, ``actions`` (canonical
            number of each output), ``action_names``, ``observation`` (``schema_hash``
            and ``fields``), ``bundle_hash`` (model bundle), ``scenario``, ``algorithm``,
            ``metrics``, ``provenance``, ``created``, in format 2 ``task``
            (`testbed.decide.task.Task`) and, for an MLP, ``layers`` and ``activation``.
        arrays: float32 arrays by name (``weight0``, ``bias0``, ...).
    """

    manifest: Mapping[str, Any]
    arrays: Mapping[str, NDArray[np.float32]]

    @property
    def content_hash(self) -> str:
        """SHA-256 over the manifest and every array, hexadecimal."""
        digest = hashlib.sha256()
        plain = {k: v for k, v in self.manifest.items() if k != "content_hash"}
        digest.update(json.dumps(plain, sort_keys=True).encode())
        for name in sorted(self.arrays):
            array = np.ascontiguousarray(self.arrays[name], np.float32)
            digest.update(f"{name}{array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    @property
    def task(self) -> Task | None:
        """What the policy was trained for; None if the file is of format 1, which cannot say.

        Raises:
            BundleError: if what stands there is no task.
        """
        raw = self.manifest.get("task")
        if raw is None:
            return None
        try:
            return Task.of_json(raw)
        except ConfigError as error:
            raise BundleError(
                f"policy file with {error.given}", expected=error.expected, mend=_MEND
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
            BundleError: if it is missing, damaged, too large, of another format, or its
                content does not have the hash it states.
        """
        try:
            manifest, arrays = _read_members(path)
        except _UNREADABLE as error:
            raise BundleError(
                f"policy file {path}: {error or type(error).__name__}",
                expected="a .policy file written by `sliproad agent export`",
                mend="give another path, or export the policy again",
            ) from error
        if manifest.get("format") not in (TASKLESS_FORMAT, FORMAT):
            raise BundleError(
                f"policy file {path} of format {manifest.get('format')!r}",
                expected=f"format {FORMAT}, or {TASKLESS_FORMAT}",
                mend=_MEND,
            )
        bundle = cls(manifest, arrays)
        if bundle.content_hash != manifest.get("content_hash"):
            raise BundleError(
                f"policy file {path} with content hash {bundle.content_hash[:12]}",
                expected=f"{str(manifest.get('content_hash'))[:12]}, as its manifest states",
                mend="the file was changed or damaged: copy or export it again",
            )
        if manifest["format"] == FORMAT and bundle.task is None:
            raise BundleError(
                f"policy file {path} of format {FORMAT} without a task",
                expected="the policy's task in its manifest",
                mend=_MEND,
            )
        return bundle

    def check_fit(self, bundle_hash: str | None) -> None:
        """Raise `BundleError` unless the policy fits the observation and model bundle.

        Args:
            bundle_hash: hash of the model bundle in use; None does not check it.
        """
        stated = self.manifest.get("observation", {}).get("schema_hash")
        staged = self.manifest.get("kind") == STAGED_KIND
        schema_hash = STAGED_SCHEMA_HASH if staged else SCHEMA_HASH
        if stated != schema_hash:
            raise BundleError(
                f"policy that reads observation schema {str(stated)[:12]}",
                expected=f"schema {schema_hash[:12]} of this version",
                mend="train and export the policy with this version of sliproad",
            )
        model = self.manifest.get("bundle_hash")
        if bundle_hash is not None and model != bundle_hash:
            raise BundleError(
                f"policy trained for model bundle {str(model)[:12]}",
                expected=f"{bundle_hash[:12]}, the bundle this device runs",
                mend="use the policy's own bundle, or train a policy for this one",
            )


def _read_members(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
    if unpacked > MAX_UNPACKED_BYTES:
        raise ValueError(f"unpacks to {unpacked} bytes, more than {MAX_UNPACKED_BYTES}")
    with np.load(path, allow_pickle=False) as raw:
        members: dict[str, NDArray[Any]] = {name: raw[name] for name in raw.files}
    manifest = json.loads(members.pop("manifest").tobytes())
    if not isinstance(manifest, dict):
        raise ValueError("manifest is not a JSON object")
    for name, array in members.items():
        if array.dtype != np.float32:
            raise ValueError(f"array {name} has type {array.dtype}")
    return manifest, members
