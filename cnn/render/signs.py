"""The 43 German road signs of GTSRB, drawn from vector shapes, with their posts.

Proportions follow the signs of the StVO (Anlagen 1 to 3): a red ring of about an eighth of
the diameter, figures of two fifths of it, and warning triangles whose band is a twelfth of
the side. `sign_layer` paints one physical sign, once per track, in display brightness (uint8).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cnn.common.errors import ConfigError
from cnn.render import sign_pictograms as pictograms
from cnn.render.sign_canvas import (
    EXTENT,
    LAYER_PX,
    Canvas,
    Colour,
    Material,
    Point,
    arc,
    fractal,
    inset,
    write,
)

SIGN_NAMES: Final = (
    "speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70",
    "speed limit 80", "end of speed limit 80", "speed limit 100", "speed limit 120",
    "no passing", "no passing for trucks", "right of way at next crossing", "priority road",
    "yield", "stop", "no vehicles", "no trucks", "no entry", "general caution",
    "curve to the left", "curve to the right", "double curve", "bumpy road", "slippery road",
    "road narrows on the right", "road works", "traffic signals", "pedestrians", "children",
    "bicycles", "snow or ice", "wild animals", "end of all limits", "turn right ahead",
    "turn left ahead", "ahead only", "straight or right", "straight or left", "keep right",
    "keep left", "roundabout", "end of no passing", "end of no passing for trucks",
)  # fmt: skip
"""Names in the order of GTSRB's class numbers."""

N_SIGNS: Final = len(SIGN_NAMES)

_LIMITS: Final = {0: "20", 1: "30", 2: "50", 3: "60", 4: "70", 5: "80", 7: "100", 8: "120"}
_BLUE_SIGNS: Final = range(33, 41)
_END_SIGNS: Final = (6, 32, 41, 42)
_WARNINGS: Final = (11, *range(18, 32))

Outline = Literal["disc", "triangle", "yield", "octagon", "diamond"]

_PAINT: Final[dict[Material, Colour]] = {
    Material.WHITE: (226, 226, 222),
    Material.RED: (172, 26, 34),
    Material.BLACK: (22, 22, 24),
    Material.BLUE: (14, 66, 150),
    Material.YELLOW: (238, 168, 24),
    Material.GREY: (112, 112, 112),
    Material.GREEN: (10, 122, 104),
    Material.STEEL: (118, 120, 122),
}
"""Near the traffic colours RAL 9016, 3020, 9017, 5017, 1023, 7042 and 6024 in sRGB."""
_FADED: Final[dict[Material, Colour]] = {
    Material.RED: (214, 120, 66),
    Material.BLUE: (70, 116, 178),
    Material.YELLOW: (232, 196, 110),
    Material.WHITE: (216, 212, 200),
}
"""The same paints after years of sun."""


@functools.lru_cache(maxsize=N_SIGNS)
def sign_masks(label: int) -> dict[Material, NDArray[np.float32]]:
    """The sign as shares of materials, float32 (LAYER_PX, LAYER_PX) each; do not write to them.

    Raises:
        ConfigError: if `label` is no class of GTSRB.
    """
    if not 0 <= label < N_SIGNS:
        raise ConfigError(
            f"sign class {label}", expected=f"0..{N_SIGNS - 1}", hint="use a GTSRB class number"
        )
    canvas = Canvas()
    if label in _WARNINGS:
        _warning(canvas, label)
    elif label in _BLUE_SIGNS:
        _mandatory(canvas, label)
    elif label in _END_SIGNS:
        _end_of(canvas, label)
    else:
        _other(canvas, label)
    return canvas.masks()


def outline(label: int) -> Outline:
    """Shape of the sign's plate."""
    if label in _WARNINGS:
        return "triangle"
    special: dict[int, Outline] = {12: "diamond", 13: "yield", 14: "octagon"}
    return special.get(label, "disc")


def outline_points(label: int) -> list[Point]:
    """Corners of the plate (a 24-gon for discs), from which its box in the image follows."""
    kind = outline(label)
    if kind == "triangle":
        return inset(_triangle(), 0.02)
    if kind == "yield":
        return [(x, -y) for x, y in inset(_triangle(), 0.02)]
    if kind == "octagon":
        return _octagon(1.0)
    if kind == "diamond":
        return [(0.0, -0.97), (0.97, 0.0), (0.0, 0.97), (-0.97, 0.0)]
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return [(math.cos(a), math.sin(a)) for a in angles]


