"""Joint training of the five exits, with distillation from the main exit."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from cnn.common.errors import ConfigError
from cnn.common.files import make_folder, write_text
from cnn.data.image_set import ImageSet
from cnn.model_config import ModelConfig
from cnn.network import weights_file as checkpoint
from cnn.network.augment import augment
from cnn.network.torch_device import DeviceChoice, Precision, choose_compute, parse_choice
from cnn.network.vgg import MultiExitVGG


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to fit the backbone and its exits.

    Attributes:
        epochs: passes over the fit tracks.
        batch_size: images a step.
        lr: peak learning rate of AdamW (linear warm-up, cosine decay).
        weight_decay: AdamW's decoupled weight decay.
        distil: weight of the KL term that pulls early exits to the main exit.
        temperature: softmax temperature of that term.
        exit_weights: weight of each exit's loss.
        label_smoothing: of the cross entropy.
        ema: decay of the averaged weights that are evaluated and exported.
        strength: of the augmentation.
        device: ``auto`` (a CUDA GPU if there is one), ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16``, ``fp16`` (CUDA only) or ``auto``: see `choose_compute`.
        threads: torch threads; 0 leaves torch's choice.
        seed: of everything random.
    """

    epochs: int = 24
    batch_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.05
    distil: float = 0.5
    temperature: float = 3.0
    exit_weights: tuple[float, float, float, float, float] = (0.6, 0.8, 1.0, 1.0, 1.2)
    label_smoothing: float = 0.05
    ema: float = 0.998
    strength: float = 1.0
    device: DeviceChoice = "auto"
    precision: Precision = "auto"
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        parse_choice(self.device, self.precision)
        if self.epochs < 1 or self.batch_size < 2:
            raise ConfigError(
                f"epochs {self.epochs}, batch size {self.batch_size}",
                expected="at least 1 epoch and 2 images a batch",
                hint="give larger numbers",
            )


def channels_last(model: MultiExitVGG) -> MultiExitVGG:
    """The same network with weights laid out for faster convolutions on a processor."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def to_batch(images: np.ndarray[Any, Any], index: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) rows `index` -> float32 (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(images[index.numpy()]).permute(0, 3, 1, 2).float() / 255


def exit_loss(logits: list[Tensor], labels: Tensor, config: TrainConfig) -> Tensor:
    """Weighted cross entropy of every exit plus distillation from the main exit.

    BYOT-style self-distillation: Zhang et al., "Be Your Own Teacher", ICCV 2019.
    """
    t = config.temperature
    teacher = F.softmax(logits[-1].detach() / t, 1)
    total = logits[0].new_zeros(())
    for weight, out in zip(config.exit_weights, logits, strict=True):
        total = total + weight * F.cross_entropy(
            out, labels, label_smoothing=config.label_smoothing
        )
    for weight, out in zip(config.exit_weights[:-1], logits[:-1], strict=True):
        kl = F.kl_div(F.log_softmax(out / t, 1), teacher, reduction="batchmean")
        total = total + config.distil * weight * t * t * kl
    return total


def epoch_order(labels: np.ndarray[Any, Any], g: torch.Generator) -> Tensor:
    """Row numbers of one epoch: rare signs drawn more often (weight count^-0.5)."""
    counts = np.bincount(labels)
    weights = torch.from_numpy(counts[labels].astype(np.float64) ** -0.5)
    return torch.multinomial(weights, len(labels), replacement=True, generator=g)


@torch.no_grad()
def exit_accuracy(model: MultiExitVGG, data: ImageSet, batch: int = 256) -> list[float]:
    """Accuracy of the five unsplit exits, in [0, 1]."""
    model.eval()
    hits = np.zeros(5)
    device = next(model.parameters()).device
    for at in range(0, len(data), batch):
        rows = torch.arange(at, min(at + batch, len(data)))
        labels = torch.from_numpy(data.label[at : at + batch].astype(np.int64))
        for e, out in enumerate(model(to_batch(data.images, rows).to(device))):
            hits[e] += (out.argmax(1).cpu() == labels).sum().item()
    return [float(h) for h in hits / len(data)]


def backward_step(
    loss: Tensor,
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """One optimiser step on `loss`, gradients clipped to norm 5.

    The clipping sees true gradients: they are unscaled first. A step whose gradients
    overflowed float16 is left out by the scaler, which then scales less.
    """
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, 5.0)
    scaler.step(optimizer)
    scaler.update()


def run_of(config: Any, model: ModelConfig, fit: ImageSet) -> dict[str, Any]:
    """What must not change when a run is resumed: settings, network, images; plain values.

    Where it computes may change, and so may the number of epochs.
    """
    may_change = ("epochs", "device", "precision", "threads")
    values = {name: value for name, value in asdict(config).items() if name not in may_change}
    run: dict[str, Any] = json.loads(
        json.dumps({**values, "model": asdict(model), "images": len(fit)})
    )
    return run


class Averaged:
    """Exponential moving average of weights; batch-norm statistics are averaged too."""

    def __init__(self, model: MultiExitVGG, decay: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: MultiExitVGG) -> None:
        """Move the average towards `model`; early steps move faster."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        source = model.state_dict()
        for name, value in self.model.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(source[name], 1 - decay)
            else:
                value.copy_(source[name])


