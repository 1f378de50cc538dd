"""Make a frame table: every frame, on one drive or several, through every action of the network.

Policies learn on few tracks, most of them easy. `another_drive` gives the frames that a camera
could have taken on another day past the same signs: one condition holds for a whole track (light,
blur, resolution, noise, dirt), the detector's box moves from frame to frame. The real network then
answers the changed frames; its answers are not simulated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from cnn.common.errors import ConfigError, DataError, narrowed
from cnn.data.image_set import SPLICED, ImageSet
from cnn.frame_table import FEATURES, FrameTable, frame_features, join_tables
from cnn.runtime import SplitRuntime

_SKY: Final = 0.9
"""Brightness of the sky in fog, share of full scale."""
_NOISE: Final = 0.02
"""Standard deviation of the camera's noise at dusk, share of full scale: modelled."""


@dataclass(frozen=True, slots=True)
class Condition:
    """The conditions of one drive past one sign.

    Attributes:
        gamma, gain, contrast: of the light; 1 changes nothing.
        blur_px: standard deviation of a Gaussian blur, pixels of the network's input.
        resolution: share of the pixels that are left, by width.
        noise: standard deviation of the sensor's noise, share of full scale.
        zoom, shift: of the detector's box (1 and (0, 0): as labelled; shift by shares of
            the width).
        wobble: standard deviation of shift and zoom from frame to frame.
        dirt: (left, top, width, height, grey) of a covering patch, shares; None without.
        fog: share of the sign's light that does not arrive; as much of a bright sky's arrives
            instead (Koschmieder's law of contrast in haze).
    """

    gamma: float = 1.0
    gain: float = 1.0
    contrast: float = 1.0
    blur_px: float = 0.0
    resolution: float = 1.0
    noise: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    wobble: float = 0.0
    dirt: tuple[float, float, float, float, float] | None = None
    fog: float = 0.0


def draw_condition(rng: np.random.Generator, strength: float) -> Condition:
    """A random condition.

    Args:
        rng: source of every random number.
        strength: 0 is the original drive, 1 is the strength that `cnn.network.augment` trains with.
    """

    def spread(width: float) -> float:
        return float(rng.uniform(-width, width)) * strength

    hit, blurred = rng.random() < 0.25, rng.random() < 0.5
    left, top = rng.uniform(-0.1, 0.9, 2)
    width, height = rng.uniform(0.1, 0.4, 2) * strength
    dirt = (float(left), float(top), float(width), float(height), float(rng.random()))
    return Condition(
        gamma=float(np.exp(spread(0.5))),
        gain=float(np.exp(spread(0.4))),
        contrast=float(np.exp(spread(0.5))),
        blur_px=float(rng.uniform(0.0, 1.5)) * strength if blurred else 0.0,
        resolution=1.0 - float(rng.uniform(0.0, 0.6)) * strength,
        noise=float(rng.random()) ** 2 * 0.05 * strength,
        zoom=float(np.exp(spread(0.15))),
        shift=(spread(0.08), spread(0.08)),
        wobble=0.02 * strength,
        dirt=dirt if hit and strength > 0 else None,
    )


