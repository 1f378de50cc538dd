"""A MobileNetV2-like network in blocks, for `sliproad cnn adapt`.

Inverted residuals of M. Sandler et al., arXiv 1801.04381, in the strides of small images:
`--model examples/networks/mobilenet.py:mobilenet`. Nothing of sliproad is imported.
"""

from torch import Tensor, nn


def conv(c_in: int, c_out: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution and batch norm."""
    layer = nn.Conv2d(c_in, c_out, size, stride, size // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(c_out)]


class Inverted(nn.Module):
    """Widen, filter each channel alone, narrow without a non-linearity."""

    def __init__(self, c_in: int, c_out: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = c_in * factor
        self.layers = nn.Sequential(
            *conv(c_in, wide, 1),
            nn.ReLU6(),
            *conv(wide, wide, 3, stride, groups=wide),
            nn.ReLU6(),
            *conv(wide, c_out, 1),
        )
        self.same = c_in == c_out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.same else y


BLOCKS = (
    (16, 1, 1, 1),
    (24, 2, 1, 6),
    (32, 1, 2, 6),
    (32, 2, 1, 6),
    (64, 1, 2, 6),
    (64, 2, 1, 6),
    (96, 2, 1, 6),
    (160, 2, 1, 6),
)
"""Channels, layers, stride of the first layer, factor."""


def mobilenet(n_classes: int = 10) -> nn.Sequential:
    """Of images of 32 x 32 pixels, in eight blocks with seven exits, cut behind two of them."""
    blocks = []
    before = 32
    for channels, layers, stride, factor in BLOCKS:
        block = []
        for i in range(layers):
            block.append(Inverted(before, channels, stride if i == 0 else 1, factor))
            before = channels
        blocks.append(block)
    blocks[0] = [nn.BatchNorm2d(3), *conv(3, 32, 3, 2), nn.ReLU6(), *blocks[0]]
    head = [*conv(before, 640, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    blocks[-1] += [*head, nn.Dropout(0.2), nn.Linear(640, n_classes)]
    network = nn.Sequential(*(nn.Sequential(*block) for block in blocks))
    network.input_size = 32
    network.exits = (2, 3, 4, 5, 6, 7, 8)
    network.splits = (0, 4, 6)
    return network
