"""Vector drawing on a plane of materials: a sign's paint before any light.

Coordinates: x to the right, y downwards, the sign's half width is 1. A canvas holds the
number of one material at every point, so that one drawing serves every paint, fading and
light; `masks` gives the anti-aliased share of each material. Digits and letters are in the
manner of DIN 1451, the lettering of German road signs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Point = tuple[float, float]
Colour = tuple[float, float, float]

EXTENT: Final = 1.4
"""Half width of the canvas, in sign half widths: room for posts and neighbours."""
LAYER_PX: Final = 256
"""Side of a finished layer, pixels."""
_SUPERSAMPLE: Final = 4

# A glyph is a list of strokes in a box of width w and height 1 (centre lines).
Strokes = list[list[Point]]
STROKE: Final = 0.155
"""Line width over letter height; DIN 1451 Mittelschrift is drawn with 1/7."""


class Material(IntEnum):
    """Paint of one area; `NONE` is the scene behind the sign."""

    NONE = 0
    WHITE = 1
    RED = 2
    BLACK = 3
    BLUE = 4
    YELLOW = 5
    GREY = 6
    GREEN = 7
    STEEL = 8


class Canvas:
    """An aliased drawing at several times the final resolution."""

    def __init__(self) -> None:
        self._px = LAYER_PX * _SUPERSAMPLE
        self._image = Image.new("L", (self._px, self._px), Material.NONE)
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, points: Sequence[Point], fill: Material) -> None:
        """A filled polygon."""
        self._draw.polygon([self._at(p) for p in points], fill=int(fill))

    def disc(self, centre: Point, radius: float, fill: Material) -> None:
        """A filled circle."""
        x, y = self._at(centre)
        r = radius * self._scale
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=int(fill))

    def stroke(
        self,
        points: Sequence[Point],
        width: float,
        fill: Material,
        *,
        closed: bool = False,
        round_caps: bool = False,
    ) -> None:
        """A line of constant width with round joins and straight or round ends."""
        path = [*points, points[0]] if closed else list(points)
        half = width / 2
        for (x0, y0), (x1, y1) in itertools.pairwise(path):
            length = math.hypot(x1 - x0, y1 - y0)
            if length == 0:
                continue
            nx, ny = -(y1 - y0) / length * half, (x1 - x0) / length * half
            quad = [(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)]
            self.polygon(quad, fill)
        joints = path if closed or round_caps else path[1:-1]
        for joint in joints:
            self.disc(joint, half, fill)

    def rounded(self, points: Sequence[Point], radius: float, fill: Material) -> None:
        """A convex polygon with its corners rounded."""
        core = inset(points, radius)
        self.polygon(core, fill)
        self.stroke(core, 2 * radius, fill, closed=True)

    def masks(self) -> dict[Material, NDArray[np.float32]]:
        """Share of each material used, float32 (LAYER_PX, LAYER_PX) in [0, 1]."""
        numbers = np.asarray(self._image)
        out: dict[Material, NDArray[np.float32]] = {}
        for material in Material:
            hit = numbers == material
            if material is not Material.NONE and hit.any():
                grey = Image.fromarray((hit * 255).astype(np.uint8)).reduce(_SUPERSAMPLE)
                out[material] = np.asarray(grey, dtype=np.float32) / np.float32(255)
        return out

    @property
    def _scale(self) -> float:
        return self._px / (2 * EXTENT)

    def _at(self, p: Point) -> Point:
        return (p[0] + EXTENT) * self._scale, (p[1] + EXTENT) * self._scale


def arc(
    centre: Point, rx: float, ry: float, start_deg: float, stop_deg: float, n: int = 24
) -> list[Point]:
    """Points on an ellipse; angles clockwise on the canvas from the positive x axis."""
    angles = np.radians(np.linspace(start_deg, stop_deg, n))
    return [(centre[0] + rx * math.cos(a), centre[1] + ry * math.sin(a)) for a in angles]


def mirror(points: Sequence[Point]) -> list[Point]:
    """Left and right exchanged."""
    return [(-x, y) for x, y in points]


def turn(points: Sequence[Point], degrees: float, about: Point = (0.0, 0.0)) -> list[Point]:
    """Points rotated clockwise on the canvas."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    ax, ay = about
    return [(ax + c * (x - ax) - s * (y - ay), ay + s * (x - ax) + c * (y - ay)) for x, y in points]


def inset(points: Sequence[Point], distance: float) -> list[Point]:
    """Convex polygon moved inwards by `distance` on every side (either orientation)."""
    n = len(points)
    area = sum(
        points[i][0] * points[(i + 1) % n][1] - points[(i + 1) % n][0] * points[i][1]
        for i in range(n)
    )
    side = math.copysign(distance, area)
    lines = []
    for i in range(n):
        (x0, y0), (x1, y1) = points[i], points[(i + 1) % n]
        length = math.hypot(x1 - x0, y1 - y0)
        nx, ny = -(y1 - y0) / length, (x1 - x0) / length
        lines.append((nx, ny, nx * x0 + ny * y0 + side))
    out = []
    for i in range(n):
        (a0, b0, c0), (a1, b1, c1) = lines[i - 1], lines[i]
        det = a0 * b1 - a1 * b0
        out.append(((c0 * b1 - c1 * b0) / det, (a0 * c1 - a1 * c0) / det))
    return out


