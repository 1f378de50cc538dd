"""Make a bundle of a user's own network: exits, bottlenecks, calibration, export, check, card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from cnn.common.errors import DataError, in_range, require
from cnn.common.files import write_text
from cnn.data.image_set import ImageSet
from cnn.model_config import NetworkConfig
from cnn.network import weights_file as checkpoint
from cnn.network.accuracy import action_accuracy
from cnn.network.adapt_card import card_text
from cnn.network.block_network import BlockNetwork, as_channels
from cnn.network.block_times import block_times
from cnn.network.checked_export import export_with, has_onnx
from cnn.network.export_bundle import write_bundle
from cnn.network.fitting import to_batch
from cnn.network.pipeline import CHECKED, Calibration
from cnn.network.torch_device import DeviceChoice, Precision, choose_compute
from cnn.network.train_network import BottleneckConfig, TrainConfig, train, train_bottlenecks
from cnn.network.user_network import (
    CLASSES,
    Definition,
    MeasuredBlock,
    add_parts,
    blocks_of,
    channels_of,
    choose_topology,
    measure,
)
from cnn.network_command_options import CARD

_MOST_LOGITS: Final = 2**27
"""Numbers that are kept for calibration: 512 MB."""


@dataclass(frozen=True, slots=True)
class AdaptConfig:
    """How to adapt a network.

    Attributes:
        train: fit all layers; otherwise the blocks stay as they are, and exits and bottlenecks
            are fitted.
        epochs: of the exits, or of all layers.
        bottleneck_epochs: of the bottlenecks.
        batch_size: images a step.
        lr: peak learning rate.
        payload: share of a block's output that crosses the uplink (`latent_shape`).
        strength: of the augmentation.
        shift: largest shift of an image, share of its side, by whole pixels.
        mirror: images may be mirrored: photos may, signs and writing may not.
        precision: of the bundle: float32, int8, or auto, which takes int8 where it wins.
        device, mixed: where training computes and how (`cnn.network.torch_device`).
        threads: torch threads; 0 leaves torch's choice.
        seed: of everything random.

    Raises:
        ConfigError: if a number is out of range.
    """

    train: bool = False
    epochs: int = 12
    bottleneck_epochs: int = 8
    batch_size: int = 128
    lr: float = 3e-3
    payload: float = 0.125
    strength: float = 0.5
    shift: float = 0.0
    mirror: bool = False
    precision: str = "float32"
    device: DeviceChoice = "auto"
    mixed: Precision = "auto"
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("payload", self.payload, 1e-4, 1)
        in_range("augmentation", self.strength, 0, 2)
        in_range("shift", self.shift, 0, 0.5)
        in_range("batch size", self.batch_size, 16, 4096)
        in_range("learning rate", self.lr, 1e-7, 1)


def adapt(
    definition: Definition,
    fit: ImageSet,
    val: ImageSet,
    config: AdaptConfig,
    out: Path,
    *,
    data: str = "",
    split: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Make a bundle of a network; returns what the card says, as plain values.

    Writes checkpoints, ``bundle/`` and ``card.md`` to `out`; with `resume`, continues after the
    last epoch there.

    Args:
        definition: of the network.
        fit, val: images to fit on, and to validate and calibrate on; square, of the network's
            input size.
        config: settings.
        out: run folder.
        data: what the images are, for the record.
        split: how they were split (`cnn.data.load_images.LoadedImages.split`), kept in the bundle.
        resume: continue the run in `out`.
        progress: show bars and accuracies.
        report: gets lines that say what was chosen and why.

    Raises:
        ConfigError: if the network or a setting does not fit.
        DataError: if the images do not fit.
        BundleError: if the exported network answers otherwise than torch's.
    """
    choose_compute(config.device, config.mixed)  # an impossible choice is refused first
    n_classes = _check_images(fit, val, config.batch_size)
    torch.manual_seed(config.seed)
    module = definition.make(n_classes)
    channels, size = channels_of(module), fit.images.shape[1]
    net, measured, why = _network(module, channels, NetworkConfig(size, n_classes), fit, config)
    what = "--train with a network given as ONNX"
    require(not (config.train and has_onnx(net)), what, "its blocks as they are", "leave it out")
    why = [*definition.why, *why]
    if not net.has_gradient:
        why.append("bottlenecks learn from their block's output alone: no gradient in the blocks")
    for line in why:
        report(line)
    _fit(net, fit, val, config, out, resume, progress)
    few = _few(val, net)
    export, chosen = export_with(net, fit, few, config.precision, config.seed)
    if chosen:
        report(chosen)
    calibration = export.calibration
    card = {
        "model": definition.name,
        "data": data,
        "classes": n_classes,
        "blocks": _block_rows(net, measured),
        "why": why,
        "weights": export.weights,
        "frames": len(few),
        "actions": _action_rows(net, few, calibration),
        "onnx_max_error": export.error,
        "checked_frames": min(CHECKED, len(few)),
    }
    provenance = {
        "model_sha256": definition.sha256,
        "settings": asdict(config),
        "images": {"fit": len(fit), "validation": len(val)},
        **({"split": dict(split)} if split else {}),
        "card": card,
        "calibration": calibration.record,
    }
    bundle = write_bundle(
        net,
        out / "bundle",
        calibration.temperatures,
        provenance,
        export.int8_images,
        half=export.half,
        class_names=fit.class_names,
    )
    # Times, and what follows from them, are not in the bundle: they differ each time.
    times = block_times(bundle, few.images)
    card = {**summary(card), **card, "bundle": str(bundle.path), "hash": bundle.hash, "ms": times}
    card["why"] = [*why, chosen] if chosen else why
    write_text(out / CARD, card_text(card))
    return card


