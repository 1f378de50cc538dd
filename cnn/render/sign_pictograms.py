"""The drawings inside the frames: arrows, vehicles, people, animals."""

from __future__ import annotations

import math

from cnn.render.sign_canvas import Canvas, Material, Point, arc, arrow_head, mirror, turn

_BLACK = Material.BLACK


def car_rear(canvas: Canvas, cx: float, bottom: float, width: float, paint: Material) -> None:
    """A car from behind: window, body, two wheels."""
    u = width / 2

    def at(points: list[Point]) -> list[Point]:
        return [(cx + x * u, bottom + y * u) for x, y in points]

    canvas.polygon(at([(-0.74, -1.58), (0.74, -1.58), (0.98, -0.9), (-0.98, -0.9)]), paint)
    canvas.polygon(at([(-0.6, -1.42), (0.6, -1.42), (0.78, -0.95), (-0.78, -0.95)]), Material.WHITE)
    canvas.polygon(at([(-1.0, -0.92), (1.0, -0.92), (1.0, -0.3), (-1.0, -0.3)]), paint)
    for side in (-1, 1):
        x0, x1 = sorted((side * 0.92, side * 0.52))
        canvas.polygon(at([(x0, -0.35), (x1, -0.35), (x1, 0.0), (x0, 0.0)]), paint)


def truck_rear(canvas: Canvas, cx: float, bottom: float, width: float, paint: Material) -> None:
    """A truck from behind: a high box, the axle, two wheels."""
    u = width / 2

    def box(x0: float, y0: float, x1: float, y1: float) -> None:
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        canvas.polygon([(cx + x * u, bottom + y * u) for x, y in corners], paint)

    box(-1.0, -2.75, 1.0, -0.72)
    box(-0.86, -0.72, -0.46, 0.0)
    box(0.46, -0.72, 0.86, 0.0)
    box(-0.9, -0.42, 0.9, -0.26)


def truck_side(canvas: Canvas) -> None:
    """A lorry seen from its left, driving to the left."""
    canvas.polygon([(-0.22, -0.33), (0.58, -0.33), (0.58, 0.15), (-0.22, 0.15)], _BLACK)
    canvas.polygon([(-0.6, 0.15), (0.58, 0.15), (0.58, 0.23), (-0.6, 0.23)], _BLACK)
    cab = [(-0.6, 0.2), (-0.6, 0.02), (-0.53, -0.17), (-0.27, -0.17), (-0.27, 0.2)]
    canvas.polygon(cab, _BLACK)
    canvas.polygon([(-0.54, 0.0), (-0.49, -0.12), (-0.33, -0.12), (-0.33, 0.0)], Material.WHITE)
    for x in (-0.44, 0.33):
        canvas.disc((x, 0.23), 0.14, Material.WHITE)
        canvas.disc((x, 0.23), 0.105, _BLACK)
        canvas.disc((x, 0.23), 0.04, Material.WHITE)


def end_stripes(canvas: Canvas, radius: float) -> None:
    """Five thin black stripes from lower left to upper right."""
    for k in range(-2, 3):
        offset = k * 0.088
        reach = math.sqrt(radius**2 - offset**2)
        line = [(-reach, offset), (reach, offset)]
        canvas.stroke(turn(line, -48), 0.042, _BLACK)


def arrow_right_ahead(canvas: Canvas, *, left: bool) -> None:
    """Straight up, then a bend to one side."""
    shaft = [(-0.27, 0.68), (-0.27, 0.08), *arc((0.08, 0.08), 0.35, 0.35, 180, 270), (0.4, -0.27)]
    _blue_arrow(canvas, shaft, (0.74, -0.27), 0, left=left)


def arrow_ahead(canvas: Canvas) -> None:
    """Straight up."""
    canvas.stroke([(0.0, 0.72), (0.0, -0.4)], 0.2, Material.WHITE)
    canvas.polygon(arrow_head((0.0, -0.78), -90, 0.42, 0.4), Material.WHITE)


