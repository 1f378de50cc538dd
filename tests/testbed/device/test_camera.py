"""Frames from OpenCV: a video file in order, a stream at its newest, and what is refused."""

from __future__ import annotations

import struct
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn.bundle import load_bundle
from cnn.common.errors import ConfigError, DataError
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED
from testbed.device.camera import NewestImage, VideoSource, square_rgb
from testbed.device.device_loop import Device, DeviceConfig
from testbed.device.frame_sources import camera_frames, open_frames
from testbed.meters.meter import NoMeter
from testbed.policy.observer import Observer
from testbed.policy.policies import StaticPolicy
from testbed.policy.task_settings import Settings

SHOWN = 10
"""Images in the video file."""


def numbered(k: int, width: int = 96, height: int = 64) -> np.ndarray:
    """A grey image whose halves tell its number (0..99) even after lossy coding."""
    image = np.empty((height, width, 3), np.uint8)
    image[: height // 2], image[height // 2 :] = 20 * (k // 10 % 10) + 20, 20 * (k % 10) + 20
    return image


def number(image: np.ndarray) -> int:
    tens, ones = (image[rows].mean() / 20 - 1 for rows in (slice(2, 20), slice(-20, -2)))
    return 10 * round(float(tens)) + round(float(ones))


@pytest.fixture(scope="module")
def cv2() -> Any:
    return pytest.importorskip("cv2", reason="OpenCV is not installed (extra camera)")


@pytest.fixture(scope="module")
def video(cv2: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "drive.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 20, (96, 64))
    assert writer.isOpened()
    for k in range(SHOWN):
        writer.write(numbered(k))
    writer.release()
    return path


@pytest.fixture
def stream(cv2: Any) -> Iterator[str]:
    """A camera on the network: 50 images a second, as motion JPEG over HTTP."""
    stopping = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=cut")
            self.end_headers()
            k = 0
            while not stopping.wait(0.02):
                data = cv2.imencode(".jpg", numbered(k))[1].tobytes()
                head = f"--cut\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                try:
                    self.wfile.write(head.encode() + data + b"\r\n")
                except OSError:
                    return
                k += 1

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.stop_camera = stopping.set  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/camera.mjpg"
        stopping.set()
        server.shutdown()


def test_a_video_filmed_upright_is_upright(cv2: Any, tmp_path: Path) -> None:
    """The matrix of the track header (ISO 14496-12, 8.3.2) says a quarter turn clockwise."""
    path = tmp_path / "phone.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 20, (96, 64))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no MP4")
    image = np.zeros((64, 96, 3), np.uint8)
    image[:32] = 255  # what is stored above is seen on the right
    for _ in range(3):
        writer.write(image)
    writer.release()
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", data, matrix) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    seen = VideoSource(str(path)).read()
    assert seen is not None
    assert seen.shape == (96, 64, 3)
    assert seen[:, :20].mean() < 20
    assert seen[:, -20:].mean() > 235


def test_a_video_file_comes_whole_and_in_order_and_ends(video: Path) -> None:
    frames = list(open_frames(f"camera:{video}", 48))
    assert [number(f.image) for f in frames] == list(range(SHOWN))
    assert [f.frame_in_track for f in frames] == list(range(SHOWN))
    assert {(f.label, f.track, f.width_px, f.height_px) for f in frames} == {(None, 0, 64, 64)}
    assert all(f.image.shape == (48, 48, 3) and f.image.dtype == np.uint8 for f in frames)
    assert len(list(open_frames(f"camera:{video}", 48, n=3))) == 3


def test_the_centre_square_is_cut_and_turned_to_rgb() -> None:
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 30:70] = (200, 100, 50)  # BGR
    image[:, 30] = 9
    square, side = square_rgb(image, 40)
    assert side == 40
    assert square[20, 20].tolist() == [50, 100, 200]
    assert square[20, 0].tolist() == [9, 9, 9]
    assert (square[:, 1:] == (50, 100, 200)).all()
    assert square_rgb(np.zeros((90, 30, 3), np.uint8), 48)[1] == 30


def test_a_slow_reader_of_a_live_stream_gets_the_newest_image(stream: str) -> None:
    with NewestImage(VideoSource(stream)) as newest:
        last = number(newest.next().image)
        for _ in range(3):
            before = newest.dropped
            time.sleep(0.2)  # about ten come meanwhile
            now = number(newest.next().image)
            assert newest.dropped - before >= 3
            assert (now - last) % 100 == newest.dropped - before + 1
            last = now


def test_the_device_takes_the_image_of_the_moment_of_capture(stream: str) -> None:
    """A frame fetched early and shown late is replaced by a newer one."""
    frames = camera_frames(VideoSource(stream), 48)
    early = next(frames)
    time.sleep(0.2)
    assert early.refresh is not None
    late = early.refresh()
    assert (late.frame_in_track, late.track, late.refresh) == (early.frame_in_track, 0, None)
    assert 3 <= (number(late.image) - number(early.image)) % 100 < 60
    frames.close()


def test_a_device_runs_on_a_live_stream(stream: str) -> None:
    unit = Device(
        SplitRuntime(load_bundle()),
        None,
        StaticPolicy(SHIPPED.action(1, 1)),
        Observer(Settings(True, 0.9, 0.5, 10)),
        NoMeter(),
        DeviceConfig(period_ms=50, max_queue_ms=5000),
    )
    rows = list(unit.run(open_frames(f"camera:{stream}", 48, n=5)))
    assert [row.frame_in_track for row in rows] == list(range(5))
    assert {row.correct for row in rows} == {None}
    assert all(row.prediction is not None for row in rows)


def test_a_stream_that_breaks_off_is_opened_again(video: Path) -> None:
    """A stream that breaks off looks to OpenCV as the end of a file does."""
    with NewestImage(VideoSource(str(video)), reopen_s=(0.1, 0.1)) as newest:
        until = time.monotonic() + 30
        while newest.reopened < 3:
            newest.next()
            assert time.monotonic() < until
        seen = [newest.next() for _ in range(40)]
    assert {view.fault for view in seen} <= {"", "no image"}
    assert number(seen[-1].image) < SHOWN


@pytest.mark.parametrize("name", ["97", "absent.avi", "notes.txt"])
def test_what_cannot_be_opened_is_one_clear_line(cv2: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("no video")
    given = name if name.isdecimal() else str(tmp_path / name)
    with pytest.raises(DataError, match=r"camera source .*; expected a camera's number"):
        next(open_frames(f"camera:{given}", 48))


def test_without_opencv_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"pip install 'sliproad\[camera\]'"):
        next(open_frames("camera:0", 48))