def summary(card: dict[str, Any]) -> dict[str, Any]:
    """The main exit's accuracy, and the largest loss of a bottleneck, from a card's actions."""
    accuracy = {name: row["accuracy"] for name, row in card["actions"].items()}
    gaps = {
        name: accuracy[f"e{row['exit']}s{row['exit']}"] - row["accuracy"]
        for name, row in card["actions"].items()
        if 0 < row["split"] < row["exit"]
    }
    return {
        "main_accuracy": list(accuracy.values())[-1],
        "worst_split_gap": max(gaps.values(), default=0.0),
    }


def _check_images(fit: ImageSet, val: ImageSet, batch_size: int) -> int:
    """Number of classes; raises if the images cannot be fitted on."""
    for images, what, least in ((fit, "fit on", batch_size), (val, "validate on", 2)):
        if len(images) < least:
            raise DataError(
                f"{len(images)} images to {what}",
                expected=f"at least {least}",
                hint="give more images, or a smaller --batch-size",
            )
    labels = np.concatenate([fit.label, val.label])
    n_classes = len(fit.class_names) or int(labels.max()) + 1
    low, high = CLASSES
    require(low <= n_classes <= high, f"{n_classes} classes", f"{low} to {high:,}")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise DataError(
            f"labels from {labels.min()} to {labels.max()}",
            expected=f"0 to {n_classes - 1}, a label for every image",
            hint="correct the data",
        )
    return n_classes


def _network(
    module: nn.Module, channels: int, config: NetworkConfig, fit: ImageSet, settings: AdaptConfig
) -> tuple[BlockNetwork, list[MeasuredBlock], list[str]]:
    """The network with untrained parts, what its blocks are, and why its parts are these."""
    blocks = blocks_of(module)
    rows = torch.linspace(0, len(fit) - 1, 8).long()
    images = as_channels(to_batch(fit.images, rows), channels)
    measured = measure(module, images, config.n_classes)
    topology, why = choose_topology(module, measured, config.input_size, settings.payload)
    return add_parts(blocks, measured, config, topology, channels), measured, why


def _fit(
    net: BlockNetwork,
    fit: ImageSet,
    val: ImageSet,
    config: AdaptConfig,
    out: Path,
    resume: bool,
    progress: bool,
) -> None:
    """Fit exits (or all) and bottlenecks in place; leaves `net` on the processor, in eval mode."""
    common: dict[str, Any] = {
        "batch_size": config.batch_size,
        "lr": config.lr,
        "strength": config.strength,
        "shift": config.shift,
        "mirrored": tuple(range(net.config.n_classes)) if config.mirror else (),
        "device": config.device,
        "precision": config.mixed,
        "seed": config.seed,
    }
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.train or net.topology.n_exits > 1:
        weights = tuple(np.linspace(0.6, 1.2, net.topology.n_exits).round(3).tolist())
        settings = TrainConfig(
            **common, epochs=config.epochs, exit_weights=weights, frozen=not config.train
        )
        path = train(fit, val, lambda: net, settings, out, resume=resume, progress=progress)
        net.load_state_dict(checkpoint.load(path)["model"])
    if net.cuts:
        falling = np.linspace(3, 1, len(net.cuts))
        shares = tuple((falling / falling.sum()).tolist())
        bottlenecks = BottleneckConfig(
            **common,
            epochs=config.bottleneck_epochs,
            shares=shares,
            answers=net.has_gradient,
        )
        said: dict[str, Any] = {} if progress else {"report": lambda line: None}
        path = train_bottlenecks(
            net, fit, val, bottlenecks, out, resume=resume, progress=progress, **said
        )
        net.load_state_dict(checkpoint.load(path)["model"])
    net.to("cpu").eval()


def _few(val: ImageSet, net: BlockNetwork) -> ImageSet:
    """Validation images, evenly spaced, so many that the logits of all actions fit into memory."""
    most = max(CHECKED, _MOST_LOGITS // (net.topology.n_actions * net.config.n_classes))
    n = min(len(val), most)
    return val.take(np.linspace(0, len(val) - 1, n).round().astype(np.intp))


def _block_rows(net: BlockNetwork, measured: Sequence[MeasuredBlock]) -> list[dict[str, Any]]:
    parts = {f"exit{e}": net.exit_of(e) for e in net.topology.exits}
    parts |= {f"enc{s}": net.encoder_of(s) for s in net.cuts}
    parts |= {f"dec{s}": net.decoder_of(s) for s in net.cuts}
    added = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return [
        {
            "block": b,
            "output": list(m.features),
            "macs": m.macs,
            "parameters": m.parameters,
            **{f"{part}_parameters": added.get(f"{part}{b}", 0) for part in ("exit", "enc", "dec")},
        }
        for b, m in enumerate(measured, 1)
    ]


def _action_rows(
    net: BlockNetwork, val: ImageSet, calibration: Calibration
) -> dict[str, dict[str, Any]]:
    accuracy = action_accuracy(calibration.logits, val.label)
    return {
        a.name: {
            "exit": a.exit,
            "split": a.split,
            "accuracy": float(accuracy[a.index]),
            "ece": calibration.record["ece_after"][a.index],
            "ece_uncalibrated": calibration.record["ece_before"][a.index],
            "payload_bytes": int(net.topology.payload_bytes[a.index]),
        }
        for a in net.topology.actions
    }
