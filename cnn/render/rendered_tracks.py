"""Rendered road-sign tracks: a frame source that needs no data set.

A track is one sign that a car approaches, as in GTSRB: 30 crops that grow, with pose and
light that drift. The network never trains on these images; they are for demonstrations,
live runs and tests on a machine without GTSRB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnn.common.errors import ConfigError
from cnn.data.image_file import resize_rgb
from cnn.data.image_set import ImageSet
from cnn.render.sign_camera import BACKGROUND_PX, Light, View, background, mip_levels, shoot
from cnn.render.sign_canvas import LAYER_PX, fractal
from cnn.render.signs import N_SIGNS, outline_points, sign_layer

FAR_PX: Final = (15.0, 45.0)
"""Range of the sign's size in the first frame, pixels."""
NEAR_PX: Final = (45.0, 170.0)
"""Range of the sign's size in the last frame, pixels."""


@dataclass(frozen=True, slots=True)
class RenderedFrame:
    """One crop of one track.

    Attributes:
        image: uint8 (size, size, 3), RGB, resized as the network takes it.
        label: class 0..42.
        track: number of the track, 0 first.
        frame_in_track: 0 is the most distant.
        width_px: width of the crop before resizing, pixels.
        height_px: height of the crop before resizing, pixels.
    """

    image: NDArray[np.uint8]
    label: int
    track: int
    frame_in_track: int
    width_px: int
    height_px: int


def render_tracks(
    n_tracks: int,
    seed: int,
    size: int = 48,
    frames_per_track: int = 30,
    *,
    labels: Sequence[int] | None = None,
) -> Iterator[RenderedFrame]:
    """Render tracks one after the other, each from far to near, lazily.

    A track depends only on the seed and its number, so a longer run begins with the same
    frames. Without `labels`, every 43 tracks in a row show all 43 signs once.

    Args:
        n_tracks: how many tracks.
        seed: seed of everything random.
        size: side of the images, pixels.
        frames_per_track: frames of each track.
        labels: class of each track, repeated as needed.

    Raises:
        ConfigError: if a count is not positive or a label is no class.
    """
    for name, value in (("n_tracks", n_tracks), ("size", size), ("frames", frames_per_track)):
        if value < 1:
            raise ConfigError(f"{name} = {value}", expected="at least 1", hint="raise it")
    if seed < 0:
        raise ConfigError(f"seed = {seed}", expected="at least 0", hint="give another seed")
    if labels is not None and not (labels and all(0 <= v < N_SIGNS for v in labels)):
        raise ConfigError(
            f"labels {list(labels)[:5]}", expected="classes 0..42", hint="name at least one class"
        )
    return _tracks(n_tracks, seed, size, frames_per_track, labels)


def render_set(
    n_tracks: int,
    seed: int,
    size: int = 48,
    frames_per_track: int = 30,
    *,
    labels: Sequence[int] | None = None,
) -> ImageSet:
    """The same tracks as one `ImageSet` (tracks contiguous, frames ascending)."""
    frames = list(render_tracks(n_tracks, seed, size, frames_per_track, labels=labels))
    return ImageSet(
        np.stack([f.image for f in frames]),
        np.array([f.label for f in frames], dtype=np.int16),
        np.array([f.track for f in frames], dtype=np.int32),
        np.array([f.frame_in_track for f in frames], dtype=np.int16),
        np.array([f.width_px for f in frames], dtype=np.int16),
        np.array([f.height_px for f in frames], dtype=np.int16),
    )


def _tracks(
    n_tracks: int, seed: int, size: int, n_frames: int, labels: Sequence[int] | None
) -> Iterator[RenderedFrame]:
    for track in range(n_tracks):
        if labels is not None:
            label = int(labels[track % len(labels)])
        else:
            block, at = divmod(track, N_SIGNS)
            label = int(np.random.default_rng([seed, 1, block]).permutation(N_SIGNS)[at])
        rng = np.random.default_rng([seed, 0, track])
        for frame, crop in enumerate(_approach(label, n_frames, rng)):
            image = resize_rgb(Image.fromarray(crop), size)
            height, width = crop.shape[:2]
            yield RenderedFrame(image, label, track, frame, width, height)