def arrow_fork(canvas: Canvas, *, left: bool) -> None:
    """Straight up, with a branch to one side."""
    side = -1 if left else 1
    x = -0.17 * side
    canvas.stroke([(x, 0.74), (x, -0.4)], 0.19, Material.WHITE)
    canvas.polygon(arrow_head((x, -0.78), -90, 0.38, 0.34), Material.WHITE)
    branch = [(-0.17, 0.52), *arc((0.15, 0.46), 0.28, 0.3, 180, 270, 12), (0.42, 0.16)]
    _blue_arrow(canvas, branch, (0.76, 0.16), 0, left=left, width=0.17, half=0.31, length=0.36)


def arrow_keep(canvas: Canvas, *, left: bool) -> None:
    """Obliquely down to one side."""
    c = math.sqrt(0.5)
    start, end, tip = (-0.74 * c, -0.74 * c), (0.45 * c, 0.45 * c), (0.78 * c, 0.78 * c)
    _blue_arrow(canvas, [start, end], tip, 45, left=left, width=0.23, half=0.42, length=0.42)


def arrow_circle(canvas: Canvas) -> None:
    """Three arrows, anticlockwise around the centre."""
    r = 0.58
    for third in range(3):
        stop = -105 + 120 * third  # where the head sits; the path runs anticlockwise
        canvas.stroke(arc((0, 0), r, r, stop + 90, stop + 12), 0.135, Material.WHITE)
        a = math.radians(stop - 8)
        tip = (r * math.cos(a), r * math.sin(a))
        canvas.polygon(arrow_head(tip, stop - 8 - 80, 0.32, 0.23), Material.WHITE)


def _blue_arrow(
    canvas: Canvas,
    shaft: list[Point],
    tip: Point,
    degrees: float,
    *,
    left: bool,
    width: float = 0.2,
    half: float = 0.36,
    length: float = 0.4,
) -> None:
    head = arrow_head(tip, degrees, length, half)
    canvas.stroke(mirror(shaft) if left else shaft, width, Material.WHITE)
    canvas.polygon(mirror(head) if left else head, Material.WHITE)


def crossing(canvas: Canvas) -> None:
    """A thick arrow ahead over a thin bar: right of way at the next crossing."""
    canvas.polygon([(-0.4, 0.17), (0.4, 0.17), (0.4, 0.27), (-0.4, 0.27)], _BLACK)
    arrow = [(0.0, -0.22), (0.19, 0.02), (0.135, 0.06), (0.135, 0.63), (0.0, 0.53)]
    canvas.polygon(arrow + mirror(arrow[::-1]), _BLACK)


def exclamation(canvas: Canvas) -> None:
    """A bar that tapers downwards, and a dot."""
    canvas.polygon([(-0.1, -0.25), (0.1, -0.25), (0.055, 0.33), (-0.055, 0.33)], _BLACK)
    canvas.disc((0.0, -0.25), 0.1, _BLACK)
    canvas.disc((0.0, 0.33), 0.055, _BLACK)
    canvas.disc((0.0, 0.51), 0.095, _BLACK)


def curve(canvas: Canvas, *, left: bool) -> None:
    """From below, a bend to one side with a blunt head."""
    path = [(-0.19, 0.5), (-0.19, 0.3), *arc((0.0, 0.3), 0.19, 0.2, 180, 270, 14), (0.1, 0.1)]
    tail = [(-0.28, 0.48), (-0.1, 0.48), (-0.1, 0.64), (-0.19, 0.57), (-0.28, 0.64)]
    head = [(0.06, -0.02), (0.18, -0.01), (0.33, 0.13), (0.17, 0.24), (0.06, 0.22)]
    canvas.stroke(mirror(path) if left else path, 0.18, _BLACK)
    canvas.polygon(mirror(tail) if left else tail, _BLACK)
    canvas.polygon(mirror(head) if left else head, _BLACK)


def double_curve(canvas: Canvas) -> None:
    """First left, then right again: a bolt of even width with a blunt head."""
    outline = [
        (-0.11, -0.2), (-0.01, -0.08), (-0.02, 0.14), (0.2, 0.25), (0.2, 0.62),
        (0.115, 0.55), (0.03, 0.62), (0.03, 0.42), (-0.19, 0.31), (-0.19, -0.06),
    ]  # fmt: skip
    canvas.polygon(outline, _BLACK)