def arrow_head(tip: Point, degrees: float, length: float, half_width: float) -> list[Point]:
    """Head with barbs swept back a little, as on German direction signs.

    Args:
        tip: the point of the arrow.
        degrees: heading, clockwise from "to the right".
        length: tip to barb ends, along the heading.
        half_width: barb ends from the axis.
    """
    x, y = tip
    notch = 0.72 * length
    points = [
        (x, y),
        (x - length, y - half_width),
        (x - 1.08 * length, y - 0.78 * half_width),
        (x - notch, y),
        (x - 1.08 * length, y + 0.78 * half_width),
        (x - length, y + half_width),
    ]
    return turn(points, degrees, about=tip)


def _zero(w: float) -> Strokes:
    r = w / 2
    loop = arc((r, r), r, r, 180, 360) + arc((r, 1 - r), r, r, 0, 180)
    return [[*loop, loop[0]]]


def _one(w: float) -> Strokes:
    return [[(0.12 * w, 0.28), (0.72 * w, 0.0), (0.72 * w, 1.0)]]


def _two(w: float) -> Strokes:
    r = w / 2
    return [[*arc((r, 0.30), r, 0.30, 190, 385), (0.0, 1.0), (w, 1.0)]]


def _three(w: float) -> Strokes:
    r = w / 2
    top = arc((0.96 * r, 0.245), 0.92 * r, 0.245, 200, 440)
    bottom = arc((r, 0.735), r, 0.265, -80, 160)
    return [top + bottom]


def _five(w: float) -> Strokes:
    r = w / 2
    bowl = arc((r, 0.68), r, 0.32, 212, 520)
    return [[(0.92 * w, 0.0), (0.1 * w, 0.0), (0.03 * w, 0.52)], bowl]


def _six(w: float) -> Strokes:
    r = w / 2
    loop = arc((r, 0.685), r, 0.315, 0, 360, 40)
    return [loop, [(0.72 * w, 0.0), (0.30 * w, 0.26), *arc((r, 0.685), r, 0.42, 205, 180, 5)]]


def _seven(w: float) -> Strokes:
    return [[(0.0, 0.0), (w, 0.0), (0.30 * w, 1.0)]]


def _eight(w: float) -> Strokes:
    r = w / 2
    top = arc((r, 0.235), 0.88 * r, 0.235, 0, 360, 40)
    return [top, arc((r, 0.735), r, 0.265, 0, 360, 40)]


def _s(w: float) -> Strokes:
    r = w / 2
    top = arc((r, 0.26), r, 0.26, 340, 115)
    return [top + arc((r, 0.74), r, 0.26, 295, 520)]


def _t(w: float) -> Strokes:
    return [[(-0.08 * w, 0.0), (1.08 * w, 0.0)], [(w / 2, 0.0), (w / 2, 1.0)]]


def _p(w: float) -> Strokes:
    r = 0.28
    bowl = [(0.0, 0.0), (w - r, 0.0), *arc((w - r, r), r, r, -90, 90), (0.0, 2 * r)]
    return [[(0.0, 1.0), (0.0, 0.0)], bowl]


_GLYPHS: Final[dict[str, Callable[[float], Strokes]]] = {
    "0": _zero,
    "O": _zero,
    "1": _one,
    "2": _two,
    "3": _three,
    "5": _five,
    "6": _six,
    "7": _seven,
    "8": _eight,
    "S": _s,
    "T": _t,
    "P": _p,
}


def write(
    canvas: Canvas, text: str, height: float, advance: float, fill: Material, y: float = 0.0
) -> None:
    """Write `text` centred at (0, y).

    Args:
        canvas: where to draw.
        text: characters among 0-3, 5-8, O, P, S, T.
        height: outer height of a character.
        advance: outer width of a character plus the gap to the next, over `height`.
        fill: paint.
        y: vertical centre.
    """
    stroke = STROKE * height
    gap = 0.115 * height
    inner = height - stroke  # from centre line to centre line
    widths = [(0.72 if c == "1" else 1.0) * advance * height - gap for c in text]
    x = -(sum(widths) + gap * (len(text) - 1)) / 2
    for character, width in zip(text, widths, strict=True):
        for line in _GLYPHS[character]((width - stroke) / inner):
            points = [(x + stroke / 2 + px * inner, y + (py - 0.5) * inner) for px, py in line]
            _cut_line(canvas, points, stroke, fill)
        x += width + gap


def _cut_line(canvas: Canvas, points: list[Point], width: float, fill: Material) -> None:
    # Straight ends, lengthened by half a width where the line starts or stops on the
    # top or bottom edge would change the height: DIN ends are square, so a butt end at
    # the centre line plus a square cap keeps every character equally high.
    (x0, y0), (x1, y1) = points[0], points[1]
    (x2, y2), (x3, y3) = points[-2], points[-1]
    start = _extend((x1, y1), (x0, y0), width / 2)
    stop = _extend((x2, y2), (x3, y3), width / 2)
    canvas.stroke([start, *points, stop], width, fill)


def _extend(before: Point, end: Point, by: float) -> Point:
    dx, dy = end[0] - before[0], end[1] - before[1]
    length = (dx * dx + dy * dy) ** 0.5
    if length == 0:
        return end
    return end[0] + dx / length * by, end[1] + dy / length * by


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
