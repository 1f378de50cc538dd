"""The shipped network in torch: five VGG blocks, five exits, four bottlenecks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from cnn.model_config import N_BLOCKS, VGG16_CONVS, ModelConfig
from cnn.network.block_network import BlockNetwork

CONTRAST_FLOOR = 0.02
"""About five grey levels of 255: added to an image's contrast before dividing by it."""


def _conv(c_in: int, c_out: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    ]


def make_block(config: ModelConfig, block: int) -> nn.Sequential:
    """VGG block: (B, C_in, H, W) -> (B, C, H/2, W/2), without the pool in block 5."""
    c_in = 3 if block == 1 else config.channels(block - 1)
    c = config.channels(block)
    layers: list[nn.Module] = []
    for i in range(VGG16_CONVS[block - 1]):
        layers += _conv(c_in if i == 0 else c, c)
    if block < N_BLOCKS:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def make_exit(config: ModelConfig, exit: int, dropout: float = 0.3) -> nn.Sequential:
    """Classifier after block `exit`: features (B, C, H, W) -> logits (B, n_classes)."""
    c, size = config.channels(exit), config.size(exit)
    layers: list[nn.Module] = []
    for out, stride in config.head_layers(exit):
        layers += _conv(c, out, stride)
        c, size = out, -(-size // stride)
    layers += [nn.Flatten(), nn.Dropout(dropout)]
    features, hidden = c * size * size, config.head_hidden(exit)
    if hidden:
        layers += [nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        features = hidden
    layers.append(nn.Linear(features, config.n_classes))
    return nn.Sequential(*layers)


def make_encoder(config: ModelConfig, split: int) -> nn.Sequential:
    """Device side of bottleneck `split`: features -> latent in [0, 1], (B, L, h, w)."""
    c, (latent, size, _) = config.channels(split), config.latent(split)
    stride = config.size(split) // size
    hidden = {1: config.scaled(128), 2: config.scaled(256)}.get(split, config.scaled(128))
    return nn.Sequential(*_conv(c, hidden, stride), nn.Conv2d(hidden, latent, 1), nn.Sigmoid())


def make_decoder(config: ModelConfig, split: int) -> nn.Sequential:
    """Server side of bottleneck `split`: latent in [0, 1] -> features (B, C, H, W) >= 0."""
    c, (latent, size, _) = config.channels(split), config.latent(split)
    scale = config.size(split) // size
    hidden = {1: config.scaled(256), 2: config.scaled(512)}.get(split, config.channels(split))
    layers: list[nn.Module] = [*_conv(latent, hidden)]
    if split <= 2:  # the server has the time, and these two have the most to restore
        layers += _conv(hidden, hidden)
    layers += [nn.Conv2d(hidden, c * scale * scale, 3, padding=1)]
    if scale > 1:
        layers.append(nn.PixelShuffle(scale))
    layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class MultiExitVGG(BlockNetwork):
    """VGG-16's thirteen convolutions with batch norm, five exits and four bottlenecks.

    Input: float32 (B, 3, H, W) in [0, 1], RGB; the contrast normalisation is part of
    block 1, so callers never repeat it.
    """

    config: ModelConfig

    def __init__(self, config: ModelConfig):
        exits, splits = range(1, N_BLOCKS + 1), range(1, N_BLOCKS)
        super().__init__(
            config,
            config.topology(),
            blocks=(make_block(config, b) for b in exits),
            exits=(make_exit(config, e) for e in exits),
            encoders=(make_encoder(config, s) for s in splits),
            decoders=(make_decoder(config, s) for s in splits),
        )
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    @property
    def normalisation(self) -> str:
        """As of `BlockNetwork`."""
        return f"per image: (x - mean) / (contrast + {CONTRAST_FLOOR}), x in [0, 1]"

    def described(self) -> dict[str, Any]:
        """Its shape says all."""
        return asdict(self.config)

    def normalise(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> zero mean and about unit contrast in every image.

        Signs are filmed from full sun to deep shade; taking out each image's own
        brightness and contrast (all channels together, so colour stays) is what lets
        the first exit work in the dark. `CONTRAST_FLOOR` keeps noise from exploding.
        """
        centred = x - x.mean((1, 2, 3), keepdim=True)
        contrast = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
        return centred / (contrast + CONTRAST_FLOOR)
