"""The whole pipeline from images to a calibrated bundle."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.bundle import Bundle
from cnn.common.errors import ConfigError, DataError
from cnn.data.image_set import ImageSet
from cnn.data.load_images import LoadedImages, load_parts
from cnn.model_config import ModelConfig
from cnn.network import weights_file as checkpoint
from cnn.network.accuracy import action_reliability, collect_logits, fit_temperatures
from cnn.network.block_network import BlockNetwork
from cnn.network.export_bundle import write_bundle
from cnn.network.torch_device import DeviceChoice, Precision, choose_compute
from cnn.network.train_network import BottleneckConfig, TrainConfig, train, train_bottlenecks
from cnn.network.vgg import MultiExitVGG
from cnn.runtime import SplitRuntime

INT8_FRAMES = 256
"""Calibration frames of an int8 bundle."""
CHECKED = 128
"""Images on which an export and torch are compared."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Answers of an exported network on validation images, and the temperatures that fit them.

    Attributes:
        logits: float32 (N, A, n_classes), uncalibrated.
        payloads: by split with a bottleneck, uint8 (n, C, h, w): of the first `CHECKED` images.
        temperatures: by action.
        record: for the bundle's provenance, plain values.
    """

    logits: NDArray[np.float32]
    payloads: dict[int, NDArray[np.uint8]]
    temperatures: tuple[float, ...]
    record: dict[str, Any]


def calibrate(
    net: BlockNetwork,
    val: ImageSet,
    int8_images: NDArray[np.uint8] | None,
    *,
    half: bool = True,
    progress: Callable[[int], object] = lambda done: None,
) -> Calibration:
    """Export `net` to a temporary folder and fit the temperatures on `val` through the export."""
    with tempfile.TemporaryDirectory() as folder:
        raw = write_bundle(net, Path(folder) / "raw", int8_images=int8_images, half=half)
        runtime = SplitRuntime(raw)
        logits = collect_logits(runtime, val, progress)
        payloads = _payloads(runtime, val.images[:CHECKED])
    temperatures = fit_temperatures(logits, val.label)
    ones = (1.0,) * len(temperatures)
    record = {
        "frames": len(val),
        "ece_before": [r.ece for r in action_reliability(logits, val.label, ones)],
        "ece_after": [r.ece for r in action_reliability(logits, val.label, temperatures)],
    }
    return Calibration(logits, payloads, temperatures, record)


def _payloads(runtime: SplitRuntime, images: NDArray[np.uint8]) -> dict[int, NDArray[np.uint8]]:
    """`Calibration.payloads` of images, uint8 (n, H, W, 3)."""
    x, behind, payloads = images, 0, {}
    for split in (s for s in runtime.topology.splits if s > 0):
        x, behind = runtime.forward(x, behind + 1, split), split
        payloads[split] = runtime.payload(x, split)
    return payloads


def calibrated_bundle(
    net: BlockNetwork,
    val: ImageSet,
    out: Path,
    provenance: dict[str, Any],
    int8_images: NDArray[np.uint8] | None,
) -> Bundle:
    """Export `net`, fit the temperatures on `val` through the export, export again."""
    found = calibrate(net, val, int8_images)
    provenance = {**provenance, "calibration": found.record}
    return write_bundle(
        net, out, found.temperatures, provenance, int8_images, class_names=val.class_names
    )


def int8_calibration(fit: ImageSet, precision: str, seed: int = 0) -> NDArray[np.uint8] | None:
    """Frames that set the int8 ranges; None for a float32 bundle.

    Raises:
        ConfigError: if `precision` is neither int8 nor float32.
    """
    if precision not in ("int8", "float32"):
        raise ConfigError(
            f"precision {precision!r}", expected="int8 or float32", hint="name one of these"
        )
    if precision == "float32":
        return None
    chosen = np.random.default_rng(seed).permutation(len(fit))[:INT8_FRAMES]
    return fit.images[np.sort(chosen)]


def export_calibrated(
    path: Path, folder: Path, out: Path, *, precision: str = "int8", note: str = ""
) -> dict[str, Any]:
    """Checkpoint -> calibrated bundle; returns its path and hash."""
    net = checkpoint.build_model(checkpoint.load(path))
    record = path.parent / "train.json"
    training = json.loads(record.read_text()) if record.is_file() else None
    seed = 0 if training is None else training["config"]["seed"]  # of the split, too
    data = load_parts(folder, net.config.input_size, ("cnn-fit", "cnn-val"), seed=seed)
    if data.class_names and len(data.class_names) != net.config.n_classes:
        raise DataError(
            f"{folder}: images of {len(data.class_names)} classes",
            expected=f"those that the network of {net.config.n_classes} classes was trained with",
            hint="give another path with --data",
        )
    fit, val = data.parts["cnn-fit"], data.parts["cnn-val"]
    provenance = _about_data(data)
    if training is not None:
        provenance["training"] = training
    if note:
        provenance["note"] = note
    ranges = int8_calibration(fit, precision)
    bundle = calibrated_bundle(net, val, out, provenance, ranges)
    return {"bundle": str(out), "hash": bundle.hash}


def _about_data(data: LoadedImages) -> dict[str, Any]:
    """What the provenance says of the images that a network was trained with."""
    if not data.split:
        return {"data": "GTSRB training set, tracks of cnn-fit"}
    return {"data": f"{data.source}, cnn-fit", "split": dict(data.split)}


def train_all(
    folder: Path,
    out: Path,
    config: ModelConfig,
    *,
    epochs: int,
    bottleneck_epochs: int,
    limit: int | None,
    precision: str,
    resume: bool,
    threads: int,
    seed: int,
    device: DeviceChoice = "auto",
    mixed: Precision = "auto",
) -> dict[str, Any]:
    """Backbone and exits, then bottlenecks, then calibration and export, into `out`.

    `device` and `mixed` say where training computes and how (`cnn.network.torch_device`);
    `precision` is the bundle's.
    """
    choose_compute(device, mixed)  # an impossible choice is refused before data are read
    data = load_parts(folder, config.input_size, ("cnn-fit", "cnn-val"), seed=seed)
    fit, val = data.parts["cnn-fit"], data.parts["cnn-val"]
    if data.class_names:
        config = replace(config, n_classes=len(data.class_names))
    if limit is not None:
        rng = np.random.default_rng(seed)
        fit = fit.take(np.sort(rng.permutation(len(fit))[:limit]))
        val = val.take(np.sort(rng.permutation(len(val))[:limit]))
    mirrored = () if data.class_names else None
    how = TrainConfig(
        epochs=epochs,
        mirrored=mirrored,
        device=device,
        precision=mixed,
        threads=threads,
        seed=seed,
    )
    if len(fit) < how.batch_size:
        raise DataError(
            f"{folder}: {len(fit)} images to fit the network",
            expected=f"at least {how.batch_size}, one batch",
            hint="give more images",
        )
    backbone = train(fit, val, partial(MultiExitVGG, config), how, out, resume=resume)
    net = checkpoint.build_model(checkpoint.load(backbone))
    bottlenecks = BottleneckConfig(
        epochs=bottleneck_epochs, mirrored=mirrored, device=device, precision=mixed, seed=seed
    )
    final = train_bottlenecks(net, fit, val, bottlenecks, out, resume=resume)
    net = checkpoint.build_model(checkpoint.load(final))
    provenance = {
        **_about_data(data),
        "training": json.loads((out / "train.json").read_text()),
        "bottleneck_epochs": bottleneck_epochs,
        "seed": seed,
    }
    ranges = int8_calibration(fit, precision, seed)
    bundle = calibrated_bundle(net, val, out / "bundle", provenance, ranges)
    return {"bundle": str(bundle.path), "hash": bundle.hash, "checkpoint": str(final)}
