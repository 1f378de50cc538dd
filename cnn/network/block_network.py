"""A network in blocks with exits and bottlenecks, in torch: what training and export work on.

Dataflow (E = exit, S = split)::

    frame B3HW -> block 1 -> ... -> block S -> encoder S ==uint8==> decoder S
                     |                 |                               |
                   exit 1            exit S      block S+1 -> ... -> block E -> exit E

Left of ``==>`` is the device, right of it the MEC server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn

from cnn.frame_table import LUMA_WEIGHTS
from cnn.model_config import NetworkConfig
from cnn.topology import Action, Topology

LATENT_LEVELS = 255
"""Latents lie in [0, 1] and cross the wire as round(255 z), one byte each."""


class _RoundSTE(torch.autograd.Function):
    """Round in the forward pass, identity in the backward pass."""

    @staticmethod
    def forward(ctx: object, z: Tensor) -> Tensor:
        return torch.round(z)

    @staticmethod
    def backward(ctx: object, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


def as_channels(x: Tensor, channels: int) -> Tensor:
    """Frames (B, 3, H, W) as they are, or their luma (B, 1, H, W) for a network of one channel."""
    if channels == 3:
        return x
    return (x * x.new_tensor(LUMA_WEIGHTS).view(1, 3, 1, 1)).sum(1, keepdim=True)


class BlockNetwork(nn.Module):
    """Blocks one after the other, with exits and bottlenecks where the topology has them.

    Args:
        config: input size and number of classes.
        topology: blocks, exits, splits and payloads.
        blocks: each takes what the one before gives; the first an image (B, C, H, W) in [0, 1].
        exits: output of a block -> logits (B, n_classes), in the order of `topology.exits`.
        encoders: output of a block -> latent (B, L, h, w) in [0, 1], in the order of `cuts`.
        decoders: latent -> output of the block, likewise.
        channels: of the image that block 1 takes: 3 (RGB) or 1 (luma).
    """

    def __init__(
        self,
        config: NetworkConfig,
        topology: Topology,
        blocks: Iterable[nn.Module],
        exits: Iterable[nn.Module],
        encoders: Iterable[nn.Module],
        decoders: Iterable[nn.Module],
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.config, self.topology, self.channels = config, topology, channels
        self.cuts = tuple(s for s in topology.splits if s > 0)
        self.blocks = nn.ModuleList(blocks)
        self.exits = nn.ModuleList(exits)
        self.encoders = nn.ModuleList(encoders)
        self.decoders = nn.ModuleList(decoders)

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient passes through all blocks; one of ONNX says so itself."""
        return all(getattr(block, "has_gradient", True) for block in self.blocks)

    @property
    def normalisation(self) -> str:
        """What happens to a frame before block 1, in words; kept in the manifest."""
        return "x in [0, 1]" + (", luma (ITU-R BT.601)" if self.channels == 1 else "")

    def described(self) -> dict[str, Any]:
        """Plain values that differ between networks of different layers."""
        layers = hashlib.sha256(repr(self).encode()).hexdigest()
        return {**asdict(self.config), "topology": self.topology.hash, "layers": layers}

    def normalise(self, x: Tensor) -> Tensor:
        """Frame (B, 3, H, W) in [0, 1] -> image (B, C, H, W) that block 1 takes."""
        return as_channels(x, self.channels)

    def exit_of(self, block: int) -> nn.Module:
        """The exit behind `block`."""
        return self.exits[self.topology.exits.index(block)]

    def encoder_of(self, split: int) -> nn.Module:
        """The device's side of the bottleneck at `split`."""
        return self.encoders[self.cuts.index(split)]

    def decoder_of(self, split: int) -> nn.Module:
        """The server's side of the bottleneck at `split`."""
        return self.decoders[self.cuts.index(split)]

    def features(self, x: Tensor, first: int, last: int) -> Tensor:
        """Run blocks `first`..`last`; `first` = 1 expects the frame in [0, 1]."""
        if first == 1:
            x = self.normalise(x)
        for b in range(first, last + 1):
            x = self.blocks[b - 1](x)
        return x

    def through_bottleneck(self, features: Tensor, split: int) -> Tensor:
        """Encode, quantise to 8 bits (straight-through gradient), decode."""
        scaled = self.latent_levels(features, split)
        q = cast(Tensor, _RoundSTE.apply(scaled)) / LATENT_LEVELS  # type: ignore[no-untyped-call]
        return cast(Tensor, self.decoder_of(split)(q.to(features.dtype)))

    def latent_levels(self, features: Tensor, split: int) -> Tensor:
        """What the encoder at `split` makes of block outputs: 0 to `LATENT_LEVELS`, unrounded."""
        return cast(Tensor, self.encoder_of(split)(features).float() * LATENT_LEVELS)

    def act_on(self, payload: Tensor, action: Action) -> Tensor:
        """Logits (B, n_classes) of an action whose payload, uint8 (B, C, h, w), has arrived."""
        e, s = action.exit, action.split
        f = self.decoder_of(s)(payload.float() / LATENT_LEVELS)
        return cast(Tensor, self.exit_of(e)(self.features(f, s + 1, e)))

    def exits_from(self, features: Tensor, block: int) -> list[Tensor]:
        """Logits of the exits behind `block` and later ones, given the output of `block`."""
        logits = []
        for b in range(block, self.topology.n_blocks + 1):
            if b > block:
                features = self.blocks[b - 1](features)
            if b in self.topology.exits:
                logits.append(self.exit_of(b)(features))
        return logits

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits of all exits, unsplit: list of (B, n_classes)."""
        return self.exits_from(self.features(x, 1, 1), 1)

    def act(self, x: Tensor, action: Action) -> Tensor:
        """Logits (B, n_classes) of one action, bottleneck and quantisation included."""
        e, s = action.exit, action.split
        if s in (0, e):
            return cast(Tensor, self.exit_of(e)(self.features(x, 1, e)))
        f = self.through_bottleneck(self.features(x, 1, s), s)
        return cast(Tensor, self.exit_of(e)(self.features(f, s + 1, e)))
