"""A device that follows other settings from one frame to the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED
from testbed.device.device_loop import Device, DeviceConfig
from testbed.device.frame_sources import CameraFrame, open_frames
from testbed.meters.power import ModelMeter, power_profile
from testbed.policy.observer import Observer
from testbed.policy.policies import StaticPolicy
from testbed.policy.task_settings import Settings

BEFORE = Settings(radio_5g=True, accuracy_floor=0.9, delay_share=0.5, full_local_ms=10)
AFTER = replace(BEFORE, accuracy_floor=0.85)


def meter(name: str) -> ModelMeter:
    return ModelMeter(power_profile(name))


def test_the_frame_in_hand_ends_as_it_began_and_the_next_one_follows(runtime: SplitRuntime) -> None:
    config = DeviceConfig(period_ms=30, timeout_ms=50, max_queue_ms=60_000)
    other = replace(config, period_ms=20, timeout_ms=70)
    observer = Observer(BEFORE)
    unit = Device(
        runtime,
        None,
        StaticPolicy(SHIPPED.action(1, 1)),
        observer,
        meter("jetson-nano+lte"),
        config,
    )
    floors = []

    def frames() -> Iterator[CameraFrame]:
        for number, frame in enumerate(open_frames("render", 48, seed=2, n=12)):
            if number in (4, 8):
                to, settings = (other, AFTER) if number == 4 else (config, BEFORE)
                power = "raspberry-pi-4+lte" if number == 4 else "jetson-nano+lte"
                unit.adopt(to, settings, meter(power))
                assert unit.config != to  # the frame before is still in hand
            yield frame
            floors.append(observer.settings.accuracy_floor)

    rows = list(unit.run(frames()))
    assert floors == [0.9] * 4 + [0.85] * 4 + [0.9] * 4
    sources = [row.energy_source for row in rows]
    assert sources == [f"model:{'raspberry-pi-4' if 4 <= i < 8 else 'jetson-nano'}+lte"
                       for i in range(12)]  # fmt: skip
    steps_ms = 1e3 * np.diff([row.captured_s for row in rows])
    np.testing.assert_allclose(steps_ms, [30] * 4 + [20] * 4 + [30] * 3, atol=1e-6)
    assert observer.accuracy_credit != 0.0  # what it knew of the drive, it still knows
