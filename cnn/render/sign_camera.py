"""A camera that drives up to a sign, and the world behind it: sky, trees, facades.

The scene is painted once per track, in display brightness (uint8); the camera takes 30 frames of
it. It works in linear light, so that bright areas bloom and clip as they do on a sensor, and
converts back at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cnn.render.sign_canvas import EXTENT, LAYER_PX, Colour, Point, fractal

BACKGROUND_PX: Final = 256
"""Side of a painted background, pixels."""

_TWIGS: Final = (0.35, 0.3, 0.15, 0.12, 0.08)
_GAMMA: Final = 2.2
_TO_LINEAR: Final = ((np.arange(256) / 255.0) ** _GAMMA).astype(np.float32)
_TO_DISPLAY: Final = np.round(255 * (np.arange(4096) / 4095.0) ** (1 / _GAMMA)).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class View:
    """One frame's geometry and light.

    Attributes:
        sign_px: larger side of the sign's box in the image, pixels.
        yaw_deg, pitch_deg, roll_deg: orientation of the plate to the camera.
        distance: camera to sign, in half widths of the sign (strength of perspective).
        shift_x, shift_y: offset of the box from the crop's centre, share of `sign_px`.
        look_x, look_y: centre of the background behind the sign, pixels of the painting.
        background_px: side of the background seen in the crop, pixels of the painting.
    """

    sign_px: float
    yaw_deg: float
    pitch_deg: float
    roll_deg: float
    distance: float
    shift_x: float
    shift_y: float
    look_x: float
    look_y: float
    background_px: float


@dataclass(frozen=True, slots=True)
class Light:
    """One frame's exposure and optics.

    Attributes:
        gain: exposure times light, 1 leaves the paint as it is.
        background_gain: light on the background relative to that on the sign.
        cast: gain of red, green, blue.
        haze: share of even white light that is added.
        defocus_px, motion_px: standard deviation of the blur, and length of the streak.
        motion_deg: direction of the streak.
        noise: standard deviation of the sensor's noise in dark areas, share of full scale.
        sharpen: strength of the camera's own edge sharpening.
    """

    gain: float
    background_gain: float
    cast: tuple[float, float, float]
    haze: float
    defocus_px: float
    motion_px: float
    motion_deg: float
    noise: float
    sharpen: float


def sign_to_image(view: View, corners: list[Point]) -> tuple[NDArray[np.float64], float, float]:
    """Homography from the sign's plane to pixels whose origin is the box's corner.

    Returns:
        (3, 3) matrix, box width and box height in pixels; the larger is `view.sign_px`.
    """
    yaw, pitch, roll = (math.radians(a) for a in (view.yaw_deg, view.pitch_deg, view.roll_deg))
    turn_z = np.array(
        [[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]]
    )
    turn_y = np.array(
        [[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]]
    )
    turn_x = np.array(
        [[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]]
    )
    rotation = turn_x @ turn_y @ turn_z
    plane = np.column_stack([rotation[:, 0], rotation[:, 1], [0.0, 0.0, view.distance]])
    points = plane @ np.array([[x, y, 1.0] for x, y in corners]).T
    x, y = points[0] / points[2], points[1] / points[2]
    width, height = float(np.ptp(x)), float(np.ptp(y))
    scale = view.sign_px / max(width, height)
    place = np.array([[scale, 0, -scale * x.min()], [0, scale, -scale * y.min()], [0, 0, 1.0]])
    return place @ plane, width * scale, height * scale


def shoot(
    layers: list[Image.Image],
    background: Image.Image,
    shadow: NDArray[np.float32] | None,
    view: View,
    light: Light,
    corners: list[Point],
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """One crop, as GTSRB's annotators would have cut it: uint8 (height, width, 3), RGB.

    The margin is a tenth of the sign, but at least 5 pixels (Stallkamp et al. 2012).

    Args:
        layers: the sign (premultiplied RGBA) at full, half, quarter... resolution.
        background: the painting behind it, RGB.
        shadow: light on the plate, float32 (LAYER_PX, LAYER_PX), or None for even light.
        view: geometry.
        light: exposure and optics.
        corners: outline of the plate in its own coordinates.
        rng: source of the sensor's noise.
    """
    to_image, box_w, box_h = sign_to_image(view, corners)
    margin = max(5.0, 0.1 * view.sign_px)
    width, height = round(box_w + 2 * margin), round(box_h + 2 * margin)
    offset = np.array(
        [[1, 0, margin + view.shift_x * box_w], [0, 1, margin + view.shift_y * box_h], [0, 0, 1.0]]
    )
    to_crop = offset @ to_image
    sign = _warp(layers, to_crop, width, height, view.sign_px)
    alpha = sign[..., 3:].astype(np.float32) / 255
    linear = _TO_LINEAR[sign[..., :3]]
    if shadow is not None:
        linear *= _warp_plain(shadow, to_crop, width, height)[..., None]
    behind = _TO_LINEAR[_look(background, view, width, height)]
    linear += behind * (1 - alpha) * np.float32(light.background_gain)
    return _expose(linear, light, rng)


def mip_levels(layer: Image.Image) -> list[Image.Image]:
    """The layer at full, half, quarter and eighth resolution."""
    return [layer, *(layer.reduce(k) for k in (2, 4, 8))]


def _warp(
    layers: list[Image.Image], to_crop: NDArray[np.float64], width: int, height: int, sign_px: float
) -> NDArray[np.uint8]:
    # Twice oversampled and from the level that is about as fine: no aliasing when far.
    over = 2 if sign_px < 80 else 1
    wanted = sign_px * over * EXTENT
    level = max(0, min(len(layers) - 1, int(math.log2(max(1.0, LAYER_PX / wanted)))))
    layer = layers[level]
    data = _coefficients(to_crop, over, layer.width)
    out = layer.transform(
        (width * over, height * over), Image.Transform.PERSPECTIVE, data, Image.Resampling.BILINEAR
    )
    return np.asarray(out.reduce(over) if over > 1 else out)


def _warp_plain(
    shadow: NDArray[np.float32], to_crop: NDArray[np.float64], width: int, height: int
) -> NDArray[np.float32]:
    out = Image.fromarray(shadow).transform(
        (width, height),
        Image.Transform.PERSPECTIVE,
        _coefficients(to_crop, 1, LAYER_PX),
        Image.Resampling.BILINEAR,
        fillcolor=1.0,
    )
    return np.asarray(out, dtype=np.float32)


def _coefficients(to_crop: NDArray[np.float64], over: int, layer_px: int) -> tuple[float, ...]:
    """Pillow wants the map from the output back to the layer, as eight numbers."""
    unit = layer_px / (2 * EXTENT)
    to_layer = np.array([[unit, 0, EXTENT * unit], [0, unit, EXTENT * unit], [0, 0, 1.0]])
    back = to_layer @ np.linalg.inv(np.diag([over, over, 1.0]) @ to_crop)
    return tuple(float(v) for v in (back / back[2, 2]).ravel()[:8])


def _look(background: Image.Image, view: View, width: int, height: int) -> NDArray[np.uint8]:
    half_w = view.background_px / 2
    half_h = half_w * height / width
    x = min(max(view.look_x, half_w), BACKGROUND_PX - half_w)
    y = min(max(view.look_y, half_h), BACKGROUND_PX - half_h)
    box = (
        max(0.0, x - half_w),
        max(0.0, y - half_h),
        min(float(BACKGROUND_PX), x + half_w),
        min(float(BACKGROUND_PX), y + half_h),
    )
    return np.asarray(background.resize((width, height), Image.Resampling.BILINEAR, box=box))


def _expose(
    linear: NDArray[np.float32], light: Light, rng: np.random.Generator
) -> NDArray[np.uint8]:
    x = _blur(linear, light)
    x = x * (np.array(light.cast, np.float32) * np.float32(light.gain * (1 - light.haze)))
    x += np.float32(light.haze * 0.6 * min(1.0, light.gain))
    grain = rng.standard_normal(x.shape, dtype=np.float32)
    x += grain * np.sqrt(light.noise**2 + 0.06 * light.noise * np.maximum(x, 0))
    if light.sharpen > 0:
        x += np.float32(light.sharpen) * (x - _gaussian(x, 0.8))
    steps = (np.clip(x, 0, 1) * 4095).astype(np.int32)
    return _TO_DISPLAY[steps]


def _blur(x: NDArray[np.float32], light: Light) -> NDArray[np.float32]:
    if light.defocus_px > 0.2:
        x = _gaussian(x, light.defocus_px)
    taps = math.ceil(light.motion_px)
    if taps < 2:
        return x
    dx, dy = math.cos(math.radians(light.motion_deg)), math.sin(math.radians(light.motion_deg))
    along = np.linspace(-0.5, 0.5, taps) * light.motion_px
    reach = taps // 2 + 1
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    h, w = x.shape[:2]
    out = np.zeros_like(x)
    for a in along:
        top, left = reach + round(a * dy), reach + round(a * dx)
        out += padded[top : top + h, left : left + w]
    return out / np.float32(taps)


def _gaussian(x: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    reach = max(1, math.ceil(2.2 * sigma))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (reach, reach)
        padded = np.pad(x, pad, mode="edge")
        n = x.shape[axis]
        parts = (padded[k : k + n] if axis == 0 else padded[:, k : k + n] for k in range(len(taps)))
        x = sum((t * p for t, p in zip(taps, parts, strict=True)), np.zeros_like(x))
    return x


def background(rng: np.random.Generator) -> Image.Image:
    """A piece of the world behind the sign, RGB (BACKGROUND_PX square)."""
    painter = (_woods, _foliage, _facade, _sky, _skyline)[
        int(rng.choice(5, p=[0.34, 0.22, 0.18, 0.08, 0.18]))
    ]
    rgb = painter(rng)
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


def _mix(a: Colour, b: Colour, share: NDArray[np.float32]) -> NDArray[np.float32]:
    first, second = np.array(a, np.float32), np.array(b, np.float32)
    return first + share[..., None] * (second - first)


def _sky(rng: np.random.Generator) -> NDArray[np.float32]:
    height = np.linspace(0, 1, BACKGROUND_PX, dtype=np.float32)[:, None]
    share = np.clip(0.7 * height + 0.5 * fractal(rng, BACKGROUND_PX, 2, 3), 0, 1)
    zenith: Colour = (96, 138, 204) if rng.random() < 0.5 else (176, 186, 200)
    return _mix(zenith, (236, 240, 246), share.astype(np.float32))


def _foliage(rng: np.random.Generator) -> NDArray[np.float32]:
    leaves = fractal(rng, BACKGROUND_PX, 20, 3)
    clumps = fractal(rng, BACKGROUND_PX, 3, 2)
    autumn = rng.random() < 0.4
    light: Colour = (196, 150, 62) if autumn else (126, 150, 60)
    rgb = _mix((18, 22, 14), light, np.clip(2.2 * leaves - 0.7, 0, 1) * (0.3 + 1.3 * clumps))
    glints = (leaves > 0.7) & (clumps > 0.45)
    rgb[glints] = (226, 226, 200)
    return rgb


def _woods(rng: np.random.Generator) -> NDArray[np.float32]:
    """Trunks and bare branches, in front of the sky or of more wood."""
    bright = rng.random() < 0.55
    rgb = _sky(rng) if bright else _mix((16, 16, 14), (92, 84, 70), fractal(rng, 256, 8, 4))
    picture = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    dark = int(rng.integers(14, 60))
    for _ in range(int(rng.integers(40, 160))):
        x, y = rng.uniform(-20, 276, 2)
        angle = rng.normal(-np.pi / 2, 0.7)
        reach, width = rng.uniform(30, 200), int(rng.choice([1, 2, 3, 5, 12], p=_TWIGS))
        shade = int(dark * rng.uniform(0.6, 1.8))
        end = (x + reach * np.cos(angle), y + reach * np.sin(angle))
        draw.line((x, y, *end), fill=(shade, int(shade * 0.92), int(shade * 0.8)), width=width)
    out = np.asarray(picture, dtype=np.float32)
    return out * (0.3 + 1.4 * fractal(rng, BACKGROUND_PX, 48, 2))[..., None]


def _facade(rng: np.random.Generator) -> NDArray[np.float32]:
    """A wall of brick, plaster or concrete, with windows."""
    walls: tuple[Colour, ...] = ((150, 78, 52), (206, 188, 150), (168, 166, 160), (112, 108, 104))
    wall = np.array(walls[int(rng.integers(4))]) * rng.uniform(0.6, 1.15)
    picture = Image.new("RGB", (BACKGROUND_PX, BACKGROUND_PX), tuple(int(v) for v in wall))
    draw = ImageDraw.Draw(picture)
    if rng.random() < 0.4:
        mortar = tuple(int(v * 0.8) for v in wall)
        for y in range(0, BACKGROUND_PX, 6):
            draw.line((0, y, BACKGROUND_PX, y), fill=mortar)
    step_x, step_y = rng.uniform(50, 130, 2)
    glass = int(rng.integers(20, 90))
    for x in np.arange(rng.uniform(-60, 0), BACKGROUND_PX, step_x):
        for y in np.arange(rng.uniform(-60, 0), BACKGROUND_PX, step_y):
            right, low = x + step_x * 0.5, y + step_y * 0.6
            draw.rectangle((x, y, right, low), fill=(220, 220, 216))
            draw.rectangle((x + 3, y + 3, right - 3, low - 3), fill=(glass, glass, glass + 10))
    out = np.asarray(picture, dtype=np.float32)
    return out * (0.85 + 0.3 * fractal(rng, BACKGROUND_PX, 3, 5))[..., None]


def _skyline(rng: np.random.Generator) -> NDArray[np.float32]:
    """Something dark below, sky above."""
    lower = (_woods, _foliage, _facade)[int(rng.integers(3))](rng)
    ridge = fractal(rng, BACKGROUND_PX, 3, 3)[0] * 90 + rng.uniform(40, 170)
    below = np.arange(BACKGROUND_PX)[:, None] > ridge[None, :]
    return np.where(below[..., None], lower, _sky(rng))
