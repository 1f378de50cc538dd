"""Fit the network: the exits together, then the bottlenecks against the fitted network.

The exits are trained jointly, with distillation from the main exit. The bottlenecks' targets are
the frozen network's own features and answers, so no label is needed: every step splits the batch,
and each part passes one bottleneck. The first ones get larger parts: they compress most and
come before most layers.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from cnn.common.console import warn
from cnn.common.errors import ConfigError
from cnn.common.files import make_folder, write_text
from cnn.data.image_set import ImageSet
from cnn.network import weights_file as checkpoint
from cnn.network.block_network import BlockNetwork
from cnn.network.fitting import Fit, FitConfig, channels_last, run_of, share_right
from cnn.network.torch_device import choose_compute


@dataclass(frozen=True, slots=True)
class TrainConfig(FitConfig):
    """How to fit the backbone and its exits.

    Attributes:
        weight_decay: AdamW's decoupled weight decay.
        distil: weight of the KL term between early exits and the main exit.
        temperature: softmax temperature of that term.
        exit_weights: weight of each exit's loss.
        label_smoothing: of the cross entropy.
        ema: decay of the averaged weights that are evaluated and exported.
        frozen: fit the exits alone; the blocks stay as they are, batch-norm statistics included.
        threads: torch threads; 0 leaves torch's choice.
    """

    weight_decay: float = 0.05
    distil: float = 0.5
    temperature: float = 3.0
    exit_weights: tuple[float, ...] = (0.6, 0.8, 1.0, 1.0, 1.2)
    label_smoothing: float = 0.05
    ema: float = 0.998
    frozen: bool = False
    threads: int = 0


def _above_bars(line: str) -> None:
    """A line of progress, on standard error as the bars are: results alone go to the output."""
    tqdm.write(line, file=sys.stderr)


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


def exit_accuracy(model: BlockNetwork, data: ImageSet) -> list[float]:
    """Accuracy of every unsplit exit, in [0, 1]."""
    names = [str(e) for e in model.topology.exits]
    return list(share_right(model, data, lambda x: zip(names, model(x), strict=True)).values())


def train(
    fit: ImageSet,
    val: ImageSet,
    build: Callable[[], BlockNetwork],
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Fit the backbone and exits; returns the path of the final checkpoint.

    `build` makes the network; it is called when the seed has been set.

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
    model = channels_last(build()).to(compute.device)
    fitted: list[nn.Module] = [model]
    if config.frozen:
        model.eval().requires_grad_(False)
        fitted = [*model.exits.requires_grad_(True)]
    fitting = Fit(
        model,
        [*nn.ModuleList(fitted).parameters()],
        config,
        compute,
        n_images=len(fit),
        decay=config.ema,
        weight_decay=config.weight_decay,
        warm_steps=lambda steps: max(1, steps // 20),
    )
    history: list[dict[str, Any]] = []
    last, run = out / "last.pt", run_of(config, model, fit)
    if resume and (state := checkpoint.load_newest(last, run)) is not None:
        fitting.resume(state)
        history = state["history"]

    def loss_of(x: Tensor, labels: Tensor) -> Tensor:
        with compute.autocast():
            logits = model(x)
        return exit_loss([o.float() for o in logits], compute.to_device(labels), config)

    make_folder(out)
    with SummaryWriter(str(out)) as board:
        for epoch in range(len(history) + 1, config.epochs + 1):
            bar = {"desc": f"epoch {epoch}/{config.epochs}", "disable": not progress}
            loss = fitting.epoch(fit, fitted, loss_of, bar)
            accuracy = exit_accuracy(fitting.averaged.model, val)
            history.append({"epoch": epoch, "loss": loss, "val": accuracy})
            board.add_scalar("loss/fit", loss, epoch)
            for e, a in zip(model.topology.exits, accuracy, strict=True):
                board.add_scalar(f"accuracy/val_exit{e}", a, epoch)
            if progress:
                _above_bars(f"epoch {epoch}: val " + " ".join(f"{a:.4f}" for a in accuracy))
            checkpoint.save_next(last, {"run": run, **fitting.state(), "history": history})
    final = out / "backbone.pt"
    checkpoint.save(final, checkpoint.model_state(fitting.averaged.model))
    record = {"config": asdict(config), "compute": compute.describe(), "history": history}
    write_text(out / "train.json", json.dumps(record, indent=1))
    return final


@dataclass(frozen=True, slots=True)
class BottleneckConfig(FitConfig):
    """How to fit the bottlenecks.

    Attributes:
        shares: parts of a batch that pass each bottleneck; 0 leaves one as it is.
        feature_weight: weight of the feature error relative to the answers' divergence.
        answers: count that divergence; blocks without gradients leave it out.
        temperature: softmax temperature of the answers' divergence.
    """

    epochs: int = 8
    strength: float = 0.8
    shares: tuple[float, ...] = (0.375, 0.375, 0.125, 0.125)
    feature_weight: float = 1.0
    answers: bool = True
    temperature: float = 2.0

    def __post_init__(self) -> None:
        FitConfig.__post_init__(self)  # a class with slots has no other `super()`
        if min(self.shares) < 0 or not 0.99 < sum(self.shares) < 1.01 or self.batch_size < 8:
            raise ConfigError(
                f"shares {self.shares} of a batch of {self.batch_size}",
                expected="shares >= 0 that sum to 1, and at least 8 images",
                hint="correct the configuration",
            )


def _fingerprint(net: BlockNetwork) -> str:
    """SHA-256 of the network as it is before its bottlenecks are fitted."""
    found = hashlib.sha256()
    for name, value in net.state_dict().items():
        found.update(name.encode())
        found.update(value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _teacher(net: BlockNetwork, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Output of every block, and logits of every exit."""
    features, logits = [], []
    f = net.normalise(x)
    for number, block in enumerate(net.blocks, 1):
        f = block(f)
        features.append(f)
        if number in net.topology.exits:
            logits.append(net.exit_of(number)(f).float())
    return features, logits


