"""Fit the four autoencoders against the frozen backbone.

Every step splits the batch in four: part S passes bottleneck S. The targets are the frozen
network's own features and exit answers, so no label is needed. The first two bottlenecks
get the larger parts: they squeeze most and sit before most layers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from cnn.common.console import warn
from cnn.common.errors import ConfigError
from cnn.common.files import make_folder
from cnn.data.image_set import ImageSet
from cnn.network import weights_file as checkpoint
from cnn.network.augment import augment
from cnn.network.torch_device import DeviceChoice, Precision, choose_compute, parse_choice
from cnn.network.train_network import (
    Averaged,
    backward_step,
    channels_last,
    epoch_order,
    run_of,
    to_batch,
)
from cnn.network.vgg import MultiExitVGG
from cnn.topology import N_EXITS

SPLITS = tuple(range(1, N_EXITS))


@dataclass(frozen=True, slots=True)
class BottleneckConfig:
    """How to fit the bottlenecks.

    Attributes:
        epochs: passes over the fit tracks.
        batch_size: images a step.
        shares: parts of a batch that pass bottlenecks 1..4; 0 leaves one as it is.
        lr: peak learning rate of AdamW (cosine decay).
        feature_weight: weight of the feature error relative to the answers' divergence.
        temperature: softmax temperature of the answers' divergence.
        strength: of the augmentation.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``auto``: see `cnn.network.torch_device`.
        seed: of everything random.
    """

    epochs: int = 8
    batch_size: int = 128
    shares: tuple[float, float, float, float] = (0.375, 0.375, 0.125, 0.125)
    lr: float = 3e-3
    feature_weight: float = 1.0
    temperature: float = 2.0
    strength: float = 0.8
    device: DeviceChoice = "auto"
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        parse_choice(self.device, self.precision)
        if min(self.shares) < 0 or not 0.99 < sum(self.shares) < 1.01 or self.batch_size < 8:
            raise ConfigError(
                f"shares {self.shares} of a batch of {self.batch_size}",
                expected="four shares >= 0 that sum to 1, and at least 8 images",
                hint="correct the configuration",
            )


def _fingerprint(net: MultiExitVGG) -> str:
    """SHA-256 of the network as it is before its bottlenecks are fitted."""
    found = hashlib.sha256()
    for name, value in net.state_dict().items():
        found.update(name.encode())
        found.update(value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _teacher(net: MultiExitVGG, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    features, logits = [], []
    f = net.normalise(x)
    for block, head in zip(net.blocks, net.exits, strict=True):
        f = block(f)
        features.append(f)
        logits.append(head(f).float())
    return features, logits


def bottleneck_loss(
    net: MultiExitVGG,
    features: list[Tensor],
    logits: list[Tensor],
    split: int,
    config: BottleneckConfig,
) -> Tensor:
    """Feature error after bottleneck `split` plus divergence of every later exit's answer."""
    target = features[split - 1]
    decoded = net.through_bottleneck(target, split)
    error = (decoded.float() - target.float()).square().mean()
    loss = config.feature_weight * error / target.float().square().mean().clamp_min(1e-6)
    f, t = decoded, config.temperature
    for e in range(split + 1, N_EXITS + 1):
        f = net.blocks[e - 1](f)
        student = F.log_softmax(net.exits[e - 1](f).float() / t, 1)
        teacher = F.softmax(logits[e - 1] / t, 1)
        loss = loss + t * t * F.kl_div(student, teacher, reduction="batchmean")
    return loss


@torch.no_grad()
def split_accuracy(net: MultiExitVGG, data: ImageSet, batch: int = 256) -> dict[str, float]:
    """Accuracy of every (exit, split) with 1 <= split < exit, by action name."""
    net.eval()
    device = next(net.parameters()).device
    hits: dict[str, float] = {}
    for at in range(0, len(data), batch):
        rows = torch.arange(at, min(at + batch, len(data)))
        labels = torch.from_numpy(data.label[at : at + batch].astype(np.int64))
        f = net.normalise(to_batch(data.images, rows).to(device))
        for s in SPLITS:
            f = net.blocks[s - 1](f)
            y = net.through_bottleneck(f, s)
            for e in range(s + 1, N_EXITS + 1):
                y = net.blocks[e - 1](y)
                right = (net.exits[e - 1](y).argmax(1).cpu() == labels).sum().item()
                hits[f"e{e}s{s}"] = hits.get(f"e{e}s{s}", 0.0) + right
    return {name: h / len(data) for name, h in hits.items()}


