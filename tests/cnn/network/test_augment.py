"""Augmentation keeps labels true."""

import numpy as np
import torch

from cnn.network.augment import MIRROR_SAFE, augment


def test_stays_an_image_and_follows_the_generator() -> None:
    x = torch.rand(32, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(32) % 43
    runs = [augment(x, labels, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert runs[0].shape == x.shape
    assert runs[0].min() >= 0
    assert runs[0].max() <= 1
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_only_symmetric_signs_are_mirrored() -> None:
    """With strength 0 nothing but the mirror remains: a left-right ramp shows it."""
    ramp = torch.linspace(0.2, 0.8, 48).expand(200, 3, 48, 48).contiguous()
    for label in (12, 33, 38):
        out = augment(
            ramp, torch.full((200,), label), torch.Generator().manual_seed(0), strength=0.0
        )
        mirrored = (out[:, 0, 24, 0] > out[:, 0, 24, -1]).sum().item()
        assert (60 < mirrored < 140) if label in MIRROR_SAFE else mirrored == 0


def test_shifts_move_whole_pixels_by_so_many_at_most() -> None:
    """Every image is one of the windows of the image and its reflection; all of them come."""
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    padded = np.pad(x[0].numpy(), ((0, 0), (2, 2), (2, 2)), "reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (16, 16), (1, 2))
    windows = windows.transpose(1, 2, 0, 3, 4).reshape(25, 1, -1)
    g = torch.Generator().manual_seed(0)
    labels = torch.zeros(400, dtype=torch.int64)
    out = augment(x.expand(400, 3, 16, 16), labels, g, 0.0, (), shift=0.125)
    far = np.abs(windows - out.reshape(1, 400, -1).numpy()).max(-1)
    assert far.min(0).max() < 1e-4
    assert set(far.argmin(0)) == set(range(25))
