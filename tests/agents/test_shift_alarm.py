"""False alarms of many devices at once are those of the monitors that a device runs."""

from __future__ import annotations

import numpy as np

from agents.shift_alarm import alarms
from testbed.deploy.loss_monitor import side_by_side


def test_alarms_of_all_devices_are_those_of_their_monitors() -> None:
    rng = np.random.default_rng(0)
    evidence, limits = rng.random((3000, 4, 2)) ** 2, rng.uniform(0.2, 0.4, (4, 2))
    expected = []
    for device, own in enumerate(limits.tolist()):
        monitors = side_by_side(own, 50.0)
        expected.append(0)
        for track in evidence[:, device].tolist():
            heard = [m.add(seen) for m, seen in zip(monitors, track, strict=True)]
            if any(heard):
                expected[-1] += 1
                for monitor in monitors:
                    monitor.reset()
    assert min(expected) > 3
    assert alarms(evidence, limits, 50.0) == sum(expected)
    for device in range(4):
        one = slice(device, device + 1)
        assert alarms(evidence[:, one], limits[one], 50.0) == expected[device]
