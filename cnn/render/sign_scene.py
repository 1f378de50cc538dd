"""What surrounds a sign: sky, trees, facades, its post and its neighbours.

Everything here is painted once per track, in display brightness (uint8); `sign_camera`
looks at it 30 times.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cnn.render.sign_canvas import EXTENT, LAYER_PX, Material, arc
from cnn.render.signs import outline, sign_masks

BACKGROUND_PX: Final = 256
"""Side of a painted background, pixels."""

Colour = tuple[float, float, float]

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
"""Where those paints go after years of sun."""


def fractal(rng: np.random.Generator, px: int, coarse: int, octaves: int) -> NDArray[np.float32]:
    """Smooth noise on several scales, float32 (px, px) in [0, 1]."""
    total = np.zeros((px, px), dtype=np.float32)
    for octave in range(octaves):
        cells = min(px, coarse * 2**octave)
        grain = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        smooth = np.asarray(grain.resize((px, px), Image.Resampling.BICUBIC))
        total += smooth * np.float32(0.6**octave)
    low, high = float(total.min()), float(total.max())
    return (total - low) / np.float32(high - low + 1e-6)


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
    """Trunks and bare branches, before the sky or before more wood."""
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


_TWIGS: Final = (0.35, 0.3, 0.15, 0.12, 0.08)


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
