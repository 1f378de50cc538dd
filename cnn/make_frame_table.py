"""Make a frame table: every frame through every action of the exported network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cnn.action import ACTIONS, N_ACTIONS, N_EXITS
from cnn.common.errors import DataError, narrowed
from cnn.data.conditions import another_drive
from cnn.data.frame_features import frame_features
from cnn.data.gtsrb import ImageSet
from cnn.data.track_split import SPLICED
from cnn.frame_table import FEATURES, FrameTable, join_tables
from cnn.runtime import SplitRuntime


def action_logits(
    runtime: SplitRuntime, images: NDArray[np.uint8]
) -> dict[tuple[int, int], NDArray[np.float32]]:
    """Uncalibrated logits of every (exit, split) that differs, sharing common work.

    Args:
        runtime: the exported network.
        images: uint8 (B, H, W, 3).

    Returns:
        logits (B, n_classes) by (exit, split): (E, E) for local and full offloading
        (the frame crosses the wire unchanged), (E, S) for every bottleneck 1 <= S < E.
    """
    out: dict[tuple[int, int], NDArray[np.float32]] = {}
    x = images
    for block in range(1, N_EXITS + 1):
        x = runtime.forward(x, block, block)
        out[block, block] = runtime.logits(x, block)
        if block < N_EXITS:
            y = runtime.received(runtime.payload(x, block), block)
            for exit in range(block + 1, N_EXITS + 1):
                y = runtime.forward(y, exit, exit)
                out[exit, block] = runtime.logits(y, exit)
    return out


def running_tracks(data: ImageSet) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
    """Running track number and frame number within it; spliced tracks are cut in two.

    Raises:
        DataError: if a track has more frames than int16 can number.
    """
    names = data.track_names()
    track = np.zeros(len(data), np.int32)
    frame = np.zeros(len(data), np.int32)
    current, start, previous = -1, 0, ""
    for i, name in enumerate(names):
        cut = SPLICED.get(name) == int(data.frame[i])
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
    prediction = np.empty((len(data), N_ACTIONS), np.int16)
    confidence = np.empty((len(data), N_ACTIONS), np.float32)
    for at in range(0, len(data), batch):
        rows = slice(at, min(at + batch, len(data)))
        logits = action_logits(runtime, data.images[rows])
        for a in ACTIONS:
            key = (a.exit, a.exit if a.is_full_offload else a.split)
            prediction[rows, a.index], confidence[rows, a.index] = runtime.calibrated(
                logits[key], a.exit, a.split
            )
        if progress is not None:
            progress(rows.stop - rows.start)
    track, frame = running_tracks(data)
    config = runtime.bundle.config
    payload = narrowed(
        [config.payload_bytes(a.exit, a.split) for a in ACTIONS], np.int32, "payload bytes"
    )
    return FrameTable(
        label=data.label,
        track=track,
        frame=frame,
        prediction=prediction,
        confidence=np.clip(confidence, 0, 1),
        payload_bytes=np.tile(payload, (len(data), 1)),
        features=all_features(data, frame),
        bundle_hash=runtime.bundle.hash,
        source=source,
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
        strength: of the worst condition, see `cnn.data.conditions.another_drive`.
        seed: of the conditions; drive k takes seed + k.
    """
    if drives == 0:
        return make_table(runtime, data, source, progress=progress)
    days = [data, *(another_drive(data, strength, seed + k) for k in range(1, drives + 1))]
    tables = [make_table(runtime, day, source, progress=progress) for day in days]
    return join_tables(
        tables, f"{source} and {drives} more drives, strength {strength:g}, seed {seed}"
    )
