"""A small network with exits of very different accuracy, for `sliproad cnn adapt`.

`--model examples/networks/ladder.py:ladder` of images of 32 pixels, `:ladder48` of images of 48.
Five blocks with an exit behind each, and splits behind the first four. The first blocks are cheap
and their exits often wrong. Every block ends in few channels without a ReLU, as those of
MobileNetV2 do (M. Sandler et al., arXiv 1801.04381), so that with `--payload 1` little must be sent
and nothing but the rounding to bytes is lost. Nothing of sliproad is imported.
"""

import torch
from torch import Tensor, nn


def conv(c_in: int, c_out: int, stride: int = 1) -> list[nn.Module]:
    """Convolution, batch norm, ReLU."""
    layer = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
    return [layer, nn.BatchNorm2d(c_out), nn.ReLU()]


def narrow(c_in: int, c_out: int) -> list[nn.Module]:
    """Fewer channels, without a non-linearity."""
    return [nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out)]


class Residual(nn.Module):
    """Two 3 x 3 convolutions and a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.layers = nn.Sequential(*conv(channels, channels), last, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + x)


def _in_blocks(
    n_classes: int, size: int, first: list[nn.Module], second: list[nn.Module]
) -> nn.Sequential:
    before = second[-1].num_features
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, n_classes)]
    blocks = (
        [nn.BatchNorm2d(3), *first],
        second,
        [*conv(before, 96), Residual(96), *narrow(96, 10)],
        [*conv(10, 160), Residual(160), nn.MaxPool2d(2), *narrow(160, 32)],
        [*conv(32, 256), Residual(256), *end],
    )
    network = nn.Sequential(*(nn.Sequential(*block) for block in blocks))
    network.input_size = size
    network.exits = (1, 2, 3, 4, 5)
    network.splits = (0, 1, 2, 3, 4)
    return network


def ladder(n_classes: int = 10) -> nn.Sequential:
    """Of images of 32 x 32 pixels; 2.0 million weights. The splits send 1536 to 512 bytes."""
    first = [*conv(3, 12, 2), *narrow(12, 6)]
    second = [*conv(6, 24), *conv(24, 24), nn.MaxPool2d(2), *narrow(24, 12)]
    return _in_blocks(n_classes, 32, first, second)


def ladder48(n_classes: int = 43) -> nn.Sequential:
    """Of images of 48 x 48 pixels, of which the first block keeps every fourth row and column.

    The splits send 576 to 216 bytes, the frame itself is 6912.
    """
    first = [*conv(3, 8, 2), *conv(8, 8, 2), *narrow(8, 4)]
    second = [*conv(4, 12), nn.MaxPool2d(2), *narrow(12, 6)]
    return _in_blocks(n_classes, 48, first, second)