def bottleneck_loss(
    net: BlockNetwork,
    features: Sequence[Tensor],
    logits: Sequence[Tensor],
    split: int,
    config: BottleneckConfig,
) -> Tensor:
    """Feature error after bottleneck `split` plus divergence of every later exit's answer."""
    target = features[split - 1]
    decoded = net.through_bottleneck(target, split)
    error = (decoded.float() - target.float()).square().mean()
    loss = config.feature_weight * error / target.float().square().mean().clamp_min(1e-6)
    if not config.answers:
        return loss
    later = [z for e, z in zip(net.topology.exits, logits, strict=True) if e > split]
    t = config.temperature
    answers = net.exits_from(net.blocks[split](decoded), split + 1)
    for z, answer in zip(later, answers, strict=True):
        student = F.log_softmax(answer.float() / t, 1)
        teacher = F.softmax(z / t, 1)
        loss = loss + t * t * F.kl_div(student, teacher, reduction="batchmean")
    return loss


def split_accuracy(net: BlockNetwork, data: ImageSet) -> dict[str, float]:
    """Accuracy of every (exit, split) with 1 <= split < exit, by action name."""

    def answers(x: Tensor) -> Iterator[tuple[str, Tensor]]:
        f = net.normalise(x)
        for s, block in enumerate(net.blocks, 1):
            f = block(f)
            if s not in net.cuts:
                continue
            logits = net.exits_from(net.blocks[s](net.through_bottleneck(f, s)), s + 1)
            later = [e for e in net.topology.exits if e > s]
            yield from ((f"e{e}s{s}", z) for e, z in zip(later, logits, strict=True))

    return share_right(net, data, answers)


def train_bottlenecks(
    net: BlockNetwork,
    fit: ImageSet,
    val: ImageSet,
    config: BottleneckConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = _above_bars,
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
    edges = np.rint(np.cumsum([0.0, *config.shares]) * config.batch_size).astype(int)
    parts = dict(zip(net.cuts, map(slice, edges[:-1], edges[1:]), strict=True))
    wanted = [s for s, part in parts.items() if part.stop > part.start]
    channels_last(net).to(compute.device).eval().requires_grad_(False)
    trained = [of(s) for of in (net.encoder_of, net.decoder_of) for s in wanted]
    parameters = [*nn.ModuleList(trained).requires_grad_(True).parameters()]
    fitting = Fit(
        net,
        parameters,
        config,
        compute,
        n_images=len(fit),
        decay=0.995,
        weight_decay=1e-3,
        warm_steps=lambda steps: 100,
    )
    done, last = 0, out / "bottlenecks.pt"
    run, backbone = run_of(config, net, fit), _fingerprint(net)
    state = checkpoint.load_newest(last, run) if resume else None
    if state is not None and state.get("backbone", backbone) != backbone:
        warn(f"{last} is of another backbone: the bottlenecks are fitted anew")
    elif state is not None:
        fitting.resume(state)
        done = state["epoch"]

    def loss_of(x: Tensor, labels: Tensor) -> Tensor:
        loss = torch.zeros((), device=compute.device)
        with compute.autocast():
            with torch.no_grad():
                features, logits = _teacher(net, x)
            for s in wanted:
                part = parts[s]
                loss = loss + bottleneck_loss(
                    net, [f[part] for f in features], [z[part] for z in logits], s, config
                )
        return loss

    make_folder(out)
    with SummaryWriter(str(out)) as board:
        for epoch in range(done + 1, config.epochs + 1):
            desc = f"bottlenecks {epoch}/{config.epochs}"
            bar = {"desc": desc, "disable": not progress, "mininterval": 1.0}
            loss = fitting.epoch(fit, trained, loss_of, bar)
            board.add_scalar("loss/bottlenecks", loss, epoch)
            if epoch == config.epochs or epoch % 2 == 0:
                accuracy = split_accuracy(fitting.averaged.model, val)
                for name, value in accuracy.items():
                    board.add_scalar(f"accuracy/val_{name}", value, epoch)
                text = " ".join(f"{n} {a:.4f}" for n, a in accuracy.items())
                report(f"bottlenecks {epoch}: loss {loss:.3f} val {text}")
            checkpoint.save_next(
                last, {"run": run, "backbone": backbone, **fitting.state(), "epoch": epoch}
            )
    final = out / "network.pt"
    checkpoint.save(final, checkpoint.model_state(fitting.averaged.model))
    return final