def see(
    image: NDArray[np.uint8], condition: Condition, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """One frame, uint8 (H, W, 3), as the camera sees it under `condition`."""
    height, width = image.shape[:2]
    picture = _box(Image.fromarray(image), condition, rng)
    if condition.blur_px:
        picture = picture.filter(ImageFilter.GaussianBlur(condition.blur_px))
    if condition.resolution < 1.0:
        small = (max(4, round(width * condition.resolution)),) * 2
        smaller = picture.resize(small, Image.Resampling.BILINEAR)
        picture = smaller.resize((width, height), Image.Resampling.BILINEAR)
    x = np.asarray(picture, np.float32) / 255.0
    if condition.dirt is not None:
        left, top, w, h, grey = condition.dirt
        rows = slice(max(0, round(top * height)), max(0, round((top + h) * height)))
        columns = slice(max(0, round(left * width)), max(0, round((left + w) * width)))
        x[rows, columns] = grey
    if condition.fog:
        x = x * np.float32(1.0 - condition.fog) + np.float32(condition.fog * _SKY)
    x = np.power(x, np.float32(condition.gamma))
    mean = x.mean()
    x = ((x - mean) * condition.contrast + mean) * condition.gain
    if condition.noise:
        x = x + rng.normal(0.0, condition.noise, x.shape).astype(np.float32)
    seen: NDArray[np.uint8] = np.clip(np.rint(x * 255.0), 0, 255).astype(np.uint8)
    return seen


def _box(picture: Image.Image, condition: Condition, rng: np.random.Generator) -> Image.Image:
    """Cut out another box around the sign; beyond the crop its border is repeated."""
    width, height = picture.size
    zoom = condition.zoom * float(np.exp(rng.normal(0.0, condition.wobble)))
    dx, dy = (s + float(rng.normal(0.0, condition.wobble)) for s in condition.shift)
    centre_x, centre_y = (0.5 + dx) * width, (0.5 + dy) * height
    edge = max(width, height) // 2
    padded = np.pad(np.asarray(picture), ((edge, edge), (edge, edge), (0, 0)), mode="edge")
    matrix = (
        zoom, 0.0, edge + centre_x - zoom * width / 2,
        0.0, zoom, edge + centre_y - zoom * height / 2,
    )  # fmt: skip
    return Image.fromarray(padded).transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )


def another_drive(data: ImageSet, strength: float, seed: int) -> ImageSet:
    """The same tracks seen on another day, one condition a track.

    Args:
        data: frames with tracks; labels, tracks, frame numbers and crop sizes stay.
        strength: of the worst condition, see `draw_condition`; each track's is drawn evenly
            between 0 and this, so that some tracks are as easy as they were.
        seed: equal seeds give equal frames.

    Raises:
        ConfigError: if the strength is not within 0..2.
    """
    if not 0.0 <= strength <= 2.0:
        raise ConfigError(f"strength {strength}", expected="0 to 2", hint="try 1")
    images = np.empty_like(data.images)
    names = data.track_names()
    previous, rng, condition = "", np.random.default_rng(seed), Condition()
    for i, name in enumerate(names):
        if name != previous:
            # By name, so that a track looks the same whatever the other tracks are.
            rng = np.random.default_rng([seed, *name.encode()])
            condition, previous = draw_condition(rng, strength * rng.random()), name
        images[i] = see(data.images[i], condition, rng)
    return replace(data, images=images)


def dark(share: float) -> Condition:
    """At dusk: a share of the light is lost, and the camera's noise stays what it was."""
    return Condition(gain=1.0 - share, noise=_NOISE)


def under(data: ImageSet, condition: Condition) -> ImageSet:
    """The same frames, all under one condition: a shift that the network was not trained for."""
    rng = np.random.default_rng(0)
    images = np.stack([see(image, condition, rng) for image in data.images])
    return replace(data, images=images)


def action_logits(
    runtime: SplitRuntime, images: NDArray[np.uint8]
) -> dict[tuple[int, int], NDArray[np.float32]]:
    """Uncalibrated logits of every (exit, split) that differs, sharing common work.

    Args:
        runtime: the exported network.
        images: uint8 (B, H, W, 3).

    Returns:
        logits (B, n_classes) by (exit, split): (E, E) for local and full offloading
        (the frame crosses the wire unchanged), (E, S) for every bottleneck S < E.
    """
    topology = runtime.topology
    out: dict[tuple[int, int], NDArray[np.float32]] = {}
    x = images
    for block in range(1, topology.n_blocks + 1):
        x = runtime.forward(x, block, block)
        if block in topology.exits:
            out[block, block] = runtime.logits(x, block)
        if block in topology.splits:
            y = runtime.received(runtime.payload(x, block), block)
            for later in range(block + 1, topology.n_blocks + 1):
                y = runtime.forward(y, later, later)
                if later in topology.exits:
                    out[later, block] = runtime.logits(y, later)
    return out


