"""The model meter by hand, the shipped power files against their figures, and a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnn.common.errors import ConfigError
from testbed.meters.available import open_meter
from testbed.meters.meter import FrameActivity
from testbed.meters.power import (
    ModelMeter,
    PowerProfile,
    in_folder,
    names_file,
    power_names,
    power_profile,
)

DEVICES = {"jetson-nano": (2030, 3200), "raspberry-pi-4": (2700, 6400)}
MODEMS = {
    "5g-nsa-lowband": (32.2, 797.0, 0.0, 0.0),
    "5g-nsa-lowband-tail": (32.2, 797.0, 797.0, 10_000),
    "5g-nsa-lowband-rrc": (32.2, 797.0, 797.0, 10_000),
    "lte": (85.4, 484.0, 0.0, 0.0),
    "lte-tail": (85.4, 484.0, 484.0, 10_000),
    "lte-rrc": (85.4, 484.0, 484.0, 10_000),
    "5g-mmwave": (9.15, 3237.0, 0.0, 0.0),
    "5g-mmwave-tail": (9.15, 3237.0, 3237.0, 10_100),
    "lte-2012-tail": (438.39, 1288.04, 1060.0, 11_576),
    "none": (0.0, 0.0, 0.0, 0.0),
}
"""Figures of before they were files; milliwatts, mW per Mbit/s, milliseconds."""
OWN = """\
[device]
idle_mw = 2850
busy_mw = 4600.5
source = "our meter"
"""
MODEM = """
[modem]
tx_mw_per_mbps = 50.0
active_mw = 300
tail_mw = 100
tail_ms = 5000
source = "our other meter"
"""


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
    radio = power_profile("jetson-nano+lte").radio
    rate_mbps, seconds = 7.0, 2.0
    sent_bytes = rate_mbps * 1e6 * seconds / 8
    power_mw = radio.active_mw + radio.tx_mw_per_mbps * rate_mbps
    assert radio.exchange_mj(sent_bytes, seconds * 1e3) == pytest.approx(power_mw * seconds)


def test_the_shipped_files_hold_the_figures_of_before() -> None:
    assert set(power_names()) == {*DEVICES, *MODEMS}
    for name, figures in DEVICES.items():
        device = power_profile(name).device
        assert (device.name, device.idle_mw, device.busy_mw) == (name, *figures)
        assert device.source
        assert device.origin == f"published: {device.source}"
    for name, figures in MODEMS.items():
        radio = power_profile(f"jetson-nano+{name}").radio
        assert radio.name == name
        found = (radio.tx_mw_per_mbps, radio.active_mw, radio.tail_mw, radio.tail_ms)
        assert found == figures
        assert radio.source
        assert (radio.tail_ms > 0) == name.endswith(("-tail", "-rrc"))
        assert radio.promotion_ms == (260 if name.endswith("-rrc") else 0)
    with pytest.raises(ConfigError, match=r"toaster.*lte-2012-tail"):
        power_profile("toaster+lte")


def test_only_a_modem_with_a_tail_connects_again(tmp_path: Path) -> None:
    modem = tmp_path / "modem.toml"
    modem.write_text(MODEM + "promotion_ms = 120\n")
    assert power_profile(f"jetson-nano+{modem}").radio.promotion_ms == 120
    modem.write_text(MODEM.replace("tail_ms = 5000", "tail_ms = 0") + "promotion_ms = 120\n")
    with pytest.raises(ConfigError, match="promotion_ms 120 without a tail"):
        power_profile(f"jetson-nano+{modem}")


def test_a_profile_is_of_names_and_files(tmp_path: Path) -> None:
    own, modem, both = (tmp_path / f"{name}.toml" for name in ("own", "modem", "both"))
    own.write_text(OWN)
    modem.write_text(MODEM)
    both.write_text(OWN + MODEM)
    found = power_profile(f"{own}+lte")
    assert (found.device.idle_mw, found.device.busy_mw) == (2850, 4600.5)
    assert (found.name, found.device.origin) == ("own.toml+lte", "our meter")
    assert power_profile(str(own)).name == "own.toml+none"
    assert power_profile(f"jetson-nano+{modem}").radio.tail_ms == 5000
    assert power_profile(str(both)).name == "both.toml+both.toml"
    assert power_profile(f"{both}+lte").radio == power_profile("jetson-nano+lte").radio
    assert PowerProfile.of_json(found.to_json()) == found
    meter = open_meter("model", f"{own}+{modem}")
    assert isinstance(meter, ModelMeter)
    assert (meter.source, meter.tail_ms) == ("model:own.toml+modem.toml", 5000)


def test_paths_in_a_profile_are_known_and_taken_from_a_folder() -> None:
    assert not names_file("jetson-nano+lte")
    assert names_file("jetson-nano+my.toml")
    assert names_file("pi.json")
    assert in_folder("my.toml+lte", Path("/etc/x")) == "/etc/x/my.toml+lte"
    assert in_folder("jetson-nano+/a/b.toml", Path("/etc")) == "jetson-nano+/a/b.toml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OWN.replace('source = "our meter"\n', ""), r"\[device\] without source"),
        (OWN.replace("our meter", " "), "empty source"),
        (OWN.replace('"our meter"', "7"), "source"),
        (OWN.replace("2850", "-1"), "idle -1"),
        (OWN.replace("2850", "nan"), "idle_mw = nan"),
        (OWN.replace("2850", "5000"), "idle 5000 mW"),
        (OWN + "watts = 3\n", "unknown key 'watts'"),
        (OWN + 'name = "pi"\n', "key 'name'"),
        (OWN + "[server]\nidle_mw = 1\n", "unknown key 'server'"),
        (OWN + MODEM.replace("300", "-300"), "modem"),
        (MODEM, "is no device"),
        ("", r"neither \[device\] nor \[modem\]"),
        ("[device", "expected valid TOML"),
    ],
)
def test_a_bad_power_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        power_profile(str(path))


@pytest.mark.parametrize(
    "profile", ["lte+jetson-nano", "../power/lte", "jetson-nano+", "", "none.toml", "none.json"]
)
def test_what_is_no_profile_is_refused(profile: str) -> None:
    with pytest.raises(ConfigError):
        power_profile(profile)
