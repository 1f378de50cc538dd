"""Shapes and operation counts of the multi-exit VGG, without torch.

Shape letters used across this package: B batch, C channels, H height, W width.
One multiply-accumulate is counted as one MAC (two FLOPs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cnn.common.errors import ConfigError, shown
from cnn.topology import N_EXITS

VGG16_CONVS: Final = (2, 2, 3, 3, 3)
VGG16_CHANNELS: Final = (64, 128, 256, 512, 512)
"""VGG-16 configuration D: Simonyan and Zisserman, arXiv 1409.1556, table 1."""


@dataclass(frozen=True, slots=True)
class BottleneckShape:
    """Latent of the autoencoder at one split: (`channels`, `size`, `size`), one byte each."""

    channels: int
    size: int

    @property
    def payload_bytes(self) -> int:
        """Bytes on the uplink for one frame (uint8, not entropy-coded)."""
        return self.channels * self.size * self.size


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of one network.

    Attributes:
        width: factor on VGG-16's channel counts, (0, 2].
        input_size: side of the square RGB input, pixels; a multiple of 16, 32..224.
        n_classes: number of road signs, 2..32768 (a class is an int16 everywhere).
        latent_channels: latent channels at splits 1..4, each 1..4096.

    Raises:
        ConfigError: if one is out of its range, or of another type.
    """

    width: float = 0.5
    input_size: int = 48
    n_classes: int = 43
    latent_channels: tuple[int, int, int, int] = (7, 24, 14, 48)

    def __post_init__(self) -> None:
        whole = (self.input_size, self.n_classes, *self.latent_channels)
        if type(self.width) not in (int, float) or any(type(n) is not int for n in whole):
            raise ConfigError(
                "a network's shape with something else than numbers",
                expected="a width, and whole numbers beside it",
                hint="correct it, or try the default",
            )
        if len(self.latent_channels) != 4 or not all(1 <= n <= 4096 for n in self.latent_channels):
            raise ConfigError(
                f"latent_channels {shown(self.latent_channels)}",
                expected="four numbers from 1 to 4096",
                hint="try the default",
            )
        if not 0 < self.width <= 2:
            raise ConfigError(
                f"width {shown(self.width)}", expected="0 < width <= 2", hint="try 0.5"
            )
        if self.input_size % 16 or not 32 <= self.input_size <= 224:
            raise ConfigError(
                f"input_size {shown(self.input_size)} pixels",
                expected="a multiple of 16 in 32..224",
                hint="try 48",
            )
        if not 2 <= self.n_classes <= 2**15:
            raise ConfigError(
                f"{shown(self.n_classes)} classes", expected="2 to 32768", hint="GTSRB has 43"
            )

    def channels(self, block: int) -> int:
        """Output channels of `block` (1..5)."""
        return max(8, round(VGG16_CHANNELS[block - 1] * self.width))

    def scaled(self, channels_at_width_1: int) -> int:
        """Channels of a head or bottleneck layer at this width."""
        return max(8, round(channels_at_width_1 * self.width))

    def size(self, block: int) -> int:
        """Side of the output of `block` (0 = the input), pixels.

        Blocks 1..4 end in a 2 x 2 max-pool. Block 5 does not: at 48 x 48 VGG's last
        pool would leave the main exit a single pixel.
        """
        return self.input_size >> min(block, 4)

    def bottleneck(self, split: int) -> BottleneckShape:
        """Latent shape at `split` (1..4)."""
        size = self.size(split)
        halved = size // 2 if split <= 2 else size
        return BottleneckShape(self.latent_channels[split - 1], halved)

    def payload_bytes(self, exit: int, split: int) -> int:
        """Uplink bytes of action (exit, split): 0 if local, the raw frame if split is 0."""
        if split == exit:
            return 0
        if split == 0:
            return 3 * self.input_size**2
        return self.bottleneck(split).payload_bytes

    def block_macs(self, block: int) -> int:
        """MACs of one block for one frame (convolutions only)."""
        size = self.size(block - 1)
        c_in = 3 if block == 1 else self.channels(block - 1)
        c_out = self.channels(block)
        n = VGG16_CONVS[block - 1]
        return size * size * 9 * (c_in * c_out + (n - 1) * c_out * c_out)

    def head_layers(self, exit: int) -> tuple[tuple[int, int], ...]:
        """Convolutions of an exit head as (out_channels, stride), 3 x 3 each.

        Chosen so that every head stays under 10 % of the MACs of its block while
        keeping a spatial map (not a global average) in front of the classifier.
        """
        s = self.scaled
        return {
            1: ((s(64), 2), (s(128), 2)),
            2: ((s(192), 2), (s(192), 2)),
            3: ((s(384), 2), (s(384), 1)),
            4: ((s(384), 1),),
            5: (),
        }[exit]

    def head_hidden(self, exit: int) -> int:
        """Width of the hidden linear layer of an exit head; 0 if there is none."""
        return self.scaled(512) if exit == N_EXITS else 0

    def head_macs(self, exit: int) -> int:
        """MACs of one exit head for one frame."""
        size, c = self.size(exit), self.channels(exit)
        macs = 0
        for out, stride in self.head_layers(exit):
            size = -(-size // stride)
            macs += size * size * 9 * c * out
            c = out
        features = c * size * size
        hidden = self.head_hidden(exit)
        if hidden:
            return macs + features * hidden + hidden * self.n_classes
        return macs + features * self.n_classes


PRESETS: Final[dict[str, ModelConfig]] = {
    "embedded": ModelConfig(),
    "paper": ModelConfig(width=1.0),
}
"""`embedded` is the shipped bundle; `paper` has VGG-16's own channel counts."""
