"""Images of plain shapes, tiny networks for them, and how a bundle's answers are computed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cnn.data.image_set import ImageSet
from cnn.runtime import SplitRuntime
from cnn.topology import Action

SIDE = 24
NAMES = ("blue disc", "red disc", "blue square", "red square")
LAYERS = """
from torch import nn

def layer(a, b, stride):
    return nn.Sequential(
        nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)
    )

def end(c, n):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, n))

def stating(blocks, **attributes):
    network = nn.Sequential(*blocks)
    for name, value in attributes.items():
        setattr(network, name, value)
    return network
"""
TINY = f"""{LAYERS}
def net(n_classes=4):
    last = nn.Sequential(layer(16, 24, 2), end(24, n_classes))
    blocks = layer(3, 8, 2), layer(8, 16, 2), last
    return stating(blocks, input_size={SIDE}, exits=(1, 3), splits=(0, 2))
"""


def four_shapes(n: int, seed: int, per_track: int = 4) -> ImageSet:
    """Four plain shapes by colour, with noise, in tracks of one shape."""
    rng = np.random.default_rng(seed)
    track = np.arange(n) // per_track
    images = rng.integers(60, 110, (n, SIDE, SIDE, 3))
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    disc, square = np.hypot(x, y) < 9, (abs(x) < 7) & (abs(y) < 7)
    label = track % 4
    for i, c in enumerate(label):
        images[i][disc if c < 2 else square, 0 if c % 2 else 2] = 230
    return ImageSet.of(
        images.astype(np.uint8),
        label=label,
        track=track,
        frame=np.arange(n) % per_track,
        width_px=np.full(n, SIDE),
        height_px=np.full(n, SIDE),
        what="made up",
    )


def runtime_logits(rt: SplitRuntime, images: NDArray[np.uint8], a: Action) -> NDArray[np.float32]:
    """As device and server compute them."""
    x = rt.forward(images, 1, a.split)
    if not a.is_local:
        payload = rt.payload(x, a.split)
        assert payload.dtype == np.uint8
        assert payload.shape[1:] == rt.wire_shape(a.split)
        x = rt.forward(rt.received(payload, a.split), a.split + 1, a.exit)
    return rt.logits(x, a.exit)


def probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Softmax of logits (B, n_classes) at `temperature`."""
    z = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    return z / z.sum(1, keepdims=True)
