"""Cameras that end, hang, freeze, show nothing or something else, and come back."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from cnn.bundle import Bundle
from cnn.common.errors import DataError
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED
from testbed.device.camera import MAX_HUNG, NewestImage, View
from testbed.device.device_loop import Device, DeviceConfig
from testbed.device.frame_sources import CameraFrame, live_frames
from testbed.meters.meter import NoMeter
from testbed.policy.observer import Observer
from testbed.policy.policies import StaticPolicy
from testbed.policy.task_settings import Settings
from testbed.records.measurement import Measurement
from testbed.records.run_summary import reason_kind

pytestmark = pytest.mark.slow(13)

PATIENCE_S = 0.3


class Fake:
    """A camera of 100 images a second that does as it is told: the driver's boundary."""

    name = "fake"

    def __init__(self) -> None:
        self.mode = "fine"
        self.opened = self.closed = 0
        self.reading = 0
        self.ended = threading.Event()
        self._numbers = itertools.count(1)

    def open(self, name: str = "fake") -> Fake:
        if self.mode == "absent":
            raise DataError("camera source 'fake'", expected="a camera", hint="plug it in")
        self.opened += 1
        return self

    def read(self) -> np.ndarray | None:
        self.reading += 1
        try:
            return self._read()
        finally:
            self.reading -= 1

    def _read(self) -> np.ndarray | None:
        time.sleep(0.01)
        if self.mode == "hangs":
            self.ended.wait(60)
            return None
        if self.mode in ("ends", "absent"):
            return None
        image = np.full((40, 60, 3), 90, np.uint8)
        image[0, 0] = next(self._numbers) % 200 if self.mode != "frozen" else 77
        others = {
            "black": np.zeros((40, 60, 3), np.uint8),
            "dark with noise": np.where(image == 90, 0, image % 7).astype(np.uint8),
            "grey": image[..., 0],
            "16 bits": image.astype(np.uint16),
            "no pixels": image[:0],
        }
        return others.get(self.mode, image)

    def close(self) -> None:
        self.closed += 1


@contextmanager
def live(fake: Fake) -> Iterator[NewestImage]:
    with NewestImage(fake.open(), PATIENCE_S, fake.open, (0.02, 0.1)) as newest:
        yield newest
        fake.ended.set()


def until(newest: NewestImage, is_so: Callable[[View], bool]) -> View:
    """Take images until one is as wanted."""
    end_s = time.monotonic() + 30
    while not is_so(view := newest.next()):
        assert time.monotonic() < end_s
    return view


FAULTS = {
    "ends": "no image",
    "absent": "no image",
    "hangs": "no image",
    "frozen": "frozen",
    "black": "black",
    "dark with noise": "black",
    "grey": "no colour image",
    "16 bits": "no colour image",
    "no pixels": "no colour image",
}


@pytest.mark.parametrize("mode", FAULTS)
def test_a_fault_is_told_and_ends_with_it(mode: str) -> None:
    fake = Fake()
    with live(fake) as newest:
        assert newest.next().fault == ""
        fake.mode = mode
        bad = until(newest, lambda view: view.fault != "")
        assert bad.fault == FAULTS[mode]
        assert bad.image.shape == (40, 60, 3)
        for _ in range(3):
            assert newest.next().fault in ("", FAULTS[mode], "no image")
        fake.mode = "fine"
        fake.ended.set()
        assert until(newest, lambda view: view.fault == "").image[1, 1, 0] == 90


@pytest.mark.parametrize("mode", ["ends", "hangs", "frozen", "black", "grey"])
def test_a_broken_source_is_opened_again_and_the_old_one_let_go(mode: str) -> None:
    fake = Fake()
    with live(fake) as newest:
        newest.next()
        fake.mode = mode
        until(newest, lambda _: newest.reopened >= 2)
        fake.mode = "fine"
        fake.ended.set()
        until(newest, lambda view: view.fault == "")
        until(newest, lambda _: fake.reading <= 1)
    assert fake.closed == fake.opened or mode == "hangs"


def test_a_driver_that_hangs_for_ever_holds_few_threads_and_no_device() -> None:
    fake = Fake()
    before = threading.active_count()
    with live(fake) as newest:
        newest.next()
        fake.mode = "hangs"
        until(newest, lambda _: fake.reading > MAX_HUNG)
        for _ in range(40):
            assert newest.next().fault == "no image"
        assert fake.reading == MAX_HUNG + 1
        assert threading.active_count() <= before + MAX_HUNG + 1
        fake.mode = "fine"
        fake.ended.set()
        until(newest, lambda view: view.fault == "")


def test_a_camera_that_never_gives_an_image_is_an_error_at_the_start() -> None:
    fake = Fake()
    fake.mode = "hangs"
    with live(fake) as newest, pytest.raises(DataError, match=r"gave no image.*check the cable"):
        newest.next()


def test_the_device_skips_what_it_cannot_see_and_goes_on(
    runtime: SplitRuntime, bundle: Bundle
) -> None:
    fake = Fake()
    modes = {10: "ends", 30: "fine", 50: "black", 60: "fine"}

    def drive(frames: Iterator[CameraFrame]) -> Iterator[CameraFrame]:
        for k, frame in enumerate(frames):
            fake.mode = modes.get(k, fake.mode)
            yield frame

    unit = Device(
        runtime,
        None,
        StaticPolicy(SHIPPED.action(1, 1)),
        Observer(Settings(True, 0.9, 0.5, 10)),
        NoMeter(),
        DeviceConfig(period_ms=30, max_queue_ms=300),
    )
    rows: list[Measurement] = []
    with live(fake) as newest:
        frames = live_frames(newest, bundle.config.input_size)
        rows = list(unit.run(drive(itertools.islice(frames, 80))))
    assert len(rows) == 80
    assert {reason_kind(row) for row in rows} >= {"", "camera: no image", "camera: black"}
    for row in rows:
        assert (row.status == "skipped") == (row.prediction is None)
        assert row.reason.startswith(("camera: ", "queued ")) == (row.status == "skipped")
    assert rows[-1].status == "ok"


def test_a_camera_slower_than_the_device_makes_no_queue(
    runtime: SplitRuntime, bundle: Bundle
) -> None:
    """10 ms between frames, 40 ms between images: a frame waits for the camera, not for itself."""

    class Slow(Fake):
        def _read(self) -> np.ndarray | None:
            time.sleep(0.03)
            return super()._read()

    unit = Device(
        runtime,
        None,
        StaticPolicy(SHIPPED.action(1, 1)),
        Observer(Settings(True, 0.9, 0.5, 10)),
        NoMeter(),
        DeviceConfig(period_ms=10, max_queue_ms=10_000),
    )
    fake = Slow()
    with live(fake) as newest:
        rows = list(unit.run(itertools.islice(live_frames(newest, bundle.config.input_size), 40)))
    lag_ms = sum(row.queue_ms for row in rows[-10:]) / 10
    assert lag_ms < 30 * 40 / 2  # 30 ms each would have added up to 1200
