"""Whether a device is as fast as the one that its policy was trained for."""

from __future__ import annotations

import pytest

from testbed.device.processor import speed_note


@pytest.mark.parametrize(
    ("measured_ms", "told_ms", "said"),
    [
        (8.0, 80.0, "10 times faster than the 80 ms"),
        (160.0, 80.0, "2 times slower than the 80 ms"),
        (100.0, 80.0, None),
        (60.0, 80.0, None),
        (None, 80.0, None),
        (8.0, None, None),
    ],
)
def test_another_speed_is_said(
    measured_ms: float | None, told_ms: float | None, said: str | None
) -> None:
    note = speed_note(measured_ms, told_ms)
    assert (note is None) if said is None else (note is not None and said in note)
