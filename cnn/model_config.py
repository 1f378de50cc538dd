"""Shapes and operation counts of the multi-exit VGG, without torch.

Shape letters used across this package: B batch, C channels, H height, W width.
One multiply-accumulate is counted as one MAC (two FLOPs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from cnn.common.errors import require, shown
from cnn.topology import Topology

N_BLOCKS: Final = 5
VGG16_CONVS: Final = (2, 2, 3, 3, 3)
VGG16_CHANNELS: Final = (64, 128, 256, 512, 512)
"""VGG-16 configuration D: Simonyan and Zisserman, arXiv 1409.1556, table 1."""


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A network's input size and number of classes.

    Attributes:
        input_size: side of the square RGB input, pixels, 1..1024.
        n_classes: number of classes, 2..32768 (a class is an int16 everywhere).

    Raises:
        ConfigError: if one is out of its range, or of another type.
    """

    input_size: int = 48
    n_classes: int = 43

    def __post_init__(self) -> None:
        size, n = self.input_size, self.n_classes
        fine = type(size) is int and 1 <= size <= 1024
        require(fine, f"input_size {shown(size)} pixels", "1 to 1024", "try 48")
        fine = type(n) is int and 2 <= n <= 2**15
        require(fine, f"{shown(n)} classes", "2 to 32768", "GTSRB has 43")


@dataclass(frozen=True, slots=True)
class ModelConfig(NetworkConfig):
    """Shape of one multi-exit VGG: five blocks, an exit and a split at each.

    Attributes:
        input_size: as of `NetworkConfig`; a multiple of 16, 32..224.
        n_classes: as of `NetworkConfig`.
        width: factor on VGG-16's channel counts, (0, 2].
        latent_channels: latent channels at splits 1..4, each 1..4096.

    Raises:
        ConfigError: if one is out of its range, or of another type.
    """

    width: float = 0.5
    latent_channels: tuple[int, int, int, int] = (7, 24, 14, 48)

    def __post_init__(self) -> None:
        size, latent = self.input_size, self.latent_channels
        whole = all(type(n) is int for n in (size, self.n_classes, *latent))
        require(
            whole and type(self.width) in (int, float),
            "a network's shape with something else than numbers",
            "a width, and whole numbers beside it",
            "correct it, or try the default",
        )
        fine = len(latent) == 4 and all(1 <= n <= 4096 for n in latent)
        given = f"latent_channels {shown(latent)}"
        require(fine, given, "four numbers from 1 to 4096", "try the default")
        require(0 < self.width <= 2, f"width {shown(self.width)}", "0 < width <= 2", "try 0.5")
        fine = size % 16 == 0 and 32 <= size <= 224
        require(fine, f"input_size {shown(size)} pixels", "a multiple of 16 in 32..224", "try 48")
        NetworkConfig.__post_init__(self)  # a class with slots has no other `super()`

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

    def latent(self, split: int) -> tuple[int, int, int]:
        """Shape (C, h, w) of the bottleneck's latent at `split` (1..4), one byte each."""
        size = self.size(split)
        halved = size // 2 if split <= 2 else size
        return self.latent_channels[split - 1], halved, halved

    def topology(self) -> Topology:
        """Blocks, exits, splits and payloads of this network."""
        frame = (self.input_size, self.input_size, 3)
        return Topology(
            n_blocks=N_BLOCKS,
            exits=tuple(range(1, N_BLOCKS + 1)),
            splits=tuple(range(N_BLOCKS)),
            payload_shapes=(frame, *(self.latent(s) for s in range(1, N_BLOCKS))),
        )

    def payload_bytes(self, exit: int, split: int) -> int:
        """Uplink bytes of action (exit, split): 0 if local, the raw frame if split is 0."""
        return 0 if split == exit else math.prod(self.topology().payload_shape(split))

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
        return self.scaled(512) if exit == N_BLOCKS else 0

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
