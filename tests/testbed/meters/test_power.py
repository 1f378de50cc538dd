"""The model meter by hand, and the published profiles against their units."""

from __future__ import annotations

import pytest

from cnn.common.errors import ConfigError
from testbed.meters.meter import FrameActivity
from testbed.meters.power import DEVICES, RADIOS, ModelMeter, power_profile


def test_model_meter_by_hand() -> None:
    meter = ModelMeter(power_profile("jetson-nano+5g-nsa-lowband-tail"))
    reading = meter.end(
        FrameActivity(0, 1, compute_ms=10, wait_ms=50, exchange_ms=50, sent_bytes=1000, tail_ms=40)
    )
    assert reading.compute_mj == pytest.approx(3200 * 0.010)
    assert reading.idle_mj == pytest.approx(2030 * 0.050)
    # 32.2 mW per Mbit/s is 32.2 nJ/bit; the intercept less the screen-on baseline is 797 mW.
    assert reading.radio_mj == pytest.approx(797 * 0.090 + 32.2e-6 * 8000)
    assert reading.energy_mj == pytest.approx(
        reading.compute_mj + reading.idle_mj + reading.radio_mj
    )
    assert meter.tail_ms == 10_000


def test_a_slope_in_mw_per_mbps_is_an_energy_per_bit() -> None:
    radio = RADIOS["lte"]
    rate_mbps, seconds = 7.0, 2.0
    sent_bytes = rate_mbps * 1e6 * seconds / 8
    power_mw = radio.active_mw + radio.tx_mw_per_mbps * rate_mbps
    assert radio.exchange_mj(sent_bytes, seconds * 1e3) == pytest.approx(power_mw * seconds)


def test_every_profile_states_its_source_and_makes_sense() -> None:
    for device in DEVICES.values():
        assert device.source
        assert 0 < device.idle_mw < device.busy_mw
    for radio in RADIOS.values():
        assert radio.source
        assert (radio.tail_ms > 0) == radio.name.endswith("-tail")
        assert radio.tail_mw <= radio.active_mw
    with pytest.raises(ConfigError, match="toaster"):
        power_profile("toaster+lte")
