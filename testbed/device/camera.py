"""A camera or a video through OpenCV, for the device's frame source ``camera:``.

A live source (a camera by its number, a stream by its address) is read by a thread of its own,
which keeps the newest image and drops those that were not taken: a busy device must not process a
backlog of old views. A live source that ends, hangs, freezes or does not give images is opened
again until it gives images. Until then its images do not count as a view of the road. A video file
is not a live source: its images come one after the other, none dropped, so that a run can be
repeated.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnn.common.errors import ConfigError, DataError
from cnn.data.image_file import resize_rgb

IMAGE_TIMEOUT_S: Final = 5.0
"""A live source that gives no new image for this long counts as gone. So does a source whose images
are exactly equal for this long: no sensor gives equal images."""
REOPEN_S: Final = (0.5, 10.0)
"""Pause before a source that failed is opened again: the first, and the longest; each doubles."""
MAX_HUNG: Final = 3
"""Maximum number of reading threads that hang in a driver; after that the source is abandoned."""
BLACK: Final = 8
"""An image whose values (of 255) are all at or below this counts as black."""
_POLL_S: Final = 0.05
"""Time that a device waits for an image of a camera that is known to fail."""
_EVERY: Final = 16
"""Step between the rows and columns that are compared first."""

_log = logging.getLogger(__name__)


def import_opencv() -> Any:
    """The module ``cv2``; without it a `ConfigError` says how to install it."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")  # we report an absent camera ourselves
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise ConfigError(
            f"OpenCV cannot be imported ({error})",
            expected="the Python package cv2 for frames from a camera or a video",
            hint="pip install 'sliproad[camera]', or use another frame source",
        ) from error


class VideoSource:
    """An open camera, stream or video file.

    Args:
        name: a camera's number (``0``), an address (``rtsp://...``), or a file's path.

    Attributes:
        live: True unless it is a file.

    Raises:
        ConfigError: without OpenCV.
        DataError: if it cannot be opened.
    """

    def __init__(self, name: str) -> None:
        cv2 = import_opencv()
        self.name = name
        self.live = name.isdecimal() or "://" in name
        if not self.live and not Path(name).is_file():
            raise _unusable(name, "there is no such file")
        self._capture = cv2.VideoCapture(int(name) if name.isdecimal() else name)
        if not self._capture.isOpened():
            raise _unusable(name, "OpenCV cannot open it")
        # A phone states the rotation of its video; images come upright.
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        if name.isdecimal():
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def read(self) -> NDArray[np.uint8] | None:
        """The next image, uint8 (H, W, 3) in OpenCV's order BGR; None at the end or if it fails."""
        try:
            ok, image = self._capture.read()
        except Exception:  # OpenCV's own class, which is not imported for this
            return None
        return image if ok else None

    def close(self) -> None:
        """Release the camera or file."""
        self._capture.release()