def train(
    fit: ImageSet,
    val: ImageSet,
    model_config: ModelConfig,
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Fit the backbone and exits; returns the path of the final checkpoint.

    Writes ``last.pt`` after every epoch (Ctrl-C loses at most one epoch), TensorBoard
    events and ``train.json`` to `out`. With `resume`, continues from ``last.pt`` or, if that is
    damaged, from the epoch before it, on whatever device it was written. Batches are drawn and
    augmented on the processor, so one seed gives the same images everywhere; on the processor it
    gives the same weights.

    Raises:
        ConfigError: if the device or precision asked for is not to be had here, or the run to
            resume has other settings.
        BundleError: if there is a checkpoint to resume from, but none that is whole.
    """
    compute = choose_compute(config.device, config.precision)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    g = torch.Generator().manual_seed(config.seed)
    model = channels_last(MultiExitVGG(model_config)).to(compute.device)
    averaged = Averaged(model, config.ema)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    steps = config.epochs * (len(fit) // config.batch_size)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: min((k + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(k / steps, 1))) + 1e-3),
    )
    scaler = compute.scaler()
    history: list[dict[str, Any]] = []
    last = out / "last.pt"
    run = run_of(config, model_config, fit)
    if resume and (state := checkpoint.load_newest(last, run)) is not None:
        model.load_state_dict(state["live"])
        averaged.model.load_state_dict(state["model"])
        averaged.steps = state["ema_steps"]
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        g.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        compute.set_rng_state(state.get("device_rng"))
        if scaler.is_enabled() and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        history = state["history"]
    make_folder(out)
    with SummaryWriter(str(out)) as board:
        for epoch in range(len(history), config.epochs):
            model.train()
            order = epoch_order(fit.label, g)
            batches = order[: len(order) // config.batch_size * config.batch_size].view(
                -1, config.batch_size
            )
            losses = []
            bar = tqdm(batches, desc=f"epoch {epoch + 1}/{config.epochs}", disable=not progress)
            for rows in bar:
                labels = torch.from_numpy(fit.label[rows.numpy()].astype(np.int64))
                x = augment(to_batch(fit.images, rows), labels, g, config.strength)
                x = compute.to_device(x.contiguous(memory_format=torch.channels_last))
                with compute.autocast():
                    logits = model(x)
                loss = exit_loss([o.float() for o in logits], compute.to_device(labels), config)
                backward_step(loss, list(model.parameters()), optimizer, scaler)
                schedule.step()
                averaged.update(model)
                losses.append(loss.item())
                bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
            accuracy = exit_accuracy(averaged.model, val)
            record = {"epoch": epoch + 1, "loss": float(np.mean(losses)), "val": accuracy}
            history.append(record)
            board.add_scalar("loss/fit", record["loss"], epoch + 1)
            for e, a in enumerate(accuracy, 1):
                board.add_scalar(f"accuracy/val_exit{e}", a, epoch + 1)
            if progress:
                tqdm.write(f"epoch {epoch + 1}: val " + " ".join(f"{a:.4f}" for a in accuracy))
            checkpoint.save_next(
                last,
                {
                    "run": run,
                    **checkpoint.model_state(averaged.model),
                    "live": model.state_dict(),
                    "ema_steps": averaged.steps,
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "generator": g.get_state(),
                    "torch_rng": torch.get_rng_state(),
                    "device_rng": compute.rng_state(),
                    "scaler": scaler.state_dict(),
                    "history": history,
                },
            )
    final = out / "backbone.pt"
    checkpoint.save(final, checkpoint.model_state(averaged.model))
    record = {"config": asdict(config), "compute": compute.describe(), "history": history}
    write_text(out / "train.json", json.dumps(record, indent=1))
    return final
