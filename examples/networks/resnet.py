"""Small ResNets in blocks, for `sliproad cnn adapt --model examples/networks/resnet.py:resnet20`.

`resnet20` is the network of K. He et al., arXiv 1512.03385, section 4.2: three stages of 16, 32 and
64 channels, here with a projection where the shape changes. `resnet9` is wide and shallow in their
manner, with three exits. Nothing of sliproad is imported.
"""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3 x 3 convolutions and a way around them."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.around: nn.Module = nn.Identity()
        if c_in != c_out or stride > 1:
            conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.around = nn.Sequential(conv, nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.around(x))


class ResNet(nn.Module):
    """Blocks: each stage is cut in two, so that there are six; the last ends in the classifier."""

    def __init__(self, depth: int, width: int, n_classes: int, input_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        # Mean and spread of the images are taken out here: the input is in [0, 1].
        stem = [nn.BatchNorm2d(3), nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)]
        half = (depth + 1) // 2
        blocks = []
        for stage in range(3):
            c, before = width << stage, width << max(stage - 1, 0)
            layers = [
                Residual(before if i == 0 else c, c, 2 if i == 0 and stage else 1)
                for i in range(depth)
            ]
            blocks += [layers[:half], layers[half:]]
        blocks[0] = [*stem, nn.ReLU(), *blocks[0]]
        blocks[-1] += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, n_classes)]
        self.blocks = nn.ModuleList(nn.Sequential(*layers) for layers in blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def resnet20(n_classes: int = 10) -> ResNet:
    """Of images of 32 x 32 pixels; 0.27 million weights."""
    return ResNet(depth=3, width=16, n_classes=n_classes, input_size=32)


def resnet9(n_classes: int = 10, width: int = 24) -> nn.Sequential:
    """Of images of 32 x 32 pixels, in seven blocks with three exits; 1.50 million weights.

    Blocks 4 and 6 end in fewer channels without a ReLU, as those of MobileNetV2 do (M. Sandler et
    al., arXiv 1801.04381): these are the places where the network is split.
    """

    def conv(c_in: int, c_out: int, *more: nn.Module) -> list[nn.Module]:
        layer = nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False)
        return [layer, nn.BatchNorm2d(c_out), nn.ReLU(), *more]

    def narrow(c_in: int, c_out: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out)]

    w = width
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * w, n_classes)]
    blocks = (
        [nn.BatchNorm2d(3), *conv(3, w)],
        conv(w, 2 * w, nn.MaxPool2d(2)),
        [Residual(2 * w, 2 * w, 1)],
        [*conv(2 * w, 4 * w, nn.MaxPool2d(2)), *narrow(4 * w, 24)],
        [Residual(24, 4 * w, 1)],
        [*conv(4 * w, 8 * w, nn.MaxPool2d(2)), *narrow(8 * w, 64)],
        [Residual(64, 8 * w, 1), Residual(8 * w, 8 * w, 1), *end],
    )
    network = nn.Sequential(*(nn.Sequential(*block) for block in blocks))
    network.input_size = 32
    network.exits = (3, 5, 7)
    network.splits = (0, 4, 6)
    return network
