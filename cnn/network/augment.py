"""Label-safe augmentation of images, on batches, in torch.

Geometry (rotation, scale, shift, shear, perspective; shifts by whole pixels), light (gain,
contrast, gamma, colour cast), blur, noise and occlusion. Only classes that are their own mirror
image are mirrored: a mirrored direction sign would be another class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

MIRROR_SAFE: Final = (11, 12, 13, 15, 17, 18, 26, 30, 35)
"""Right-of-way, priority, yield, no vehicles, no entry, caution, signals, ice, ahead only."""


def augment(
    images: Tensor,
    labels: Tensor,
    g: Generator,
    strength: float = 1.0,
    mirrored: Sequence[int] = MIRROR_SAFE,
    shift: float = 0.0,
) -> Tensor:
    """Randomly changed copy of a batch.

    Args:
        images: float32 (B, 3, H, W) in [0, 1].
        labels: int64 (B,), classes, for the mirror rule.
        g: source of every random number.
        strength: scales geometry and light; 0 changes nothing but mirroring.
        mirrored: classes whose images may be mirrored.
        shift: largest shift along each side, as a share of it, by whole pixels: the image stays
            as sharp as it was. What comes in from outside is the reflection of what is inside.

    Returns:
        float32 (B, 3, H, W) in [0, 1].
    """
    x = _shift(images, g, shift)
    x = _warp(x, torch.isin(labels, torch.tensor(mirrored, dtype=torch.int64)), g, strength)
    x = _light(x, g, strength)
    x = _blur(x, g, strength)
    level = torch.rand(len(x), 1, 1, 1, generator=g).square() * 0.4 * strength
    contrast = x.std((1, 2, 3), keepdim=True)
    x = x + torch.randn(x.shape, generator=g) * level * contrast
    return _occlude(x, g, strength).clamp_(0, 1)


def _uniform(n: int, half_width: float, g: Generator) -> Tensor:
    return (torch.rand(n, generator=g) * 2 - 1) * half_width


def _shift(x: Tensor, g: Generator, share: float) -> Tensor:
    n, _, h, w = x.shape
    up, left = round(share * h), round(share * w)
    if not (up or left):
        return x
    padded = F.pad(x, (left, left, up, up), mode="reflect")
    rows = torch.randint(2 * up + 1, (n, 1), generator=g) + torch.arange(h)
    columns = torch.randint(2 * left + 1, (n, 1), generator=g) + torch.arange(w)
    image = torch.arange(n).view(n, 1, 1)
    # The channels go last where rows and columns are looked up, and back.
    moved = padded.permute(0, 2, 3, 1)[image, rows.unsqueeze(2), columns.unsqueeze(1)]
    return moved.permute(0, 3, 1, 2).contiguous()


def _warp(x: Tensor, safe: Tensor, g: Generator, s: float) -> Tensor:
    n, _, h, w = x.shape
    angle = _uniform(n, 0.26 * s, g)  # radians: +-15 degrees
    scale = torch.exp(_uniform(n, 0.22 * s, g))
    aspect = torch.exp(_uniform(n, 0.10 * s, g))
    shear = _uniform(n, 0.18 * s, g)
    mirror = torch.where(safe & (torch.rand(n, generator=g) < 0.5), -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.zeros(n, 3, 3)
    theta[:, 0, 0] = mirror * cos * scale * aspect
    theta[:, 0, 1] = (-sin + shear) * scale
    theta[:, 1, 0] = mirror * sin * scale
    theta[:, 1, 1] = cos * scale / aspect
    theta[:, 0, 2] = _uniform(n, 0.16 * s, g)
    theta[:, 1, 2] = _uniform(n, 0.16 * s, g)
    theta[:, 2, 0] = _uniform(n, 0.15 * s, g)
    theta[:, 2, 1] = _uniform(n, 0.15 * s, g)
    theta[:, 2, 2] = 1.0
    ys, xs = torch.meshgrid(
        (torch.arange(h) * 2 + 1) / h - 1, (torch.arange(w) * 2 + 1) / w - 1, indexing="ij"
    )
    points = torch.stack([xs, ys, torch.ones_like(xs)], -1).view(1, h * w, 3)
    moved = points @ theta.transpose(1, 2)
    grid = (moved[..., :2] / moved[..., 2:].clamp_min(0.2)).view(n, h, w, 2)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _light(x: Tensor, g: Generator, s: float) -> Tensor:
    n = len(x)
    gamma = torch.exp(_uniform(n, 0.5 * s, g)).view(n, 1, 1, 1)
    x = x.clamp(1e-4, 1).pow(gamma)
    mean = x.mean((1, 2, 3), keepdim=True)
    contrast = torch.exp(_uniform(n, 0.5 * s, g)).view(n, 1, 1, 1)
    gain = torch.exp(_uniform(n, 0.4 * s, g)).view(n, 1, 1, 1)
    cast = torch.exp((torch.rand(n, 3, 1, 1, generator=g) * 2 - 1) * 0.12 * s)
    return ((x - mean) * contrast + mean) * gain * cast


def _blur(x: Tensor, g: Generator, s: float) -> Tensor:
    """Gaussian or directional (motion) blur on about a third of the batch."""
    n, c, h, w = x.shape
    chosen = torch.nonzero(torch.rand(n, generator=g) < 0.35).flatten()
    m = len(chosen)
    if m == 0 or s == 0:
        return x
    sigma = (0.3 + torch.rand(m, generator=g) * 1.2 * s).view(m, 1, 1)
    squeeze = torch.where(torch.rand(m, generator=g) < 0.5, 1.0, 4.0).view(m, 1, 1)
    angle = (torch.rand(m, generator=g) * torch.pi).view(m, 1, 1)
    r = torch.arange(-2.0, 3.0)
    ys, xs = torch.meshgrid(r, r, indexing="ij")
    along = xs * torch.cos(angle) + ys * torch.sin(angle)
    across = -xs * torch.sin(angle) + ys * torch.cos(angle)
    kernel = torch.exp(-(along.square() + (across * squeeze).square()) / (2 * sigma.square()))
    kernel = kernel / kernel.sum((1, 2), keepdim=True)
    kernel = kernel.repeat_interleave(c, 0).unsqueeze(1)
    part = F.pad(x[chosen], (2, 2, 2, 2), mode="replicate").reshape(1, m * c, h + 4, w + 4)
    blurred = F.conv2d(part, kernel, groups=m * c).view(m, c, h, w)
    return x.index_copy(0, chosen, blurred)


def _occlude(x: Tensor, g: Generator, s: float) -> Tensor:
    """Grey rectangle over up to a sixth of the crop, in a quarter of the batch."""
    n, _, h, w = x.shape
    size = (torch.rand(n, 2, generator=g) * 0.3 + 0.1) * s
    centre = torch.rand(n, 2, generator=g)
    active = torch.rand(n, generator=g) < 0.25
    ys, xs = torch.arange(h).view(1, h, 1) / h, torch.arange(w).view(1, 1, w) / w
    hit = ((ys - centre[:, 0].view(n, 1, 1)).abs() < size[:, 0].view(n, 1, 1) / 2) & (
        (xs - centre[:, 1].view(n, 1, 1)).abs() < size[:, 1].view(n, 1, 1) / 2
    )
    hit &= active.view(n, 1, 1)
    grey = torch.rand(n, 3, 1, 1, generator=g)
    return torch.where(hit.unsqueeze(1), grey, x)
