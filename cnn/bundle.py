"""The model bundle: a folder with a manifest and ONNX segments, checked by content hash.

Read on the device with numpy and the standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from cnn.common.errors import BundleError, ConfigError, shown
from cnn.common.folders import FolderKind
from cnn.common.outside import MAX_JSON_BYTES, file_bytes, json_object, refusing, said
from cnn.model_config import ModelConfig, NetworkConfig
from cnn.topology import SHIPPED, Topology

FORMAT: Final = 1
MAX_SEGMENT_BYTES: Final = 256 * 2**20
"""The largest segment of VGG-16's own widths has 28 MB."""
TEMPERATURES: Final = (1e-3, 1e3)
"""A fit searches 0.2 to 10 (`cnn.network.accuracy`)."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified model bundle.

    Attributes:
        path: its folder.
        hash: SHA-256 over the manifest, which holds the SHA-256 of every segment.
        config: input and classes of the network; a `ModelConfig` if it is the VGG made here.
        topology: its blocks, exits, splits and actions.
        temperatures: softmax temperatures, by action.
        class_names: by class; empty if the bundle does not state them.
        manifest: everything else (training provenance, metrics, dtypes).
    """

    path: Path
    hash: str
    config: NetworkConfig
    topology: Topology
    temperatures: tuple[float, ...]
    manifest: dict[str, Any]
    class_names: tuple[str, ...] = ()

    def segment_path(self, name: str) -> Path:
        """File of one of the topology's segments."""
        return self.path / "segments" / f"{name}.onnx"

    def segment_bytes(self, name: str) -> bytes:
        """Content of one of the topology's segments, checked against the manifest.

        Raises:
            BundleError: if it cannot be read or does not match the manifest.
        """
        return _read_segment(self.path, self.manifest, name)


def manifest_hash(manifest: dict[str, Any]) -> str:
    """Content hash of a manifest: SHA-256 of its canonical JSON without ``hash``."""
    content = {k: v for k, v in manifest.items() if k != "hash"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def embedded_bundle_path() -> Path:
    """Folder of the bundle shipped in the package."""
    return Path(str(resources.files("cnn"))) / "assets" / "bundle"


def load_bundle(path: Path | None = None) -> Bundle:
    """Read and verify a bundle; None is the shipped one.

    Raises:
        BundleError: if a file is missing, damaged, or of another format.
    """
    folder = embedded_bundle_path() if path is None else Path(path)
    manifest = _read_manifest(folder)
    with _reading(folder, "manifest.json"):
        found = manifest_hash(manifest)
    if found != manifest.get("hash"):
        raise _broken(folder, f"manifest hash {found[:12]}, stated {manifest.get('hash')!s:.12}")
    bundle = _parse(folder, manifest)
    for name in bundle.topology.segments:
        _read_segment(folder, manifest, name)
    return bundle


def _read_segment(folder: Path, manifest: dict[str, Any], name: str) -> bytes:
    with _reading(folder, f"segment {name}"):
        content = file_bytes(folder / "segments" / f"{name}.onnx", MAX_SEGMENT_BYTES)
        stated = manifest["segments"][name]["sha256"]
    if hashlib.sha256(content).hexdigest() != stated:
        raise _broken(folder, f"segment {name} does not match its hash")
    return content


def _parse(folder: Path, manifest: dict[str, Any]) -> Bundle:
    with _reading(folder, "manifest field"):
        config, topology = _network(manifest)
        temperatures = tuple(manifest["temperatures"])
        if len(temperatures) != topology.n_actions:
            raise ValueError(f"{len(temperatures)} temperatures of {topology.n_actions} actions")
        low, high = TEMPERATURES
        for t in temperatures:
            if type(t) not in (int, float) or not low <= t <= high:
                raise ValueError(f"temperature {shown(t)}, not from {low:g} to {high:g}")
        names = _class_names(manifest, config.n_classes)
    return Bundle(
        folder, manifest["hash"], config, topology, tuple(map(float, temperatures)), manifest, names
    )


def _class_names(manifest: dict[str, Any], n_classes: int) -> tuple[str, ...]:
    """The optional class names of a manifest; raises `ValueError` if they are others than that."""
    names = manifest.get("class_names", [])
    if not isinstance(names, list) or not all(type(n) is str and n for n in names):
        raise ValueError("class_names that are no texts")
    if names and (len(names), len(set(names))) != (n_classes, n_classes):
        raise ValueError(f"{len(set(names))} class_names of {n_classes} classes")
    return tuple(names)


def _network(manifest: dict[str, Any]) -> tuple[NetworkConfig, Topology]:
    """Input and topology in a manifest; an older manifest has only a VGG's widths.

    Raises:
        Exception: of any class, if they cannot be read or do not fit together.
    """
    raw = dict(manifest["config"])
    stated = Topology.from_json(manifest["topology"]) if "topology" in manifest else None
    if "width" not in raw and stated is not None:
        config = NetworkConfig(**raw)
        topology = stated
    else:
        raw["latent_channels"] = tuple(raw["latent_channels"])
        vgg = ModelConfig(**raw)
        config, topology = vgg, vgg.topology()
        if stated is not None:
            topology.require_same(stated, "a topology", "its config says")
    frame = (config.input_size, config.input_size, 3)
    if 0 in topology.splits and topology.payload_shape(0) != frame:
        raise ValueError(f"frames of {topology.payload_shape(0)}, and an input of {frame}")
    return config, topology


def _read_manifest(folder: Path) -> dict[str, Any]:
    with refusing(
        BundleError,
        f"model bundle {folder}: manifest.json",
        expected="a folder with manifest.json and segments/",
        hint="give the path of a bundle, or make one with `sliproad cnn export`",
    ):
        text = file_bytes(folder / "manifest.json", MAX_JSON_BYTES)
    with _reading(folder, "manifest.json is no JSON"):
        manifest = json_object(text)
    if type(manifest.get("format")) is not int or manifest["format"] != FORMAT:
        raise _broken(folder, "manifest.json has another format")
    return manifest


@contextmanager
def _reading(folder: Path, what: str) -> Iterator[None]:
    """Turn any error into one of a broken bundle."""
    try:
        yield
    except Exception as error:
        raise _broken(folder, f"{what}: {said(error)}") from error


def _broken(folder: Path, what: str) -> BundleError:
    return BundleError(
        f"model bundle {folder}: {what}",
        expected=f"a whole bundle of format {FORMAT}, unchanged since its export",
        hint="copy it again, or make it anew with `sliproad cnn export`",
    )


def _bundle_files(folder: Path) -> Collection[str]:
    """Files of a model bundle, damaged or not, with its signature; none without its manifest."""
    try:
        manifest = json_object(file_bytes(folder / "manifest.json", MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return ()
    ours = {"format", "config", "segments", "temperatures"}
    if not ours <= manifest.keys():
        return ()
    try:
        segments = Topology.from_json(manifest["topology"]).segments
    except (KeyError, ConfigError):  # an older manifest, or a damaged one
        segments = SHIPPED.segments
    return {"manifest.json", "manifest.json.sig", *(f"segments/{n}.onnx" for n in segments)}


BUNDLE: Final = FolderKind("a model bundle", "sliproad cnn export", _bundle_files)
"""A model bundle as a folder that a command may replace."""
