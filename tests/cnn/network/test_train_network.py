"""Training learns, repeats itself, and continues where it stopped."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cnn.common.errors import BundleError, ConfigError
from cnn.data.image_set import ImageSet
from cnn.model_config import ModelConfig
from cnn.network import weights_file as checkpoint
from cnn.network.torch_device import Precision
from cnn.network.train_network import (
    BottleneckConfig,
    TrainConfig,
    exit_accuracy,
    exit_loss,
    split_accuracy,
    train,
    train_bottlenecks,
)
from cnn.network.vgg import MultiExitVGG

pytestmark = pytest.mark.slow(40)

TINY = ModelConfig(width=0.125, input_size=32, n_classes=4, latent_channels=(4, 8, 8, 8))


def four_signs(n: int, seed: int) -> ImageSet:
    """Four plain signs by colour and shape, with noise: easy, but not constant."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 4
    images = rng.integers(60, 110, (n, 32, 32, 3))
    y, x = np.mgrid[:32, :32] - 15.5
    disc = np.hypot(x, y) < 11
    square = (abs(x) < 9) & (abs(y) < 9)
    for i, c in enumerate(label):
        images[i][disc if c < 2 else square, 0 if c % 2 else 2] = 230
    zero = np.zeros(n, np.int16)
    return ImageSet(
        images.astype(np.uint8), label.astype(np.int16), zero.astype(np.int32), zero, zero, zero
    )


@pytest.fixture(scope="module")
def data() -> tuple[ImageSet, ImageSet]:
    return four_signs(512, 0), four_signs(128, 1)


def build(model: ModelConfig) -> Callable[[], MultiExitVGG]:
    return partial(MultiExitVGG, model)


def config(epochs: int, seed: int = 0) -> TrainConfig:
    return TrainConfig(
        epochs=epochs, batch_size=32, precision="fp32", threads=1, seed=seed, ema=0.9
    )