def _triangle() -> list[Point]:
    h = math.sqrt(3) / 2
    return [(0.0, -h), (1.0, h), (-1.0, h)]


def _octagon(radius: float) -> list[Point]:
    """Regular octagon whose flat sides are `radius` from the centre."""
    r = radius / math.cos(math.pi / 8)
    angles = [math.pi / 8 + k * math.pi / 4 for k in range(8)]
    return [(r * math.cos(a), r * math.sin(a)) for a in angles]


def _warning(canvas: Canvas, label: int) -> None:
    corners = _triangle()
    canvas.rounded(corners, 0.07, Material.WHITE)
    canvas.rounded(inset(corners, 0.035), 0.05, Material.RED)
    canvas.rounded(inset(corners, 0.185), 0.02, Material.WHITE)
    drawings: dict[int, Callable[[Canvas], None]] = {
        11: pictograms.crossing,
        18: pictograms.exclamation,
        19: functools.partial(pictograms.curve, left=True),
        20: functools.partial(pictograms.curve, left=False),
        21: pictograms.double_curve,
        22: pictograms.bumps,
        23: pictograms.skidding_car,
        24: pictograms.narrowing,
        25: pictograms.road_works,
        26: pictograms.traffic_light,
        27: pictograms.walker,
        28: pictograms.children,
        29: pictograms.bicycle,
        30: pictograms.snowflake,
        31: pictograms.deer,
    }
    drawings[label](canvas)


def _mandatory(canvas: Canvas, label: int) -> None:
    canvas.disc((0, 0), 1.0, Material.WHITE)
    canvas.disc((0, 0), 0.955, Material.BLUE)
    if label in (33, 34):
        pictograms.arrow_right_ahead(canvas, left=label == 34)
    elif label == 35:
        pictograms.arrow_ahead(canvas)
    elif label in (36, 37):
        pictograms.arrow_fork(canvas, left=label == 37)
    elif label in (38, 39):
        pictograms.arrow_keep(canvas, left=label == 39)
    else:
        pictograms.arrow_circle(canvas)


def _end_of(canvas: Canvas, label: int) -> None:
    canvas.disc((0, 0), 1.0, Material.WHITE)
    canvas.disc((0, 0), 0.965, Material.BLACK)
    canvas.disc((0, 0), 0.92, Material.WHITE)
    if label == 6:
        write(canvas, "80", 0.86, 0.68, Material.GREY)
    elif label == 41:
        pictograms.car_rear(canvas, -0.37, 0.24, 0.62, Material.GREY)
        pictograms.car_rear(canvas, 0.37, 0.24, 0.62, Material.GREY)
    elif label == 42:
        pictograms.truck_rear(canvas, -0.38, 0.34, 0.54, Material.GREY)
        pictograms.car_rear(canvas, 0.33, 0.34, 0.56, Material.GREY)
    pictograms.end_stripes(canvas, 0.94)


def _other(canvas: Canvas, label: int) -> None:
    if label == 12:
        _priority(canvas)
    elif label == 13:
        corners = [(x, -y) for x, y in _triangle()]
        canvas.rounded(corners, 0.07, Material.WHITE)
        canvas.rounded(inset(corners, 0.035), 0.05, Material.RED)
        canvas.rounded(inset(corners, 0.215), 0.02, Material.WHITE)
    elif label == 14:
        canvas.polygon(_octagon(1.0), Material.WHITE)
        canvas.polygon(_octagon(0.935), Material.RED)
        write(canvas, "STOP", 0.66, 0.64, Material.WHITE)
    elif label == 17:
        canvas.disc((0, 0), 1.0, Material.WHITE)
        canvas.disc((0, 0), 0.96, Material.RED)
        canvas.polygon([(-0.8, -0.19), (0.8, -0.19), (0.8, 0.19), (-0.8, 0.19)], Material.WHITE)
    else:
        _prohibition(canvas, label)


def _priority(canvas: Canvas) -> None:
    for reach, radius, paint in (
        (1.0, 0.06, Material.BLACK),
        (0.97, 0.06, Material.WHITE),
        (0.64, 0.03, Material.BLACK),
        (0.62, 0.03, Material.YELLOW),
    ):
        canvas.rounded([(0, -reach), (reach, 0), (0, reach), (-reach, 0)], radius, paint)


