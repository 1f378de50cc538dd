"""A camera that drives up to a sign: perspective, light, optics, sensor.

The scene is painted in display brightness; the camera works in linear light, so that
bright areas bloom and clip as they do on a sensor, and goes back at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnn.render.sign_canvas import EXTENT, LAYER_PX, Point
from cnn.render.sign_scene import BACKGROUND_PX

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
