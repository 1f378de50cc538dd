"""What an emulated slow device repeats to keep warm: whole frames that nobody sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.action import N_EXITS, Action
from cnn.frame_codec import FrameCodec
from cnn.runtime import SplitRuntime
from testbed.decide.observation import Observer, Settings
from testbed.decide.policy import StaticPolicy
from testbed.device.device import Device, DeviceConfig
from testbed.device.frames import CameraFrame
from testbed.meters.base import NoMeter
from testbed.wire.client import Reply

_ANSWER: Final = Reply(
    prediction=0,
    confidence=1.0,
    server_queue_ms=0.0,
    server_ms=1.0,
    server_wait_ms=0.0,
    queue_length=0,
    uplink_bytes=0,
    message_bytes=0,
    downlink_bytes=0,
    transfer_ms=1.0,
    total_ms=2.0,
)


class _Instant:
    """A connection whose answers are there at once, and mean nothing."""

    def infer(
        self,
        payload: NDArray[np.uint8],
        exit: int,
        split: int,
        timeout_ms: float,
        encoding: FrameCodec = "raw",
    ) -> Reply:
        return _ANSWER

    def probe(self, timeout_ms: float, padding_bytes: int = 0) -> float:
        return 1.0


def rehearsals(runtime: SplitRuntime) -> dict[str, Callable[[], None]]:
    """Frames without effect on anything, by name: full local processing, full offloading.

    They run the very code that a real frame runs, with a device, an observer and a
    connection of their own.

    Args:
        runtime: the network of the device to be kept warm.
    """
    device = Device(
        runtime,
        _Instant(),
        StaticPolicy(Action(N_EXITS, N_EXITS)),
        Observer(Settings(True, 0.9, 0.5, 10.0)),
        NoMeter(),
        DeviceConfig(period_ms=0),
    )
    size = runtime.bundle.config.input_size
    image = np.zeros((size, size, 3), np.uint8)
    frame = CameraFrame(image, None, 0, 0, size, size, "rehearsal")

    def rehearse(action: Action) -> Callable[[], None]:
        def run() -> None:
            device.receive(frame)
            device.process(action.index)

        return run

    return {
        "rehearse local": rehearse(Action(N_EXITS, N_EXITS)),
        "rehearse sending": rehearse(Action(N_EXITS, 0)),
    }
