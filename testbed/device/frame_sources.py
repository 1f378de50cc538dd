"""Where the device's frames come from: GTSRB, a folder of images, the renderer, a camera, plug-ins.

A source yields `CameraFrame` in driving order. The device decides when a frame is
captured (its frame rate); a source only gives the images.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError, DataError, shown
from cnn.common.plug_ins import Group, PlugIn, plug_in, plug_in_names
from cnn.data.gtsrb import load_tracks, split_part
from cnn.data.image_file import read_image, resize_rgb
from cnn.data.image_folder import class_folder_names, class_tracks, image_tracks
from cnn.data.image_set import PARTS, ImageSet
from cnn.make_frame_table import running_tracks
from testbed.device.camera import (
    NewestImage,
    VideoSource,
    View,
    is_colour_image,
    square_rgb,
    video_images,
)

_log = logging.getLogger(__name__)

SOURCES: Final = "gtsrb:PART (such as gtsrb:policy-test), folder:PATH, render, or camera:0"
FRAME_PLUG_INS: Final = Group(
    "sliproad.frame_sources", "frame source", ("gtsrb", "folder", "render", "camera")
)
_RENDERED_TRACKS: Final = 64
"""Tracks rendered for one pass; a longer run repeats them with new track numbers."""


@dataclass(frozen=True, slots=True)
class CameraFrame:
    """One frame of the camera.

    Attributes:
        image: uint8 (H, W, 3), RGB, resized to the network's input.
        label: true class if known (for scoring only), else None.
        track: running track number of this stream, from 0.
        frame_in_track: number of frames of this track already seen.
        width_px: width of the original crop, pixels.
        height_px: height of the original crop, pixels.
        name: where it comes from, such as ``1/4#7`` or a file name.
        refresh: of a live source: returns the same frame with the newest image. The device calls
            it at the moment of capture.
        fault: of a live source: why its image is not a current view (`testbed.device.camera.View`);
            the device skips such a frame.
        waited_s: of a live source: time spent waiting for the frame.
    """

    image: NDArray[np.uint8]
    label: int | None
    track: int
    frame_in_track: int
    width_px: int
    height_px: int
    name: str
    refresh: Callable[[], CameraFrame] | None = None
    fault: str = ""
    waited_s: float = 0.0


def open_frames(
    source: str,
    size: int,
    *,
    seed: int = 0,
    data: Path | None = None,
    n: int | None = None,
    class_names: Sequence[str] = (),
) -> Iterator[CameraFrame]:
    """Open a source by its name and repeat it until `n` frames have come (None: for ever).

    A video file ends with its last frame. A live camera never ends: while it fails, its frames
    have a fault.

    Args:
        source: one of `SOURCES`, or a plug-in's name, which may have a colon and its setting after
            it.
        size: side of the network's input, pixels.
        seed: of the order of the tracks and of the renderer.
        data: GTSRB folder; None is the folder ``gtsrb`` in ``SLIPROAD_DATA``.
        n: number of frames.
        class_names: of the network, by class. The frames of a folder whose subfolders are all
            named as classes have labels; they are those of `cnn.data.image_folder.class_tracks`,
            in a random order.

    Raises:
        ConfigError: if the source is unknown, or a plug-in fails (later, too).
        DataError: if its files are missing or hold no frames, or a camera is absent at the start.
    """
    kind, _, rest = source.partition(":")
    part = next((p for p in PARTS if p == rest), None)
    if kind == "gtsrb" and part is not None:
        images = split_part(load_tracks(_gtsrb_folder(data), size), part)
        frames = cycled(lambda: gtsrb_frames(images, seed))
    elif kind == "folder" and rest:
        frames = _open_folder(Path(rest), size, seed, class_names)
    elif source == "render":
        frames = cycled(lambda: rendered_frames(size, seed))
    elif kind == "camera" and rest:
        frames = camera_frames(VideoSource(rest), size)
    elif (plugged := plug_in(FRAME_PLUG_INS, kind)) is not None:
        plugged_source = _PluggedSource(
            plugged, plugged.load(), rest, size, seed, tuple(class_names)
        )
        frames = cycled(plugged_source.frames)
    else:
        others = plug_in_names(FRAME_PLUG_INS)
        raise ConfigError(
            f"frame source {source!r}",
            expected=SOURCES + (f", or a plug-in: {', '.join(others)}" if others else ""),
            hint=f"GTSRB parts are {', '.join(PARTS)}",
        )
    return islice(frames, n)


def gtsrb_frames(images: ImageSet, seed: int) -> Iterator[CameraFrame]:
    """The tracks of `images` in a random order, each in driving order, splices cut."""
    track, frame = running_tracks(images)
    names = images.track_names()
    bounds = np.flatnonzero(np.diff(track, prepend=-1, append=len(track)))
    for number, t in enumerate(np.random.default_rng(seed).permutation(len(bounds) - 1)):
        for row in range(int(bounds[t]), int(bounds[t + 1])):
            yield CameraFrame(
                images.images[row],
                int(images.label[row]),
                number,
                int(frame[row]),
                int(images.width_px[row]),
                int(images.height_px[row]),
                f"{names[row]}#{images.frame[row]}",
            )


def folder_frames(folder: Path, size: int) -> Iterator[CameraFrame]:
    """The images of a folder and its subfolders, each of them a track, without labels.

    In natural order (``frame2`` before ``frame10``), each upright.

    Raises:
        DataError: if the folder is missing or holds no images (`image_tracks`), or one of
            them cannot be read (`cnn.data.image_file.read_image`).
    """
    return _track_frames([(None, paths) for paths in image_tracks(folder)], size)


_Tracks = list[tuple[int | None, list[Path]]]
"""The class, if it is known, and the images of each track."""


def _labelled_tracks(folder: Path, class_names: Sequence[str], seed: int) -> _Tracks:
    """The tracks of `class_tracks` in a random order, so that the first are of all classes."""
    number = {name: n for n, name in enumerate(class_names)}
    tracks = class_tracks(folder)
    order = np.random.default_rng(seed).permutation(len(tracks)).tolist()
    return [(number[name], paths) for name, paths in (tracks[at] for at in order)]


def _open_folder(
    folder: Path, size: int, seed: int, class_names: Sequence[str]
) -> Iterator[CameraFrame]:
    """The frames of a folder, for ever; labelled if its subfolders are named as the classes."""
    inside = class_folder_names(folder) if class_names and folder.is_dir() else []
    known = set(class_names)
    other = [name for name in inside if name not in known]
    tracks: _Tracks
    if inside and not other:
        tracks = _labelled_tracks(folder, class_names, seed)
    else:
        tracks = [(None, paths) for paths in image_tracks(folder)]
        if len(other) < len(inside):
            _log.warning("folder %s without labels: %s is no class", folder, shown(other[0]))
    return cycled(lambda: _track_frames(tracks, size))


def _track_frames(tracks: _Tracks, size: int) -> Iterator[CameraFrame]:
    for number, (label, paths) in enumerate(tracks):
        for k, path in enumerate(paths):
            image = read_image(path)
            resized = resize_rgb(image, size)
            name = path.name if label is None else f"{path.parent.name}/{path.name}"
            yield CameraFrame(resized, label, number, k, image.width, image.height, name)


def rendered_frames(size: int, seed: int, tracks: int = _RENDERED_TRACKS) -> Iterator[CameraFrame]:
    """Road signs drawn by `cnn.render.rendered_tracks`, as seen from an approaching car."""
    from cnn.render.rendered_tracks import render_tracks

    for r in render_tracks(tracks, seed, size):
        yield CameraFrame(
            r.image,
            r.label,
            r.track,
            r.frame_in_track,
            r.width_px,
            r.height_px,
            f"render#{r.track}.{r.frame_in_track}",
        )


def camera_frames(source: VideoSource, size: int) -> Generator[CameraFrame, None, None]:
    """The centre square of each image of a camera or video; one track without labels.

    Raises:
        DataError: if a live source gives not one image, or a file holds none.
    """
    if not source.live:
        for number, image in enumerate(video_images(source)):
            yield _camera_frame(source.name, size, number, View(image, ""))
        return
    with NewestImage(source) as newest:
        yield from live_frames(newest, size)


def live_frames(newest: NewestImage, size: int) -> Iterator[CameraFrame]:
    """The centre square of a live source's newest image, for ever; the source is open."""
    for number in count():
        view = newest.next()
        refresh = partial(_refreshed, size, number, newest)
        yield replace(_camera_frame(newest.name, size, number, view), refresh=refresh)


