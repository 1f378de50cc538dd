"""The picture of the flow: parts in one column, an arc for the imports from one to another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve
from structure import PACKAGES, RANKS

from cnn.common.files import write_bytes

Flow = Mapping[tuple[str, str], int]

COLOURS: Final = (
    "#1b5e9b", "#c2571a", "#2f7d4f", "#8a3b8f", "#a8791b", "#2a8c91", "#b03a48",
    "#5a5fa8", "#6b7a1f", "#8c5a3c", "#3d6d6d", "#a05195", "#555555", "#777777",
)  # fmt: skip
_WIDTH: Final = 1.5
_PORT: Final = 0.075
"""Between the ends of two arcs on a box; all lengths are inches."""
_GAP: Final = 0.26


def draw(flow: Flow, path: Path) -> None:
    """Write the SVG picture of `structure.flow`.

    Importing parts stand above imported ones, so that every arc on the right points down; one
    that points up stands on the left, in red.
    """
    parts = column({part for pair in flow for part in pair})
    centre, half, depth = _boxes(flow, parts)
    with mpl.rc_context({"svg.hashsalt": "structure", "svg.fonttype": "path", "font.size": 11}):
        left, right = 1.6, _WIDTH / 2 + 0.75 * _bulge(len(parts) - 1) + 0.2
        figure = Figure(figsize=(left + right, depth + 0.8))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-left, right), ylim=(-depth - 0.6, 0.2))
        axes.axis("off")
        _surround_testbed(axes, parts, centre, half)
        ports = _ports(flow, parts, centre, half)
        for (importer, imported), n in sorted(flow.items(), key=lambda item: (-item[1], item[0])):
            at, to = parts.index(importer), parts.index(imported)
            side = 1 if at < to else -1
            x, out = side * _WIDTH / 2, side * (_WIDTH / 2 + _bulge(abs(at - to)))
            begin, end = ports[importer, imported]
            curve = Curve(
                [(x, begin), (out, begin), (out, end), (x, end)],
                [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4],
            )
            axes.add_patch(
                FancyArrowPatch(
                    path=curve,
                    arrowstyle="-|>",
                    mutation_scale=7 + math.log2(n),
                    linewidth=0.5 + 0.6 * math.log2(n),
                    color=COLOURS[at % len(COLOURS)] if side > 0 else "#d00000",
                    alpha=0.75,
                )
            )
        for part, colour in zip(parts, COLOURS * 2, strict=False):
            _box(axes, part.removeprefix("testbed."), centre[part], half[part], colour)
        axes.text(
            -left + 0.1,
            -depth - 0.5,
            "An arrow goes from a part to one that it imports, in the importing part's colour;\n"
            "the more pairs of modules, the thicker. Arrows up would be red, on the left.",
            fontsize=9,
            color="#444444",
        )
        data = BytesIO()
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": "sliproad"})
    write_bytes(path, data.getvalue())


def column(parts: set[str]) -> list[str]:
    """From top to bottom: agents, offload_env, testbed's folders, cnn."""

    def place(part: str) -> tuple[int, int, str]:
        package, _, folder = part.partition(".")
        return -PACKAGES.index(package), -RANKS[folder] if folder else 0, folder

    return sorted(parts, key=place)


def _bulge(steps: int) -> float:
    """How far the control points of an arc over so many steps stand out."""
    return 0.5 + 0.42 * steps


def _boxes(flow: Flow, parts: list[str]) -> tuple[dict[str, float], dict[str, float], float]:
    """Centre and half height of every box, which has room for its arcs, and the whole depth."""
    centre, half, depth = {}, {}, 0.0
    for part in parts:
        arcs = sum(part in pair for pair in flow)
        half[part] = max(0.2, _PORT * (arcs + 1) / 2)
        centre[part] = -depth - half[part]
        depth += 2 * half[part] + _GAP
    return centre, half, depth


def _ports(
    flow: Flow, parts: list[str], centre: Mapping[str, float], half: Mapping[str, float]
) -> dict[tuple[str, str], tuple[float, float]]:
    """Heights at which every arc begins and ends, so that few cross beside the boxes.

    Arcs come in above and go out below; of those that come in the longest is the lowest, of
    those that go out the highest.
    """
    begins, ends = {}, {}
    at = {part: i for i, part in enumerate(parts)}
    by_length = sorted(flow, key=lambda pair: (abs(at[pair[0]] - at[pair[1]]), pair))
    for part in parts:
        into = [pair for pair in by_length if pair[1] == part]
        out = [pair for pair in reversed(by_length) if pair[0] == part]
        step = 2 * half[part] / (len(into) + len(out) + 1)
        for i, pair in enumerate((*into, *out), 1):
            (ends if i <= len(into) else begins)[pair] = centre[part] + half[part] - i * step
    return {pair: (begins[pair], ends[pair]) for pair in flow}


def _box(axes: Axes, text: str, y: float, half: float, colour: str) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (-_WIDTH / 2, y - half),
            _WIDTH,
            2 * half,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor="white",
            edgecolor=colour,
            linewidth=1.6,
        )
    )
    axes.text(0, y, text, ha="center", va="center", weight="bold")


def _surround_testbed(
    axes: Axes, parts: list[str], centre: Mapping[str, float], half: Mapping[str, float]
) -> None:
    inside = [part for part in parts if part.startswith("testbed.")]
    if not inside:
        return
    top, bottom = centre[inside[0]] + half[inside[0]], centre[inside[-1]] - half[inside[-1]]
    axes.add_patch(
        FancyBboxPatch(
            (-_WIDTH / 2 - 0.5, bottom - 0.08),
            _WIDTH + 0.6,
            top - bottom + 0.16,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor="#f2f2f2",
            edgecolor="none",
        )
    )
    axes.text(
        -_WIDTH / 2 - 0.3, (top + bottom) / 2, "testbed", rotation=90, ha="center", va="center"
    )