def train_bottlenecks(
    net: MultiExitVGG,
    fit: ImageSet,
    val: ImageSet,
    config: BottleneckConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = tqdm.write,
) -> Path:
    """Fit encoders and decoders of `net` in place; returns the final checkpoint's path.

    The backbone and the exits stay as they are, batch-norm statistics included. Writes
    ``bottlenecks.pt`` after every epoch; with `resume`, continues from it or, if it is damaged,
    from the epoch before it. `net` is moved to the chosen device.

    Raises:
        ConfigError: if the device or precision asked for is not to be had here, or the run to
            resume has other settings.
        BundleError: if there is a checkpoint to resume from, but none that is whole.
    """
    compute = choose_compute(config.device, config.precision)
    torch.manual_seed(config.seed)
    g = torch.Generator().manual_seed(config.seed)
    edges = np.rint(np.cumsum([0.0, *config.shares]) * config.batch_size).astype(int)
    wanted = [s for s in SPLITS if edges[s] > edges[s - 1]]
    channels_last(net).to(compute.device).eval().requires_grad_(False)
    trained = [m[s - 1] for m in (net.encoders, net.decoders) for s in wanted]
    parameters = []
    for module in trained:
        module.requires_grad_(True)
        parameters += list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=1e-3)
    steps = config.epochs * (len(fit) // config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: min((k + 1) / 100, 0.5 * (1 + math.cos(math.pi * min(k / steps, 1))) + 1e-3),
    )
    averaged = Averaged(net, 0.995)
    scaler = compute.scaler()
    first, last_file = 0, out / "bottlenecks.pt"
    run, backbone = run_of(config, net.config, fit), _fingerprint(net)
    state = checkpoint.load_newest(last_file, run) if resume else None
    if state is not None and state.get("backbone", backbone) != backbone:
        warn(f"{last_file} is of another backbone: the bottlenecks are fitted anew")
        state = None
    if state is not None:
        net.load_state_dict(state["live"])
        averaged.model.load_state_dict(state["model"])
        averaged.steps = state["ema_steps"]
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        g.set_state(state["generator"])
        if "torch_rng" in state:  # older versions did not keep it
            torch.set_rng_state(state["torch_rng"])
            compute.set_rng_state(state["device_rng"])
        if scaler.is_enabled() and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        first = state["epoch"]
    make_folder(out)
    with SummaryWriter(str(out)) as board:
        for epoch in range(first, config.epochs):
            for module in trained:
                module.train()
            order = epoch_order(fit.label, g)
            batches = order[: len(order) // config.batch_size * config.batch_size]
            losses = []
            bar = tqdm(
                batches.view(-1, config.batch_size),
                desc=f"bottlenecks {epoch + 1}/{config.epochs}",
                disable=not progress,
                mininterval=1.0,
            )
            for rows in bar:
                labels = torch.from_numpy(fit.label[rows.numpy()].astype(np.int64))
                x = augment(to_batch(fit.images, rows), labels, g, config.strength)
                x = compute.to_device(x.contiguous(memory_format=torch.channels_last))
                loss = torch.zeros((), device=compute.device)
                with compute.autocast():
                    with torch.no_grad():
                        features, logits = _teacher(net, x)
                    for s in wanted:
                        part = slice(edges[s - 1], edges[s])
                        loss = loss + bottleneck_loss(
                            net, [f[part] for f in features], [z[part] for z in logits], s, config
                        )
                backward_step(loss, parameters, optimizer, scaler)
                schedule.step()
                averaged.update(net)
                losses.append(loss.item())
                bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
            board.add_scalar("loss/bottlenecks", float(np.mean(losses)), epoch + 1)
            last = epoch + 1 == config.epochs
            if last or epoch % 2 == 1:
                accuracy = split_accuracy(averaged.model, val)
                for name, value in accuracy.items():
                    board.add_scalar(f"accuracy/val_{name}", value, epoch + 1)
                text = " ".join(f"{n} {a:.4f}" for n, a in accuracy.items())
                report(f"bottlenecks {epoch + 1}: loss {np.mean(losses):.3f} val {text}")
            checkpoint.save_next(
                last_file,
                {
                    "run": run,
                    "backbone": backbone,
                    "torch_rng": torch.get_rng_state(),
                    "device_rng": compute.rng_state(),
                    **checkpoint.model_state(averaged.model),
                    "live": net.state_dict(),
                    "ema_steps": averaged.steps,
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "generator": g.get_state(),
                    "scaler": scaler.state_dict(),
                    "epoch": epoch + 1,
                },
            )
    final = out / "network.pt"
    checkpoint.save(final, checkpoint.model_state(averaged.model))
    return final