def _refreshed(size: int, number: int, newest: NewestImage) -> CameraFrame:
    return _camera_frame(newest.name, size, number, newest.newest())


def _camera_frame(name: str, size: int, number: int, view: View) -> CameraFrame:
    if view.fault and not is_colour_image(view.image):
        resized, side_px = np.zeros((size, size, 3), np.uint8), size
    else:
        resized, side_px = square_rgb(view.image, size)
    return CameraFrame(
        resized,
        None,
        0,
        number,
        side_px,
        side_px,
        f"camera:{name}#{number}",
        fault=view.fault,
        waited_s=view.waited_s,
    )


@dataclass(frozen=True, slots=True)
class _PluggedSource:
    """A plug-in's frames, each of them checked."""

    plug_in: PlugIn
    make: Callable[..., Iterable[CameraFrame]]
    setting: str
    size: int
    seed: int
    class_names: tuple[str, ...]

    def frames(self) -> Iterator[CameraFrame]:
        """One pass over the source; raises `DataError` if it has no frame."""
        with self.plug_in.calling():
            frames = iter(self.make(self.setting, self.size, self.seed, self.class_names))
        for number in count():
            with self.plug_in.calling():
                frame = next(frames, None)
            if frame is None and number == 0:
                raise DataError(
                    f"{self.plug_in} without a frame",
                    expected="at least one",
                    hint="give another setting after its name and a colon",
                )
            if frame is None:
                return
            yield self._checked(frame)

    def _checked(self, frame: object) -> CameraFrame:
        """The frame itself; of a live one also what it shows when it is captured."""
        with self.plug_in.calling():
            if not isinstance(frame, CameraFrame):
                raise TypeError(f"it gives {type(frame).__name__}, no testbed.CameraFrame")
            shape = (self.size, self.size, 3)
            if frame.image.shape != shape or frame.image.dtype != np.uint8:
                given = f"{frame.image.dtype} {frame.image.shape}"
                raise ValueError(f"an image of type {given}, expected uint8 {shape}")
            classes = len(self.class_names) or None
            if frame.label is not None and frame.label not in range(classes or frame.label + 1):
                raise ValueError(f"label {frame.label}, expected a class from 0 up or none")
            if min(frame.track, frame.frame_in_track, frame.width_px - 1, frame.height_px - 1) < 0:
                raise ValueError(f"a frame whose numbers are below their lowest: {frame.name}")
        if frame.refresh is None:
            return frame
        return replace(frame, refresh=partial(self._refreshed, frame.refresh))

    def _refreshed(self, refresh: Callable[[], CameraFrame]) -> CameraFrame:
        with self.plug_in.calling():
            frame = refresh()
        return self._checked(frame)


def cycled(source: Callable[[], Iterable[CameraFrame]]) -> Iterator[CameraFrame]:
    """Repeat a source for ever; a later round's tracks get new numbers."""
    offset = 0
    while True:
        last = -1
        for frame in source():
            last = frame.track
            yield replace(frame, track=frame.track + offset)
        if last < 0:
            return
        offset += last + 1


def prepared(frames: Iterator[CameraFrame], n: int = 4096) -> Iterator[CameraFrame]:
    """The same frames, the first `n` of them made before the first is handed out.

    Drawing or reading a frame takes milliseconds, a new track tens of milliseconds, and would
    delay a device that is late; a real camera's frame is ready in time. A live source's frames are
    not made before.
    """
    first = list(islice(frames, 1))
    if first and first[0].refresh is None:
        first += islice(frames, n - 1)
    return chain(first, frames)


def _gtsrb_folder(given: Path | None) -> Path:
    if given is not None:
        return given
    root = os.environ.get("SLIPROAD_DATA")
    if not root:
        raise DataError(
            "no data folder given",
            expected="a GTSRB folder for the source gtsrb:PART",
            hint="set SLIPROAD_DATA, give --data, or use --frames render",
        )
    return Path(root) / "gtsrb"