def running_tracks(data: ImageSet) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
    """Running track number and frame number within it; GTSRB's spliced tracks are cut in two.

    A track is also cut where its class changes.

    Raises:
        DataError: if a track has more frames than int16 can number.
    """
    names = data.track_names()
    track = np.zeros(len(data), np.int32)
    frame = np.zeros(len(data), np.int32)
    current, start, previous = -1, 0, ""
    for i, name in enumerate(names):
        cut = not data.class_names and SPLICED.get(name) == int(data.frame[i])
        if name != previous or cut:
            current, start, previous = current + 1, i, name
        track[i], frame[i] = current, i - start
    return track, narrowed(frame, np.int16, "frames of one track")


def all_features(data: ImageSet, frame: NDArray[np.int16]) -> NDArray[np.float32]:
    """Cheap features of every frame, float32 (N, 6), columns as in `FEATURES`."""
    out = np.empty((len(data), len(FEATURES)), np.float32)
    for i in range(len(data)):
        out[i] = frame_features(
            data.images[i], int(data.width_px[i]), int(data.height_px[i]), int(frame[i])
        )
    return out


def make_table(
    runtime: SplitRuntime,
    data: ImageSet,
    source: str,
    *,
    batch: int = 64,
    progress: Callable[[int], object] | None = None,
) -> FrameTable:
    """The frame table of `data`, tracks in the order given.

    Args:
        runtime: the exported network.
        data: frames with tracks.
        source: text kept in the table, such as ``GTSRB policy-test``.
        batch: frames a run.
        progress: called with the number of frames just done.

    Raises:
        DataError: if there are no frames, or frames without tracks.
    """
    if len(data) == 0 or data.track.min() < 0:
        raise DataError(
            f"{len(data)} frames, some without a track",
            expected="frames with tracks (the training set, a part of it, or renders)",
            hint="choose a part such as policy-test",
        )
    topology = runtime.topology
    prediction = np.empty((len(data), topology.n_actions), np.int16)
    confidence = np.empty((len(data), topology.n_actions), np.float32)
    for at in range(0, len(data), batch):
        rows = slice(at, min(at + batch, len(data)))
        logits = action_logits(runtime, data.images[rows])
        for a in topology.actions:
            key = (a.exit, a.exit if a.is_full_offload else a.split)
            prediction[rows, a.index], confidence[rows, a.index] = runtime.calibrated(
                logits[key], a.exit, a.split
            )
        if progress is not None:
            progress(rows.stop - rows.start)
    track, frame = running_tracks(data)
    return FrameTable(
        label=data.label,
        track=track,
        frame=frame,
        prediction=prediction,
        confidence=np.clip(confidence, 0, 1),
        payload_bytes=np.tile(topology.payload_bytes, (len(data), 1)),
        features=all_features(data, frame),
        bundle_hash=runtime.bundle.hash,
        source=source,
        topology=topology,
    )


def make_varied_table(
    runtime: SplitRuntime,
    data: ImageSet,
    source: str,
    *,
    drives: int,
    strength: float,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> FrameTable:
    """`make_table` of `data` and of more drives past the same signs.

    Args:
        runtime, data, source, progress: as of `make_table`.
        drives: how many more; 0 is `make_table` itself.
        strength: of the worst condition, see `cnn.make_frame_table.another_drive`.
        seed: of the conditions; drive k takes seed + k.
    """
    if drives == 0:
        return make_table(runtime, data, source, progress=progress)
    days = [data, *(another_drive(data, strength, seed + k) for k in range(1, drives + 1))]
    tables = [make_table(runtime, day, source, progress=progress) for day in days]
    return join_tables(
        tables, f"{source} and {drives} more drives, strength {strength:g}, seed {seed}"
    )
