"""Exits and bottlenecks for a network that has none, sized by what its blocks give and cost.

Shape letters: C channels, H height, W width of a block's output; L channels, h, w of the latent.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

HEAD_WIDTHS: Final = (128, 96, 64, 48, 32, 24, 16)
HEAD_SHARE: Final = 0.25
"""Most multiply-accumulates of an early exit, as a share of those of the blocks before it."""
_HEAD_SIDE: Final = 4
"""Side of the map in front of an exit's classifier, pixels; a mean would lose where things are."""
_MOST_CLASSIFIER: Final = 2**20
"""Weights of a classifier on that map; with more, the map's mean is classified."""
_STRIDE_FROM: Final = 8
"""Least side of a block's output that the encoder halves."""


def run_counted(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """Output of `module` in eval mode on a batch, and multiply-accumulates for one of its rows.

    Counts what `torch.utils.flop_counter` does: convolutions, matrix products, attention.
    """
    module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        y = module(x)
    return y, counter.get_total_flops() // 2 // len(x)


def latent_shape(
    features: tuple[int, int, int], frame_bytes: int, share: float
) -> tuple[int, int, int]:
    """Shape (L, h, w) of the latent of a block's output (C, H, W), one byte each.

    It has about `share` of the output's numbers, and about half of the frame's bytes at most: a
    split that sends more than that hardly ever pays. Sides of 8 or more are halved, unless all
    numbers are sent: then the latent has the output's own shape.
    """
    channels, height, width = features
    if share == 1 and math.prod(features) <= frame_bytes / 2:
        return features
    stride = _stride(features)
    h, w = -(-height // stride), -(-width // stride)
    wanted = min(share * math.prod(features), frame_bytes / 2)
    return min(max(1, round(wanted / (h * w))), channels * stride**2), h, w


def make_exit(features: tuple[int, ...], n_classes: int, most_macs: float) -> nn.Module:
    """Classifier of a block's output, (C, H, W) or (C,), that costs at most `most_macs`.

    It is the widest that does, or the narrowest if none does.
    """
    if len(features) == 1:
        return nn.Sequential(nn.Dropout(0.2), nn.Linear(features[0], n_classes))
    c, height, width = features
    widths = iter(HEAD_WIDTHS)
    head = _convolutions((c, height, width), n_classes, next(widths))
    for hidden in widths:
        if run_counted(head, torch.zeros(1, *features))[1] <= most_macs:
            break
        head = _convolutions((c, height, width), n_classes, hidden)
    _initialise(head)
    return head


def make_encoder(features: tuple[int, int, int], latent: tuple[int, int, int]) -> nn.Module:
    """Device side of a bottleneck: (B, C, H, W) -> latent in [0, 1], (B, L, h, w)."""
    if latent == features:
        return ToRange(features[0])
    c, hidden = features[0], max(min(max(features[0], 16), 64), latent[0])
    layers = [*_conv(c, hidden, _stride(features)), nn.Conv2d(hidden, latent[0], 1), nn.Sigmoid()]
    encoder = nn.Sequential(*layers)
    _initialise(encoder)
    return encoder


def make_decoder(
    features: tuple[int, int, int],
    latent: tuple[int, int, int],
    rectified: bool,
    encoder: nn.Module,
) -> nn.Module:
    """Server side of `encoder`: latent in [0, 1] -> (B, C, H, W), >= 0 if `rectified`."""
    if isinstance(encoder, ToRange):
        return nn.Sequential(FromRange(encoder), nn.ReLU() if rectified else nn.Identity())
    c, hidden, stride = features[0], min(max(features[0], 64), 128), _stride(features)
    layers = [*_conv(latent[0], hidden), *_conv(hidden, hidden)]
    layers.append(nn.Conv2d(hidden, c * stride**2, 1))
    if stride > 1:
        layers += [nn.PixelShuffle(stride), _Crop(*features[1:])]
    if rectified:
        layers.append(nn.ReLU())
    decoder = nn.Sequential(*layers)
    _initialise(decoder)
    return decoder


class ToRange(nn.Module):
    """A bottleneck that narrows nothing: each channel is scaled to [0, 1], to be sent as bytes.

    Channels are first normalised by their mean and spread. The range begins as four of these to
    either side of the mean, 32 levels a spread; what lies outside is cut off. It is fitted.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        nn.init.constant_(self.norm.weight, 1 / 8)
        nn.init.constant_(self.norm.bias, 1 / 2)

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.norm(x)
        return scaled.clamp(0.0, 1.0)


class FromRange(nn.Module):
    """The inverse of a `ToRange`, by its own numbers."""

    def __init__(self, of: ToRange) -> None:
        super().__init__()
        self.norm = of.norm  # the same weights, fitted as one and exported with both sides

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None
        assert var is not None
        slope = (var + norm.eps).sqrt() / norm.weight
        return x * slope.view(-1, 1, 1) + (mean - norm.bias * slope).view(-1, 1, 1)


class _Crop(nn.Module):
    """The first `height` rows and `width` columns: an odd side was rounded up when halved."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : self.height, : self.width]


def _stride(features: tuple[int, int, int]) -> int:
    return 2 if min(features[1:]) >= _STRIDE_FROM else 1


def _conv(c_in: int, c_out: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(c_out), nn.ReLU()]


def _convolutions(features: tuple[int, int, int], n_classes: int, hidden: int) -> nn.Sequential:
    """Convolutions that halve the map until it is small, then a linear classifier."""
    c, height, width = features
    layers: list[nn.Module] = []
    while not layers or max(height, width) > _HEAD_SIDE:
        stride = 2 if max(height, width) > _HEAD_SIDE else 1
        layers += _conv(c, hidden, stride)
        c, height, width = hidden, -(-height // stride), -(-width // stride)
    if c * height * width * n_classes > _MOST_CLASSIFIER:
        layers.append(nn.AdaptiveAvgPool2d(1))
        height = width = 1
    layers += [nn.Flatten(), nn.Dropout(0.2), nn.Linear(c * height * width, n_classes)]
    return nn.Sequential(*layers)


def _initialise(part: nn.Module) -> None:
    for m in part.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
