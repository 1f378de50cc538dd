"""The same signs on another day: whole tracks under other light, optics and cropping.

Policies learn on few tracks, most of them easy. A variant of a track is what a camera could
have seen on another drive past the same sign: one condition holds for the whole track (light,
blur, resolution, noise, dirt), the detector's box wobbles from frame to frame. The network
then really answers the changed frames; nothing about its answers is made up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from cnn.common.errors import ConfigError
from cnn.data.gtsrb import ImageSet


@dataclass(frozen=True, slots=True)
class Condition:
    """What one drive past one sign looks like.

    Attributes:
        gamma, gain, contrast: of the light; 1 changes nothing.
        blur_px: standard deviation of a Gaussian blur, pixels of the network's input.
        resolution: share of the pixels that are left, by width.
        noise: standard deviation of the sensor's noise, share of full scale.
        zoom, shift: of the detector's box (1 and (0, 0): as labelled; shift by shares of
            the width).
        wobble: how much shift and zoom differ from frame to frame, standard deviation.
        dirt: (left, top, width, height, grey) of a covering patch, shares; None without.
    """

    gamma: float = 1.0
    gain: float = 1.0
    contrast: float = 1.0
    blur_px: float = 0.0
    resolution: float = 1.0
    noise: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    wobble: float = 0.0
    dirt: tuple[float, float, float, float, float] | None = None


def draw_condition(rng: np.random.Generator, strength: float) -> Condition:
    """A random condition.

    Args:
        rng: source of every random number.
        strength: 0 is the drive as it was, 1 what `cnn.network.augment` trains the network on.
    """

    def spread(width: float) -> float:
        return float(rng.uniform(-width, width)) * strength

    hit, blurred = rng.random() < 0.25, rng.random() < 0.5
    left, top = rng.uniform(-0.1, 0.9, 2)
    width, height = rng.uniform(0.1, 0.4, 2) * strength
    dirt = (float(left), float(top), float(width), float(height), float(rng.random()))
    return Condition(
        gamma=float(np.exp(spread(0.5))),
        gain=float(np.exp(spread(0.4))),
        contrast=float(np.exp(spread(0.5))),
        blur_px=float(rng.uniform(0.0, 1.5)) * strength if blurred else 0.0,
        resolution=1.0 - float(rng.uniform(0.0, 0.6)) * strength,
        noise=float(rng.random()) ** 2 * 0.05 * strength,
        zoom=float(np.exp(spread(0.15))),
        shift=(spread(0.08), spread(0.08)),
        wobble=0.02 * strength,
        dirt=dirt if hit and strength > 0 else None,
    )


def see(
    image: NDArray[np.uint8], condition: Condition, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """One frame, uint8 (H, W, 3), as the camera sees it under `condition`."""
    height, width = image.shape[:2]
    picture = _box(Image.fromarray(image), condition, rng)
    if condition.blur_px:
        picture = picture.filter(ImageFilter.GaussianBlur(condition.blur_px))
    if condition.resolution < 1.0:
        small = (max(4, round(width * condition.resolution)),) * 2
        smaller = picture.resize(small, Image.Resampling.BILINEAR)
        picture = smaller.resize((width, height), Image.Resampling.BILINEAR)
    x = np.asarray(picture, np.float32) / 255.0
    if condition.dirt is not None:
        left, top, w, h, grey = condition.dirt
        rows = slice(max(0, round(top * height)), max(0, round((top + h) * height)))
        columns = slice(max(0, round(left * width)), max(0, round((left + w) * width)))
        x[rows, columns] = grey
    x = np.power(x, np.float32(condition.gamma))
    mean = x.mean()
    x = ((x - mean) * condition.contrast + mean) * condition.gain
    if condition.noise:
        x = x + rng.normal(0.0, condition.noise, x.shape).astype(np.float32)
    seen: NDArray[np.uint8] = np.clip(np.rint(x * 255.0), 0, 255).astype(np.uint8)
    return seen


def _box(picture: Image.Image, condition: Condition, rng: np.random.Generator) -> Image.Image:
    """Cut out another box around the sign; beyond the crop its border goes on."""
    width, height = picture.size
    zoom = condition.zoom * float(np.exp(rng.normal(0.0, condition.wobble)))
    dx, dy = (s + float(rng.normal(0.0, condition.wobble)) for s in condition.shift)
    centre_x, centre_y = (0.5 + dx) * width, (0.5 + dy) * height
    edge = max(width, height) // 2
    padded = np.pad(np.asarray(picture), ((edge, edge), (edge, edge), (0, 0)), mode="edge")
    matrix = (
        zoom, 0.0, edge + centre_x - zoom * width / 2,
        0.0, zoom, edge + centre_y - zoom * height / 2,
    )  # fmt: skip
    return Image.fromarray(padded).transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )


def another_drive(data: ImageSet, strength: float, seed: int) -> ImageSet:
    """The same tracks seen on another day, one condition a track.

    Args:
        data: frames with tracks; labels, tracks, frame numbers and crop sizes stay.
        strength: of the worst condition, see `draw_condition`; each track's is drawn evenly
            between 0 and this, so that some tracks are as easy as they were.
        seed: equal seeds give equal frames.

    Raises:
        ConfigError: if the strength is not within 0..2.
    """
    if not 0.0 <= strength <= 2.0:
        raise ConfigError(f"strength {strength}", expected="0 to 2", hint="try 1")
    images = np.empty_like(data.images)
    names = data.track_names()
    previous, rng, condition = "", np.random.default_rng(seed), Condition()
    for i, name in enumerate(names):
        if name != previous:
            # By name, so that a track looks the same whatever other tracks are there.
            rng = np.random.default_rng([seed, *name.encode()])
            condition, previous = draw_condition(rng, strength * rng.random()), name
        images[i] = see(data.images[i], condition, rng)
    return replace(data, images=images)
