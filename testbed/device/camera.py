"""A camera or a video through OpenCV, for the device's frame source ``camera:``.

A live source (a camera by its number, a stream by its address) is read by a thread of its own,
which keeps the newest image and drops those that nobody took: a device that was busy must not
work off a backlog of old views. A video file is no live source: its images come one after the
other, none dropped, so that a run can be repeated.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnn.errors import ConfigError, DataError
from cnn.preprocess import resize_rgb

PATIENCE_S: Final = 5.0
"""A live source that gives no new image for this long counts as gone."""


def import_opencv() -> Any:
    """The module ``cv2``; `ConfigError` says how to install it."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")  # an absent camera is our line to say
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise ConfigError(
            f"OpenCV cannot be imported ({error})",
            expected="the Python package cv2 for frames from a camera or a video",
            mend="pip install 'sliproad[camera]', or use another frame source",
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
        # A phone films lying on its side and says so; images come as a person sees them.
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        if name.isdecimal():
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def read(self) -> NDArray[np.uint8] | None:
        """The next image, uint8 (H, W, 3) in OpenCV's order BGR; None at the end."""
        ok, image = self._capture.read()
        return image if ok else None

    def close(self) -> None:
        """Let go of the camera or file."""
        self._capture.release()


class NewestImage:
    """The newest image of a live source, read by a thread while the context is open.

    Args:
        source: closed together with this object.
        patience_s: longest wait for a new image.

    Attributes:
        dropped: images that nobody took.
    """

    def __init__(self, source: VideoSource, patience_s: float = PATIENCE_S) -> None:
        self.source = source
        self.dropped = 0
        self._patience_s = patience_s
        self._image: NDArray[np.uint8] | None = None
        self._count = self._taken = 0
        self._ended = self._closing = False
        self._news = threading.Condition()  # re-entrant: `next` calls `newest`
        self._thread = threading.Thread(target=self._read, name="camera", daemon=True)

    def newest(self) -> NDArray[np.uint8]:
        """The newest image, at once, taken or not; there is one after the first `next`."""
        with self._news:
            if self._count > self._taken:
                self.dropped += self._count - self._taken - 1
                self._taken = self._count
            assert self._image is not None
            return self._image

    def next(self) -> NDArray[np.uint8]:
        """The newest image that was not taken yet, waited for if need be.

        Raises:
            DataError: if the source ended or gave nothing new for `patience_s`.
        """
        with self._news:
            self._news.wait_for(lambda: self._count > self._taken or self._ended, self._patience_s)
            if self._count > self._taken:
                return self.newest()
            what = "ended" if self._ended else f"gave no image for {self._patience_s:g} s"
        raise DataError(
            f"camera {self.source.name} {what}",
            expected="a source that goes on giving images",
            mend="check the cable, the address, and that no other program uses it",
        )

    def __enter__(self) -> NewestImage:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing = True
        self._thread.join(self._patience_s)  # a hung driver must not hang the device
        if not self._thread.is_alive():
            self.source.close()

    def _read(self) -> None:
        while not self._closing:
            image = self.source.read()
            with self._news:
                if image is None:
                    self._ended = True
                else:
                    self._image = image
                    self._count += 1
                self._news.notify_all()
            if image is None:
                return


def square_rgb(image: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], int]:
    """Centre square of a BGR image, as the network takes it.

    Args:
        image: uint8 (H, W, 3), BGR.
        size: side of the network's input, pixels.

    Returns:
        uint8 (size, size, 3) RGB, and the side of the square that was cut out, pixels.

    Raises:
        DataError: if it is no such image, as of a camera that gives raw or 16-bit pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        shape = " x ".join(str(n) for n in image.shape)
        raise DataError(
            f"camera image of {shape} numbers, {image.dtype}",
            expected="height x width x 3 numbers, uint8",
            mend="set the camera to 8-bit colour",
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
        mend="try camera:0, or check the path",
    )
