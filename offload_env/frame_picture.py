"""A frame and its decision, as a line of text and as a small picture.

Frame tables hold answers, not images. For a simulated frame the picture shows a sign of its class,
drawn by `cnn.render.rendered_tracks`, the same one throughout a track.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cnn.render.rendered_tracks import render_tracks
from cnn.render.signs import N_SIGNS
from cnn.topology import Topology
from offload_env.outcome import SKIPPED, STATUS, Outcome
from offload_env.world import World

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
METADATA: Final[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 10}
"""Every environment's ``metadata`` for `rendered`."""
WIDTH: Final = 400
HEIGHT: Final = 160
_SIGN_PX: Final = 120
_LEFT: Final = 156
_INK, _PAPER, _FAINT = (32, 33, 36), (250, 250, 248), (214, 214, 210)
_DEVICE, _SERVER, _GOOD, _BAD = (46, 110, 180), (232, 150, 40), (44, 140, 80), (196, 52, 48)


@dataclass(frozen=True, slots=True)
class Shown:
    """The last frame of a drive, or (without `outcome`) the first before its decision.

    Attributes:
        number: of the frame in the drive, from 0.
        label: its class; None unknown.
        track: of the frame table; the same sign is drawn throughout.
        image: uint8 (H, W, 3), the frame itself if there is one; None draws a sign.
        outcome: of the frame; None before the decision.
    """

    number: int
    label: int | None = None
    track: int = 0
    image: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    outcome: Outcome | None = None


def shown_of(world: World, row: int, number: int, outcome: Outcome | None = None) -> Shown:
    """Frame `number`, `row` of the table, after its outcome or before."""
    label, track = int(world.table.label[row]), int(world.table.track[row])
    return Shown(number, None if label < 0 else label, track, outcome=outcome)


def rendered(world: World, shown: Shown, render_mode: str) -> str | Picture:
    """A frame in an environment's `render_mode`: ``ansi`` or ``rgb_array``."""
    return describe(world, shown) if render_mode == "ansi" else paint(world, shown)


def describe(world: World, shown: Shown) -> str:
    """One frame as a line of text."""
    o = shown.outcome
    if o is None:
        return "no frame yet"
    return (
        f"{world.topology.actions[o.action].name} {STATUS[o.status]} delay {o.delay_ms:.1f} ms "
        f"energy {o.energy_mj:.1f} mJ {_answer(world, o)} cost {o.cost:.3f}"
    )


def _answer(world: World, outcome: Outcome) -> str:
    """How right the answer is: in a word, or its quality."""
    if world.table.quality is not None:
        return f"quality {outcome.correct:.2f}"
    return "right" if outcome.correct else "wrong"


def paint(world: World, shown: Shown) -> Picture:
    """The picture of one frame; equal frames give equal pictures.

    Args:
        world: for its network's blocks, and for the deadline and the energy of full local
            processing, the ends of the bars.
        shown: frame to paint.

    Returns:
        uint8 (`HEIGHT`, `WIDTH`, 3), RGB, a new array.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    if shown.image is None:
        sign = _sign(shown.label, shown.track)
    else:
        sign = Image.fromarray(shown.image).resize((_SIGN_PX, _SIGN_PX))
    image.paste(sign, (16, 12))
    draw = ImageDraw.Draw(image)
    known = "" if shown.label is None else f", class {shown.label}"
    _text(draw, (16, 138), f"frame {shown.number}{known}")
    _paint_blocks(draw, world.topology, shown.outcome)
    if shown.outcome is not None:
        _paint_outcome(draw, world, shown.outcome)
    return np.array(image)


def _paint_blocks(draw: ImageDraw.ImageDraw, topology: Topology, outcome: Outcome | None) -> None:
    """The network's blocks in the colour of where they run, grey if they do not."""
    action = None if outcome is None else topology.actions[outcome.action]
    ran = 0 if action is None or outcome is None or outcome.status == SKIPPED else action.exit
    pitch = min(46, 230 // topology.n_blocks)
    width = pitch - max(2, pitch * 8 // 46)
    for block in range(1, topology.n_blocks + 1):
        colour = _FAINT
        if action is not None and block <= ran:
            colour = _DEVICE if block <= action.split else _SERVER
        x, number = _LEFT + (block - 1) * pitch, str(block)
        draw.rectangle((x, 14, x + width, 42), fill=colour)
        _text(draw, (x + width // 2 - 3 * len(number), 21), number, _PAPER)
    _text(draw, (_LEFT, 48), "device", _DEVICE)
    _text(draw, (_LEFT + 46, 48), "server", _SERVER)
    said = "no decision yet"
    if action is not None and outcome is not None:
        said = f"{action.name}, {STATUS[outcome.status]}"
    _text(draw, (_LEFT + 100, 48), said)


def _paint_outcome(draw: ImageDraw.ImageDraw, world: World, outcome: Outcome) -> None:
    """Delay up to the deadline, energy up to that of full local processing, the answer."""
    bars = (
        (72, "ms", outcome.delay_ms, world.scenario.timing.deadline_ms),
        (96, "mJ", outcome.energy_mj, world.energy_ref_mj),
    )
    for y, unit, value, full in bars:
        share = value / full if full > 0 else 0.0
        draw.rectangle((_LEFT, y, _LEFT + 110, y + 14), fill=_FAINT)
        if share > 0:
            end = _LEFT + round(110 * min(share, 1.0))
            draw.rectangle((_LEFT, y, end, y + 14), fill=_BAD if share > 1 else _DEVICE)
        _text(draw, (_LEFT + 118, y), f"{value:.1f} of {full:.0f} {unit}")
    if outcome.status == SKIPPED:
        said, ink = "no answer", _BAD
    else:
        exit = world.topology.actions[outcome.used].exit
        verb = "is" if world.table.quality is None else "has"
        said = f"exit {exit} {verb} {_answer(world, outcome)}"
        ink = _GOOD if outcome.correct >= 0.5 else _BAD
    _text(draw, (_LEFT, 122), said, ink)
    _text(draw, (_LEFT + 118, 122), f"cost {outcome.cost:.3f}")


def _text(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, ink: Colour = _INK) -> None:
    draw.text(at, text, fill=ink, font=_font())


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font: the same on every machine."""
    return ImageFont.load_default(12)


@lru_cache(maxsize=64)
def _sign(label: int | None, track: int) -> Image.Image:
    """A sign of a class, the same one for a track; drawing it takes tens of milliseconds."""
    if label is None or not 0 <= label < N_SIGNS:  # classes of another data set have no drawing
        return Image.new("RGB", (_SIGN_PX, _SIGN_PX), _FAINT)
    frame = next(iter(render_tracks(1, track, _SIGN_PX, 1, labels=[label])))
    return Image.fromarray(frame.image)