def bumps(canvas: Canvas) -> None:
    """Two humps on the road."""
    profile: list[Point] = [(-0.47, 0.61)]
    for x in (i / 40 * 0.94 - 0.47 for i in range(41)):
        hump = max(0.0, math.cos((abs(x) - 0.215) / 0.2 * math.pi / 2))
        profile.append((x, 0.55 - 0.17 * hump))
    canvas.polygon([*profile, (0.47, 0.61)], _BLACK)


def skidding_car(canvas: Canvas) -> None:
    """A car from behind, askew, over two crossing skid marks."""
    about = (0.0, 0.12)

    def part(points: list[Point], paint: Material) -> None:
        canvas.polygon(turn(points, 12, about), paint)

    part([(-0.19, -0.1), (0.16, -0.1), (0.24, 0.09), (-0.27, 0.09)], _BLACK)
    part([(-0.15, -0.06), (0.12, -0.06), (0.17, 0.06), (-0.2, 0.06)], Material.WHITE)
    part([(-0.28, 0.07), (0.25, 0.07), (0.25, 0.23), (-0.28, 0.23)], _BLACK)
    part([(-0.26, 0.21), (-0.16, 0.21), (-0.16, 0.3), (-0.26, 0.3)], _BLACK)
    part([(0.13, 0.21), (0.23, 0.21), (0.23, 0.3), (0.13, 0.3)], _BLACK)
    for shift in (-0.17, 0.15):
        mark = [
            (shift + 0.16 * math.sin(2.2 * math.pi * t) + 0.2 * (t - 0.5), 0.36 + 0.25 * t)
            for t in (i / 24 for i in range(25))
        ]
        canvas.stroke(mark, 0.05, _BLACK)


def narrowing(canvas: Canvas) -> None:
    """Two edges of the road; the right one comes in."""
    canvas.stroke([(-0.14, -0.16), (-0.14, 0.61)], 0.105, _BLACK)
    right = [(0.08, -0.16), (0.08, 0.14), (0.23, 0.3), (0.23, 0.61)]
    canvas.stroke(right, 0.105, _BLACK)


def road_works(canvas: Canvas) -> None:
    """A man with a shovel before a heap."""
    canvas.disc((0.02, -0.07), 0.085, _BLACK)
    canvas.polygon([(-0.1, 0.02), (0.03, 0.07), (-0.06, 0.33), (-0.22, 0.3)], _BLACK)
    canvas.stroke([(-0.16, 0.28), (-0.25, 0.42), (-0.34, 0.61)], 0.1, _BLACK)
    canvas.stroke([(-0.12, 0.28), (-0.03, 0.42), (-0.05, 0.61)], 0.1, _BLACK)
    canvas.stroke([(-0.02, 0.06), (0.1, 0.17), (0.14, 0.27)], 0.07, _BLACK)
    canvas.stroke([(-0.12, 0.08), (-0.1, 0.24), (0.04, 0.28)], 0.065, _BLACK)
    canvas.stroke([(0.0, 0.2), (0.28, 0.5)], 0.04, _BLACK)
    canvas.polygon([(0.06, 0.62), (0.2, 0.44), (0.3, 0.35), (0.4, 0.44), (0.57, 0.62)], _BLACK)


def traffic_light(canvas: Canvas) -> None:
    """Red, yellow and green, one above the other."""
    for y, paint in ((-0.14, Material.RED), (0.16, Material.YELLOW), (0.46, Material.GREEN)):
        canvas.disc((0.0, y), 0.125, paint)


def walker(canvas: Canvas) -> None:
    """A man who walks to the left."""
    canvas.disc((0.03, -0.17), 0.075, _BLACK)
    canvas.polygon([(-0.05, -0.08), (0.11, -0.08), (0.1, 0.24), (-0.03, 0.24)], _BLACK)
    canvas.stroke([(-0.04, -0.05), (-0.14, 0.05), (-0.2, 0.17)], 0.06, _BLACK)
    canvas.stroke([(0.09, -0.06), (0.17, 0.08), (0.13, 0.2)], 0.06, _BLACK)
    canvas.stroke([(0.0, 0.2), (-0.06, 0.38), (-0.18, 0.6)], 0.085, _BLACK)
    canvas.stroke([(0.06, 0.2), (0.14, 0.38), (0.24, 0.6)], 0.085, _BLACK)
    canvas.stroke([(-0.23, 0.58), (-0.14, 0.61)], 0.045, _BLACK)