class ImageSource(Protocol):
    """An open camera: the part of `VideoSource` that a live source needs."""

    name: str

    def read(self) -> NDArray[np.uint8] | None:
        """The next image, uint8 (H, W, 3), BGR; None at the end or if it fails."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


class View(NamedTuple):
    """The current view of a live source.

    Attributes:
        image: uint8 (H, W, 3), BGR.
        fault: why it is not current (``no image``, ``frozen``, ``black``, ``no colour image``);
            empty if it is.
        waited_s: time spent waiting for it.
    """

    image: NDArray[np.uint8]
    fault: str
    waited_s: float = 0.0


class NewestImage:
    """The newest image of a live source, read by a thread while the context is open.

    Args:
        source: closed together with this object.
        timeout_s: longest wait for a new image.
        reopen: opens the source again by its name; raises `DataError` if that fails.
        reopen_s: pause before that: the first, and the longest.

    Attributes:
        dropped: images that were not taken.
        reopened: how often it was opened again, with success or without.
    """

    def __init__(
        self,
        source: ImageSource,
        timeout_s: float = IMAGE_TIMEOUT_S,
        reopen: Callable[[str], ImageSource] = VideoSource,
        reopen_s: tuple[float, float] = REOPEN_S,
    ) -> None:
        self.name = source.name
        self.dropped = self.reopened = 0
        self._timeout_s, self._reopen, self._reopen_s = timeout_s, reopen, reopen_s
        self._view: View | None = None
        self._count = self._taken = 0
        self._news = threading.Condition()  # re-entrant: `next` calls `newest`
        self._closing = threading.Event()
        self._watch = _Watch(timeout_s)
        self._pause_s = reopen_s[0]
        self._hung: list[threading.Thread] = []
        self._read_s = time.monotonic()
        self._said = ""
        self._lost = False
        self._thread = self._reader(source)

    def newest(self) -> View:
        """The newest image, without waiting, taken or not; it exists after the first `next`."""
        with self._news:
            if self._count > self._taken:
                self.dropped += self._count - self._taken - 1
                self._taken = self._count
            assert self._view is not None
            return self._view

    def next(self) -> View:
        """The newest image that was not taken yet; waits for it if necessary.

        A source that ended, or gives no image for `timeout_s`, returns the last image with the
        fault ``no image``, repeatedly and almost without waiting, until it gives images again.

        Raises:
            DataError: if it never gave one: it is not a camera, or not the right one.
        """
        began_s = time.monotonic()
        with self._news:
            shown = self._view is not None
            if shown and not self._lost:
                self._news.wait_for(
                    lambda: self._count > self._taken or self._lost, self._timeout_s
                )
            else:
                limit_s = _POLL_S if shown else self._timeout_s
                self._news.wait_for(lambda: self._count > self._taken, limit_s)
            waited_s = time.monotonic() - began_s
            if self._count > self._taken:
                return self.newest()._replace(waited_s=waited_s)
            if self._view is None:
                raise DataError(
                    f"camera {self.name} gave no image for {self._timeout_s:g} s",
                    expected="a source that goes on giving images",
                    hint="check the cable, the address, and that no other program uses it",
                )
            self._lost = True
            self._view = self._view._replace(fault="no image")
            self._say("no image")
            self._replace_hung()
            return self._view._replace(waited_s=waited_s)

    def __enter__(self) -> NewestImage:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join(self._timeout_s)  # a hung driver must not hang the device

    def _reader(self, source: ImageSource | None) -> threading.Thread:
        return threading.Thread(target=self._run, args=(source,), name="camera", daemon=True)

    def _replace_hung(self) -> None:
        """Let another thread open the source if the reading thread has hung for long.

        The hung thread closes its source if its driver ever returns.
        """
        self._hung = [thread for thread in self._hung if thread.is_alive()]
        if time.monotonic() - self._read_s < self._timeout_s or len(self._hung) >= MAX_HUNG:
            return
        self._hung.append(self._thread)
        self._thread = self._reader(None)
        self._read_s = time.monotonic()
        self._thread.start()

    def _mine(self) -> bool:
        return not self._closing.is_set() and threading.current_thread() is self._thread

    def _run(self, source: ImageSource | None) -> None:
        """Read images, opening the source again if it fails, until closed or replaced."""
        while self._mine():
            if source is None:
                source = self._again()
                continue
            image = source.read()
            if not self._mine():
                break
            self._read_s = time.monotonic()
            fault, is_broken = self._watch.judge(image, self._read_s)
            if image is not None:
                self._show(image, fault)
            if is_broken:
                source.close()
                source = None
                with self._news:
                    self._lost = True
                    self._news.notify_all()
        if source is not None:
            source.close()

    def _show(self, image: NDArray[np.uint8], fault: str) -> None:
        with self._news:
            if fault == "no colour image" and self._view is not None:
                image = self._view.image  # this image is not usable
            self._view = View(image, fault)
            self._count += 1
            self._lost = False
            if not fault:
                self._pause_s = self._reopen_s[0]
            self._say(fault)
            self._news.notify_all()

    def _again(self) -> ImageSource | None:
        """Wait, then open the source; None if that fails."""
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, self._reopen_s[1])
        until_s = time.monotonic() + pause_s
        while (left_s := until_s - time.monotonic()) > 0:
            self._read_s = time.monotonic()  # waiting is not hanging
            if self._closing.wait(min(left_s, 1.0)):
                return None
        self.reopened += 1
        try:
            source = self._reopen(self.name)
        except DataError:
            return None
        self._watch.opened(time.monotonic())
        return source

    def _say(self, fault: str) -> None:
        """Log one line when it begins to fail, and one when it works again."""
        if fault != self._said:
            _log.warning("camera %s: %s", self.name, fault or "works again")
            self._said = fault


class _Watch:
    """Tells a current view from the images of a failing camera.

    Args:
        timeout_s: time with equal or no images after which the camera counts as broken.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._last: NDArray[np.uint8] | None = None
        self._moved_s = self._fine_s = time.monotonic()

    def opened(self, now_s: float) -> None:
        """The source was opened again: it gets time to start."""
        self._fine_s = now_s

    def judge(self, image: NDArray[np.uint8] | None, now_s: float) -> tuple[str, bool]:
        """The fault of an image, and whether to open the source again."""
        if image is None:
            return "no image", True
        if not is_colour_image(image):
            return "no colour image", now_s - self._fine_s > self._timeout_s
        if self._last is None or not _equal(image, self._last):
            self._last, self._moved_s = image, now_s
        fault = ""
        if int(image[::_EVERY, ::_EVERY].max()) < BLACK and int(image.max()) < BLACK:
            fault = "black"
        elif now_s - self._moved_s > self._timeout_s:
            fault = "frozen"
        if not fault:
            self._fine_s = now_s
        return fault, now_s - max(self._fine_s, self._moved_s) > self._timeout_s


def _equal(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether two images are the same; mostly decided from few of their rows and columns."""
    if one.shape != other.shape:
        return False
    some = (slice(None, None, _EVERY), slice(None, None, _EVERY))
    return np.array_equal(one[some], other[some]) and np.array_equal(one, other)


def is_colour_image(image: NDArray[np.uint8]) -> bool:
    """Whether this is uint8 (H, W, 3) with at least one pixel."""
    return image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size > 0


def square_rgb(image: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], int]:
    """Centre square of a BGR image, in the form that the network takes.

    Args:
        image: uint8 (H, W, 3), BGR.
        size: side of the network's input, pixels.

    Returns:
        uint8 (size, size, 3) RGB, and the side of the square that was cut out, pixels.

    Raises:
        DataError: if it is not such an image, for example raw or 16-bit pixels.
    """
    if not is_colour_image(image):
        shape = " x ".join(str(n) for n in image.shape)
        raise DataError(
            f"camera image of {shape} numbers, {image.dtype}",
            expected="height x width x 3 numbers, uint8",
            hint="set the camera to 8-bit colour",
        )
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(image[top : top + side, left : left + side, ::-1])
    return resize_rgb(Image.fromarray(square), size), side


def video_images(source: VideoSource) -> Iterator[NDArray[np.uint8]]:
    """All images of a file in order, BGR; the file is closed at its end.

    Raises:
        DataError: if there is not a single one.
    """
    try:
        image = source.read()
        if image is None:
            raise _unusable(source.name, "it holds no images")
        while image is not None:
            yield image
            image = source.read()
    finally:
        source.close()


def _unusable(name: str, why: str) -> DataError:
    return DataError(
        f"camera source {name!r}: {why}",
        expected="a camera's number, the address of a stream, or a video file",
        hint="try camera:0, or check the path",
    )