def _prohibition(canvas: Canvas, label: int) -> None:
    canvas.disc((0, 0), 1.0, Material.WHITE)
    canvas.disc((0, 0), 0.965, Material.RED)
    canvas.disc((0, 0), 0.72, Material.WHITE)
    if label in _LIMITS:
        text = _LIMITS[label]
        wide = len(text) == 2
        write(canvas, text, 0.82 if wide else 0.76, 0.68 if wide else 0.56, Material.BLACK)
    elif label == 9:
        pictograms.car_rear(canvas, -0.34, 0.22, 0.56, Material.RED)
        pictograms.car_rear(canvas, 0.34, 0.22, 0.56, Material.BLACK)
    elif label == 10:
        pictograms.truck_rear(canvas, -0.34, 0.33, 0.48, Material.RED)
        pictograms.car_rear(canvas, 0.29, 0.33, 0.5, Material.BLACK)
    elif label == 16:
        pictograms.truck_side(canvas)


def sign_layer(label: int, rng: np.random.Generator) -> Image.Image:
    """One physical sign with its post and neighbours, premultiplied RGBA (LAYER_PX square)."""
    masks = sign_masks(label)
    alpha = np.clip(sum(masks.values(), np.zeros((LAYER_PX, LAYER_PX), np.float32)), 0, 1)
    wear = float(rng.beta(0.6, 3.0))
    rgb = np.zeros((LAYER_PX, LAYER_PX, 3), dtype=np.float32)
    for material, share in masks.items():
        fresh = np.array(_PAINT[material])
        old = np.array(_FADED.get(material, _PAINT[material]))
        colour = (fresh + wear * (old - fresh)) * rng.uniform(0.97, 1.03, 3)
        rgb += share[..., None] * colour.astype(np.float32)
    dirt = 1 - rng.uniform(0, 0.14) * fractal(rng, LAYER_PX, 3, 4)
    sign = np.dstack([np.clip(rgb * dirt[..., None], 0, 255), alpha * 255]).astype(np.uint8)
    scene = _surroundings(label, rng)
    front = Image.frombytes("RGBa", (LAYER_PX, LAYER_PX), sign.tobytes())
    scene = Image.alpha_composite(scene, front.convert("RGBA"))
    if rng.random() < 0.12:
        _sticker(scene, rng)
    return scene.convert("RGBa")


def _surroundings(label: int, rng: np.random.Generator) -> Image.Image:
    """Post behind the plate, sometimes a plate above or below; RGBA."""
    layer = Image.new("RGBA", (LAYER_PX, LAYER_PX), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)

    def box(x0: float, y0: float, x1: float, y1: float, fill: tuple[int, int, int]) -> None:
        p = [(v + EXTENT) / (2 * EXTENT) * LAYER_PX for v in (x0, y0, x1, y1)]
        draw.rectangle((p[0], p[1], p[2], p[3]), fill=(*fill, 255))

    steel = int(rng.integers(70, 160))
    half, x = rng.uniform(0.05, 0.11), rng.normal(0, 0.03)
    top = -EXTENT if rng.random() < 0.25 else rng.uniform(-1.1, -0.6)
    if outline(label) == "triangle":
        top = max(top, -0.95)
    if rng.random() < 0.9:
        box(x - half, top, x + half, EXTENT, (steel, steel, steel + 4))
        box(x + half * 0.3, top, x + half, EXTENT, (steel // 2, steel // 2, steel // 2))
    kind = rng.random()
    if kind < 0.2:  # a white supplementary plate
        y = rng.uniform(1.04, 1.14)
        box(-0.8, y, 0.8, EXTENT, (30, 30, 30))
        box(-0.76, y + 0.04, 0.76, EXTENT, (220, 220, 216))
    elif kind < 0.4:  # another round or three-cornered sign, above or below
        up = -1 if rng.random() < 0.4 else 1
        centre = (0.0, up * rng.uniform(2.05, 2.2))
        colours = [(172, 26, 34), (14, 66, 150), (226, 226, 222)]
        outer = colours[int(rng.integers(3))]
        for radius, fill in ((1.0, (226, 226, 222)), (0.95, outer)):
            ring = arc(centre, radius, radius, 0, 360, 48)
            scaled = [tuple((v + EXTENT) / (2 * EXTENT) * LAYER_PX for v in p) for p in ring]
            draw.polygon(scaled, fill=(*fill, 255))
    return layer


def _sticker(scene: Image.Image, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(scene)
    x, y = (rng.uniform(-0.6, 0.6, 2) + EXTENT) / (2 * EXTENT) * LAYER_PX
    w, h = rng.uniform(4, 12, 2)
    value = rng.integers(30, 230, 3)
    draw.rectangle((x, y, x + w, y + h), fill=(int(value[0]), int(value[1]), int(value[2]), 255))