def _approach(label: int, n: int, rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
    """The crops of one track, each at its own size."""
    layers = mip_levels(sign_layer(label, rng))
    behind = background(rng)
    shadow = _leaf_shadow(rng) if rng.random() < 0.2 else None
    corners = outline_points(label)
    for view, light in zip(_views(n, rng), _lights(n, rng), strict=True):
        yield shoot(layers, behind, shadow, view, light, corners, rng)


def _leaf_shadow(rng: np.random.Generator) -> NDArray[np.float32]:
    """Light on the plate under a tree or the edge of a roof, in [0.25, 1]."""
    cells = int(rng.choice([1, 3, 6]))
    field = fractal(rng, LAYER_PX, cells + 1, 2)
    edge = np.clip((field - rng.uniform(0.35, 0.6)) * rng.uniform(3, 12) + 0.5, 0, 1)
    darkest = rng.uniform(0.25, 0.6)
    return np.asarray(darkest + (1 - darkest) * edge, dtype=np.float32)


def _drift(
    rng: np.random.Generator, n: int, start: float, stop: float, wobble: float
) -> NDArray[np.float64]:
    """A line from start to stop over the track, plus smooth wandering."""
    steps = rng.standard_normal(n + 4)
    smooth = np.convolve(steps, np.full(5, 0.2), mode="valid") * math.sqrt(5)
    return np.linspace(start, stop, n) + wobble * smooth


def _views(n: int, rng: np.random.Generator) -> list[View]:
    # The size is the reciprocal of a distance that falls evenly: far crops hardly grow,
    # near ones double within a few frames (GTSRB's medians: 30 px at first, 94 px at last).
    far = float(np.clip(21 * math.exp(0.28 * rng.standard_normal()), *FAR_PX))
    near = float(np.clip(76 * math.exp(0.4 * rng.standard_normal()), *NEAR_PX))
    near = max(near, 1.4 * far)
    distance = np.linspace(1 / far, 1 / near, n)
    sign_px = 1 / distance * np.exp(0.02 * rng.standard_normal(n))
    yaw = rng.normal(0, 13)
    yaws = _drift(rng, n, yaw, yaw * rng.uniform(1.0, 1.8), 1.5)
    pitches = _drift(rng, n, rng.normal(0, 4), rng.normal(3, 5), 0.8)
    roll = rng.normal(0, 3.5)
    rolls = _drift(rng, n, roll, roll, 0.7)
    seen = rng.uniform(60, 150)
    behind = np.clip(np.linspace(seen, seen * rng.uniform(0.45, 0.8), n), 20, 240)
    x0, x1, y0, y1 = (float(v) for v in rng.uniform(60, BACKGROUND_PX - 60, 4))
    look_x, look_y = _drift(rng, n, x0, x1, 2.0), _drift(rng, n, y0, y1, 2.0)
    shift = 0.022 * rng.standard_normal((n, 2))
    far_half_widths = rng.uniform(30, 80)
    return [
        View(
            sign_px=float(sign_px[i]),
            yaw_deg=float(np.clip(yaws[i], -50, 50)),
            pitch_deg=float(pitches[i]),
            roll_deg=float(rolls[i]),
            distance=far_half_widths * float(distance[i] / distance[0]),
            shift_x=float(shift[i, 0]),
            shift_y=float(shift[i, 1]),
            look_x=float(look_x[i]),
            look_y=float(look_y[i]),
            background_px=float(behind[i]),
        )
        for i in range(n)
    ]


def _lights(n: int, rng: np.random.Generator) -> list[Light]:
    # Log-gains: most signs stand in fair light, a fifth against the sky (dark plate).
    backlit = rng.random() < 0.2
    level = rng.normal(-3.1, 0.6) if backlit else rng.normal(-0.7, 1.1)
    gains = np.exp(np.minimum(_drift(rng, n, level, level + rng.normal(0, 0.2), 0.06), 0.7))
    contrast = rng.normal(2.1, 0.5) if backlit else rng.normal(-0.2, 0.5)
    warm = rng.normal(-0.1, 0.12)
    tint = 0.02 * rng.standard_normal(3)
    cast = np.exp(np.array([warm, 0, -warm]) - 0.04 + tint)
    haze = max(0.0, rng.normal(-0.03, 0.06))
    defocus = _drift(rng, n, rng.uniform(0.3, 0.8), rng.uniform(0.3, 1.1), 0.06)
    # Motion blur grows with the apparent speed, so towards the end of the track.
    streak = max(0.0, rng.normal(-1.5, 4.0))
    direction = rng.normal(0, 25)
    streaks = np.clip(_drift(rng, n, 0.2 * streak, streak, 0.25 * streak), 0, 9)
    noise = 0.0015 * math.exp(0.8 * rng.standard_normal())
    sharpen = max(0.0, rng.normal(0.1, 0.4))
    return [
        Light(
            gain=float(gains[i]),
            background_gain=math.exp(contrast),
            cast=(float(cast[0]), float(cast[1]), float(cast[2])),
            haze=haze,
            defocus_px=float(defocus[i]),
            motion_px=float(streaks[i]),
            motion_deg=direction,
            noise=noise,
            sharpen=sharpen,
        )
        for i in range(n)
    ]