@pytest.fixture(scope="module")
def trained(data: tuple[ImageSet, ImageSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(*data, build(TINY), config(5), tmp_path_factory.mktemp("run"), progress=False)


def test_every_exit_learns(data: tuple[ImageSet, ImageSet], trained: Path) -> None:
    net = checkpoint.build_model(checkpoint.load(trained))
    assert min(exit_accuracy(net, data[1])) >= 0.9


def test_bottlenecks_keep_what_the_exits_learned(
    data: tuple[ImageSet, ImageSet], trained: Path, tmp_path: Path
) -> None:
    net = checkpoint.build_model(checkpoint.load(trained))
    untrained = split_accuracy(net, data[1])
    before = {k: v.clone() for k, v in net.blocks.state_dict().items()}
    settings = BottleneckConfig(epochs=12, batch_size=32, shares=(0.25,) * 4, precision="fp32")
    final = train_bottlenecks(net, *data, settings, tmp_path, progress=False, report=lambda _: None)
    after = split_accuracy(checkpoint.build_model(checkpoint.load(final)), data[1])
    assert np.mean(list(after.values())) >= 0.9 > np.mean(list(untrained.values()))
    for name, value in net.blocks.state_dict().items():
        assert torch.equal(value, before[name]), f"the backbone's {name} moved"


def test_one_seed_one_result_and_resume_continues_exactly(
    data: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    small = data[0].take(np.arange(128)), data[1].take(np.arange(32))

    whole = weights(train(*small, build(TINY), config(3), tmp_path / "whole", progress=False))
    again = weights(train(*small, build(TINY), config(3), tmp_path / "again", progress=False))
    other = weights(
        train(*small, build(TINY), config(3, seed=1), tmp_path / "other", progress=False)
    )
    assert torch.equal(whole, again)
    assert not torch.equal(whole, other)

    cut_after(2, lambda: train(*small, build(TINY), config(3), tmp_path / "cut", progress=False))
    resumed = train(*small, build(TINY), config(3), tmp_path / "cut", resume=True, progress=False)
    assert torch.equal(weights(resumed), whole)


def test_loss_is_cross_entropy_when_nothing_is_distilled() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(8, 4) for _ in range(5)]
    labels = torch.arange(8) % 4
    plain = TrainConfig(distil=0.0, label_smoothing=0.0)
    expected = sum(
        w * torch.nn.functional.cross_entropy(z, labels)
        for w, z in zip(plain.exit_weights, logits, strict=True)
    )
    assert exit_loss(logits, labels, plain).item() == pytest.approx(float(expected))
    assert exit_loss(logits, labels, TrainConfig()) > exit_loss(logits, labels, plain)


def test_gradient_reaches_encoder_through_rounding() -> None:
    net = MultiExitVGG(TINY)
    net.through_bottleneck(torch.rand(2, TINY.channels(2), 8, 8), 2).sum().backward()
    assert all(p.grad is not None for p in net.encoders[1].parameters())


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"nothing")
    for path in (tmp_path / "x.pt", tmp_path / "absent.pt"):
        with pytest.raises(BundleError, match="checkpoint"):
            checkpoint.load(path)


class CutError(Exception):
    """Stands for a power cut."""


def cut_after(saves: int, work: Callable[[], object]) -> None:
    """Let `work` run until it has written so many checkpoints to resume from."""
    calls = 0
    save = checkpoint.save_next

    def save_and_count(path: Path, state: dict[str, Any]) -> None:
        nonlocal calls
        save(path, state)
        calls += 1
        if calls == saves:
            raise CutError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_next", save_and_count)
        with pytest.raises(CutError):
            work()


def weights(path: Path) -> torch.Tensor:
    state = checkpoint.load(path)["model"]
    return torch.cat([v.float().flatten() for v in state.values()])


def flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


Training = Callable[..., Path]


@dataclass(frozen=True)
class CutOff:
    """A training that was cut off after three of its four epochs.

    Attributes:
        work: the training, into a folder; with ``resume=True`` the rest of it.
        folder: what it left.
        name: its newest checkpoint's.
        expected: weights it would have ended with.
    """

    work: Training
    folder: Path
    name: str
    expected: torch.Tensor


@pytest.fixture(scope="module", params=["backbone", "bottlenecks"])
def cut_off(
    request: pytest.FixtureRequest,
    data: tuple[ImageSet, ImageSet],
    tmp_path_factory: pytest.TempPathFactory,
) -> CutOff:
    """Of the backbone and of the bottlenecks."""
    small = data[0].take(np.arange(64)), data[1].take(np.arange(16))
    settings = BottleneckConfig(epochs=4, batch_size=32, precision="fp32")

    def backbone(out: Path, resume: bool = False) -> Path:
        return train(*small, build(TINY), config(4), out, resume=resume, progress=False)

    def bottlenecks(out: Path, resume: bool = False) -> Path:
        net = checkpoint.build_model(checkpoint.load(out / "backbone.pt"))
        return train_bottlenecks(
            net, *small, settings, out, resume=resume, progress=False, report=lambda _: None
        )

    whole, cut = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("cut")
    work, name = backbone, "last.pt"
    if request.param == "bottlenecks":
        shutil.copy(backbone(whole), cut / "backbone.pt")
        work, name = bottlenecks, "bottlenecks.pt"
    expected = weights(work(whole))
    cut_after(3, lambda: work(cut))
    return CutOff(work, cut, name, expected)


@pytest.mark.parametrize("damage", [flip, halve, empty, Path.unlink])
def test_a_damaged_checkpoint_leaves_the_epoch_before_it(
    cut_off: CutOff,
    tmp_path: Path,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where neither is whole, one line says so."""
    cut, both, name = tmp_path / "cut", tmp_path / "both", cut_off.name
    shutil.copytree(cut_off.folder, cut)
    damage(cut / name)
    shutil.copytree(cut, both)
    assert torch.equal(weights(cut_off.work(cut, resume=True)), cut_off.expected)
    said = capsys.readouterr().err
    assert (f"warning: checkpoint {cut / name}" in said) == (damage is not Path.unlink)
    flip(both / checkpoint.previous(cut / name).name, 0.9)
    with pytest.raises(BundleError, match="checkpoint"):
        cut_off.work(both, resume=True)


def test_a_flip_anywhere_in_a_checkpoint_is_found(trained: Path, tmp_path: Path) -> None:
    whole = trained.read_bytes()
    for place in np.linspace(0, 1, 60):
        path = tmp_path / "x.pt"
        path.write_bytes(whole)
        flip(path, place)
        with pytest.raises(BundleError, match="damaged"):
            checkpoint.load(path)


SAVING = """
import torch
from pathlib import Path
from cnn.network import weights_file as checkpoint
state = {"config": {}, "model": {}, "number": 3, "much": torch.zeros(1000)}

def change():
    checkpoint.save_next(Path(FOLDER) / "last.pt", state)
"""


def test_a_kill_at_any_step_leaves_a_checkpoint_to_resume_from(
    tmp_path: Path, kill_at_every_step: Callable[[str, Path], Iterator[int]]
) -> None:
    out, seen = tmp_path / "run", []
    for _ in kill_at_every_step(SAVING, prepared(out)):
        found = checkpoint.load_newest(out / "last.pt", {})
        assert found is not None
        seen.append(found["number"])
        prepared(out)
    assert seen == sorted(seen)
    assert set(seen) == {2, 3}


def prepared(out: Path) -> Path:
    """A run's folder with the checkpoints 1 and 2, and nothing else."""
    shutil.rmtree(out, ignore_errors=True)
    for number in (1, 2):
        checkpoint.save_next(out / "last.pt", {"config": {}, "model": {}, "number": number})
    return out


def test_a_run_of_other_settings_is_not_resumed(
    data: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    small = data[0].take(np.arange(64)), data[1].take(np.arange(16))
    train(*small, build(TINY), config(1), tmp_path, progress=False)
    for other in (config(1, seed=1), replace(config(1), lr=1e-4)):
        with pytest.raises(ConfigError, match="settings that differ"):
            train(*small, build(TINY), other, tmp_path, resume=True, progress=False)
    wider = replace(TINY, width=0.25)
    with pytest.raises(ConfigError, match="settings that differ"):
        train(*small, build(wider), config(1), tmp_path, resume=True, progress=False)


def test_bottlenecks_of_another_backbone_are_fitted_anew(
    data: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    """As after more epochs of the backbone: what is exported has the new one."""
    small = data[0].take(np.arange(64)), data[1].take(np.arange(16))
    settings = BottleneckConfig(epochs=1, batch_size=32, precision="fp32")
    for epochs in (1, 2):
        backbone = train(*small, build(TINY), config(epochs), tmp_path, resume=True, progress=False)
        net = checkpoint.build_model(checkpoint.load(backbone))
        before = {k: v.clone() for k, v in net.blocks.state_dict().items()}
        final = train_bottlenecks(
            net, *small, settings, tmp_path, resume=True, progress=False, report=lambda _: None
        )
        after = checkpoint.build_model(checkpoint.load(final)).blocks.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_checkpoint_of_a_version_without_checksums_still_loads(
    trained: Path, tmp_path: Path
) -> None:
    state = checkpoint.load(trained)
    torch.save(state, tmp_path / "old.pt")
    assert torch.equal(weights(tmp_path / "old.pt"), weights(trained))


def test_a_gpu_that_is_not_there_is_refused_before_any_work(
    data: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("PyTorch sees a CUDA GPU here")
    with pytest.raises(ConfigError, match="no CUDA GPU"):
        train(
            *data, build(TINY), replace(config(1), device="cuda"), tmp_path / "run", progress=False
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA GPU here")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_on_a_gpu_learns_and_continues_on_the_processor(
    data: tuple[ImageSet, ImageSet], tmp_path: Path, precision: Precision
) -> None:
    on_gpu = replace(config(8), device="cuda", precision=precision)
    train(*data, build(TINY), on_gpu, tmp_path, progress=False)
    path = train(*data, build(TINY), config(9), tmp_path, resume=True, progress=False)
    net = checkpoint.build_model(checkpoint.load(path))
    assert min(exit_accuracy(net, data[1])) >= 0.9
