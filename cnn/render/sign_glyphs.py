"""Digits and letters in the manner of DIN 1451, the lettering of German road signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cnn.render.sign_canvas import Canvas, Material, Point, arc

# A glyph is a list of strokes in a box of width w and height 1 (centre lines).
Strokes = list[list[Point]]
STROKE: Final = 0.155
"""Line width over letter height; DIN 1451 Mittelschrift is drawn with 1/7."""


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
