"""Common parts of the network's trainings: settings, batches, averages, the loop, resuming."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cnn.common.errors import ConfigError
from cnn.data.image_set import ImageSet
from cnn.network import weights_file as checkpoint
from cnn.network.augment import MIRROR_SAFE, augment
from cnn.network.block_network import BlockNetwork
from cnn.network.torch_device import Compute, DeviceChoice, Precision, parse_choice


@dataclass(frozen=True, slots=True)
class FitConfig:
    """The settings that every training has.

    Attributes:
        epochs: passes over the fit tracks.
        batch_size: images a step.
        lr: peak learning rate of AdamW (linear warm-up, cosine decay).
        strength: of the augmentation.
        shift: largest shift of an image, share of its side, by whole pixels.
        mirrored: classes whose images may be mirrored; None is those of road signs.
        device: ``auto`` (a CUDA GPU if there is one), ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16``, ``fp16`` (CUDA only) or ``auto``: see `choose_compute`.
        seed: of everything random.
    """

    epochs: int = 24
    batch_size: int = 128
    lr: float = 3e-3
    strength: float = 1.0
    shift: float = 0.0
    mirrored: tuple[int, ...] | None = None
    device: DeviceChoice = "auto"
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        parse_choice(self.device, self.precision)
        if self.epochs < 1 or self.batch_size < 2:
            raise ConfigError(
                f"epochs {self.epochs}, batch size {self.batch_size}",
                expected="at least 1 epoch and 2 images a batch",
                hint="give larger numbers",
            )


def channels_last(model: BlockNetwork) -> BlockNetwork:
    """The same network with weights laid out for faster convolutions on a processor."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def to_batch(images: np.ndarray[Any, Any], index: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) rows `index` -> float32 (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(images[index.numpy()]).permute(0, 3, 1, 2).float() / 255


def epoch_order(labels: np.ndarray[Any, Any], g: torch.Generator) -> Tensor:
    """Row numbers of one epoch: rare signs drawn more often (weight count^-0.5)."""
    counts = np.bincount(labels)
    weights = torch.from_numpy(counts[labels].astype(np.float64) ** -0.5)
    return torch.multinomial(weights, len(labels), replacement=True, generator=g)


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


def run_of(config: FitConfig, model: BlockNetwork, fit: ImageSet) -> dict[str, Any]:
    """Values that must not change when a run is resumed: settings, network, images; plain values.

    The device and the number of epochs may change.
    """
    may_change = ("epochs", "device", "precision", "threads")
    values = {name: value for name, value in asdict(config).items() if name not in may_change}
    run: dict[str, Any] = json.loads(
        json.dumps({**values, "model": model.described(), "images": len(fit)})
    )
    return run


class Averaged:
    """Exponential moving average of weights; batch-norm statistics are averaged too."""

    def __init__(self, model: BlockNetwork, decay: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: BlockNetwork) -> None:
        """Move the average towards `model`; early steps move faster."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        source = model.state_dict()
        for name, value in self.model.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(source[name], 1 - decay)
            else:
                value.copy_(source[name])


class Fit:
    """All state that changes while a network is fitted, and from which a run resumes.

    Args:
        model: the network; it is moved to the device.
        parameters: those that are fitted.
        config: settings of the run (`TrainConfig`, `BottleneckConfig`).
        compute: where, and in which precision.
        n_images: images that it is fitted on.
        decay: of the averaged weights.
        weight_decay: AdamW's decoupled weight decay.
        warm_steps: steps after which the learning rate is at its peak, from `n_steps`.
    """

    def __init__(
        self,
        model: BlockNetwork,
        parameters: Sequence[Tensor],
        config: FitConfig,
        compute: Compute,
        *,
        n_images: int,
        decay: float,
        weight_decay: float,
        warm_steps: Callable[[int], int],
    ) -> None:
        self.model, self.config, self.compute = model, config, compute
        self.averaged = Averaged(model, decay)
        self._parameters = parameters
        self._generator = torch.Generator().manual_seed(config.seed)
        self._optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=weight_decay)
        self._scaler = compute.scaler()
        steps = config.epochs * (n_images // config.batch_size)
        warm = warm_steps(steps)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda k: min((k + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(k / steps, 1))) + 1e-3),
        )

    def state(self) -> dict[str, Any]:
        """The state for `resume`, together with the parts that rebuild the averaged network."""
        return {
            **checkpoint.model_state(self.averaged.model),
            "live": self.model.state_dict(),
            "ema_steps": self.averaged.steps,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "generator": self._generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "device_rng": self.compute.rng_state(),
            "scaler": self._scaler.state_dict(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Resume from a `state`, whatever device it was made on."""
        self.model.load_state_dict(state["live"])
        self.averaged.model.load_state_dict(state["model"])
        self.averaged.steps = state["ema_steps"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"])
        if "torch_rng" in state:  # older versions did not always keep it
            torch.set_rng_state(state["torch_rng"])
            self.compute.set_rng_state(state.get("device_rng"))
        if self._scaler.is_enabled() and state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])

    def epoch(
        self,
        data: ImageSet,
        modules: Iterable[nn.Module],
        loss_of: Callable[[Tensor, Tensor], Tensor],
        bar: Mapping[str, Any],
    ) -> float:
        """One pass over `data`; returns the mean loss.

        Args:
            data: images and labels. Batches are drawn and augmented on the processor, so one
                seed gives the same images everywhere.
            modules: those that are fitted, put in training mode.
            loss_of: loss of images (B, 3, H, W) on the device and labels (B,) on the processor.
            bar: arguments of the progress bar.
        """
        for module in modules:
            module.train()
        order = epoch_order(data.label, self._generator)
        size = self.config.batch_size
        losses: list[float] = []
        mirrored = MIRROR_SAFE if self.config.mirrored is None else self.config.mirrored
        with tqdm(order[: len(order) // size * size].view(-1, size), **bar) as batches:
            for rows in batches:
                labels = torch.from_numpy(data.label[rows.numpy()].astype(np.int64))
                x = to_batch(data.images, rows)
                strength, shift = self.config.strength, self.config.shift
                x = augment(x, labels, self._generator, strength, mirrored, shift)
                x = self.compute.to_device(x.contiguous(memory_format=torch.channels_last))
                loss = loss_of(x, labels)
                backward_step(loss, self._parameters, self._optimizer, self._scaler)
                self._schedule.step()
                self.averaged.update(self.model)
                losses.append(loss.item())
                batches.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
        return float(np.mean(losses))


@torch.no_grad()
def share_right(
    model: BlockNetwork,
    data: ImageSet,
    answers: Callable[[Tensor], Iterable[tuple[str, Tensor]]],
    batch: int = 256,
) -> dict[str, float]:
    """Accuracy in [0, 1] of every answer that `answers` gives to images (B, 3, H, W), by name."""
    model.eval()
    device = next(model.parameters()).device
    hits: dict[str, float] = {}
    for at in range(0, len(data), batch):
        rows = torch.arange(at, min(at + batch, len(data)))
        labels = torch.from_numpy(data.label[at : at + batch].astype(np.int64))
        for name, logits in answers(to_batch(data.images, rows).to(device)):
            right = (logits.argmax(1).cpu() == labels).sum().item()
            hits[name] = hits.get(name, 0.0) + right
    return {name: h / len(data) for name, h in hits.items()}
