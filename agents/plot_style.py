"""What the figures share: colours, axes, and PNG bytes.

Nothing here touches pyplot's global state, so figures can be drawn anywhere.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cnn.common.outputs import SOFTWARE

AGENT_COLOUR: Final = "#1d3557"
STAGED_COLOUR: Final = "#d100a5"
BOUND_COLOUR: Final = "#6c757d"
_COLOURS: Final = {
    "full-local": "#c1121f",
    "full-offload": "#2a9d8f",
    "best-static": "#e07a00",
    "random": "#8d99ae",
    "neurosurgeon": "#7b2cbf",
    "edgent": "#00a6d6",
    "threshold": "#7f5539",
    "greedy": "#5a8f29",
    "linucb": "#f2c230",
    "spinn": "#00695c",
}
"""Baselines have the same colour in every figure."""


Colour = str | tuple[float, float, float]


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes (110 dots an inch)."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    metadata = {"Software": SOFTWARE}
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def plain_axes(width: float = 8.0, height: float = 4.5) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    make_plain(axes)
    return figure, axes


def make_plain(axes: Axes) -> None:
    """A light grid behind the data, no frame above and on the right."""
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plain_log(axis: Axis) -> None:
    """A logarithmic axis with plain numbers: 1, 2, 3, 5, 10, 20, ..., no powers of ten."""
    low, high = axis.get_view_interval()
    few = high > 50 * max(low, 1e-12)  # many decades: their ends are enough
    axis.set_major_locator(LogLocator(subs=(1.0,) if few else (1.0, 2.0, 3.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def plain_linear(axis: Axis) -> None:
    """A linear axis with plain numbers: no offset and no power of ten beside the axis."""
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))


def ink_on(colour: Colour) -> str:
    """Black or white, whichever contrasts more with `colour` (WCAG 2.2, contrast ratio)."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "black" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "white"


def colour_of(name: str) -> str:
    """A policy's colour, the same in every figure."""
    if "staged" in name:
        return STAGED_COLOUR
    if "agent" in name:
        return AGENT_COLOUR
    if "clairvoyant" in name:
        return BOUND_COLOUR
    return _COLOURS.get(name, "#343a40")