def children(canvas: Canvas) -> None:
    """Two children who run, hand in hand."""
    canvas.disc((0.11, -0.07), 0.085, _BLACK)
    canvas.polygon([(0.01, 0.04), (0.2, 0.04), (0.18, 0.33), (0.02, 0.33)], _BLACK)
    canvas.stroke([(0.03, 0.08), (-0.1, 0.2), (-0.16, 0.22)], 0.065, _BLACK)
    canvas.stroke([(0.18, 0.08), (0.29, 0.14), (0.36, 0.06)], 0.065, _BLACK)
    canvas.stroke([(0.06, 0.3), (-0.02, 0.44), (0.02, 0.61)], 0.085, _BLACK)
    canvas.stroke([(0.14, 0.3), (0.24, 0.42), (0.4, 0.5)], 0.085, _BLACK)
    canvas.disc((-0.25, 0.09), 0.07, _BLACK)
    canvas.polygon([(-0.33, 0.18), (-0.18, 0.18), (-0.16, 0.38), (-0.33, 0.38)], _BLACK)
    canvas.stroke([(-0.32, 0.21), (-0.42, 0.31)], 0.055, _BLACK)
    canvas.stroke([(-0.28, 0.35), (-0.38, 0.47), (-0.46, 0.48)], 0.07, _BLACK)
    canvas.stroke([(-0.2, 0.35), (-0.16, 0.48), (-0.24, 0.61)], 0.07, _BLACK)


def bicycle(canvas: Canvas) -> None:
    """A bicycle that heads to the left."""
    front, rear, crank = (-0.24, 0.42), (0.24, 0.42), (0.035, 0.43)
    head, seat = (-0.19, 0.22), (0.14, 0.22)
    for hub in (front, rear):
        canvas.stroke(arc(hub, 0.165, 0.165, 0, 360, 40), 0.034, _BLACK)
    for line in ([head, seat], [head, crank, rear, seat], [crank, seat, (0.165, 0.13)]):
        canvas.stroke(line, 0.032, _BLACK)
    canvas.stroke([front, (-0.18, 0.15), (-0.15, 0.11), (-0.1, 0.11)], 0.034, _BLACK)
    canvas.stroke([(0.11, 0.12), (0.21, 0.125)], 0.038, _BLACK)


def snowflake(canvas: Canvas) -> None:
    """Six arms with two branches each."""
    centre = (0.0, 0.24)
    for k in range(6):
        degrees = 60 * k + 30
        arm = [(0.0, 0.24), (0.33, 0.24)]
        canvas.stroke(turn(arm, degrees, centre), 0.075, _BLACK)
        for side in (-1, 1):
            branch = [(0.17, 0.24), (0.29, 0.24 + side * 0.12)]
            canvas.stroke(turn(branch, degrees, centre), 0.06, _BLACK)


def deer(canvas: Canvas) -> None:
    """A stag that leaps to the left."""
    body = [
        (-0.14, 0.02), (-0.06, 0.14), (0.06, 0.22), (0.17, 0.27), (0.25, 0.33),
        (0.28, 0.42), (0.4, 0.6), (0.35, 0.62), (0.2, 0.46), (0.1, 0.42), (-0.02, 0.4),
        (-0.1, 0.36), (-0.16, 0.26), (-0.17, 0.12), (-0.26, 0.13), (-0.28, 0.08), (-0.18, 0.01),
    ]  # fmt: skip
    canvas.polygon(body, _BLACK)
    canvas.stroke([(-0.1, 0.33), (-0.26, 0.33), (-0.33, 0.4)], 0.045, _BLACK)
    canvas.stroke([(-0.05, 0.37), (-0.2, 0.42), (-0.2, 0.48)], 0.045, _BLACK)
    canvas.stroke([(0.2, 0.42), (0.28, 0.54), (0.25, 0.61)], 0.045, _BLACK)
    canvas.stroke([(-0.15, 0.03), (-0.1, -0.06), (-0.13, -0.16)], 0.035, _BLACK)
    canvas.stroke([(-0.11, -0.04), (-0.04, -0.09)], 0.03, _BLACK)
