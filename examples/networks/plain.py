"""A plain CNN of three blocks and three exits: `--model examples/networks/plain.py:plain`.

Nothing of sliproad is imported.
"""

from torch import nn


def conv(c_in: int, c_out: int, stride: int) -> list[nn.Module]:
    """Convolution, batch norm, non-linearity."""
    layer = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
    return [layer, nn.BatchNorm2d(c_out), nn.ReLU()]


def narrow(c_in: int, c_out: int) -> list[nn.Module]:
    """Few channels at a block's end: what a split there sends."""
    return [nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out)]


def plain(n_classes: int = 10) -> nn.Sequential:
    """Of images of 32 x 32 pixels."""
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, n_classes)]
    blocks = (
        [nn.BatchNorm2d(3), *conv(3, 32, 2), *conv(32, 32, 1), *narrow(32, 8)],
        [*conv(8, 64, 2), *conv(64, 64, 1), *narrow(64, 16)],
        [*conv(16, 128, 2), *conv(128, 128, 1), *end],
    )
    network = nn.Sequential(*(nn.Sequential(*block) for block in blocks))
    network.input_size = 32
    network.exits = (1, 2, 3)
    network.splits = (0, 1, 2)
    return network
