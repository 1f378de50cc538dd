"""Meters against a fake sysfs and known powers; published profiles against their units."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnn.errors import ConfigError, DataError
from testbed.costs.power import DEVICES, RADIOS, power_profile
from testbed.meters import available, nvml
from testbed.meters.available import find_meters, open_meter
from testbed.meters.base import FrameActivity
from testbed.meters.battery import Battery, find_batteries
from testbed.meters.external_csv import PowerLog, read_power_log, with_external_energy
from testbed.meters.jetson import find_rails, total_rail
from testbed.meters.model import ModelMeter
from testbed.meters.nvml import NvmlMeter
from testbed.meters.rapl import RaplMeter, find_zones
from testbed.meters.sampled import SampledMeter
from testbed.records.measurement import Measurement

IDLE = FrameActivity(0, 1, 0, 0, 0, 0, 0)


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def rapl_tree(root: Path) -> Path:
    """Two packages, one with core and dram, a psys zone and the mmio twin."""
    zones = root / "class" / "powercap"
    write(zones / "intel-rapl", enabled=1)
    package = {"max_energy_range_uj": 1000, "energy_uj": 900}
    write(zones / "intel-rapl:0", name="package-0", **package)
    write(zones / "intel-rapl:0:0", name="core", **package)
    write(zones / "intel-rapl:0:1", name="dram", max_energy_range_uj=5000, energy_uj=10)
    write(zones / "intel-rapl:1", name="psys", **package)
    write(zones / "intel-rapl-mmio:0", name="package-0", **package)
    return zones


def test_rapl_counts_packages_and_dram_once_and_unwraps(tmp_path: Path) -> None:
    zones = rapl_tree(tmp_path)
    found = find_zones(tmp_path)
    assert [zone.name for zone in found] == ["package-0", "dram"]
    meter = RaplMeter(found)
    meter.begin()
    write(zones / "intel-rapl:0", energy_uj=150)  # wrapped at 1000: 250 uJ on
    write(zones / "intel-rapl:0:1", energy_uj=60)
    reading = meter.end(IDLE)
    assert reading.energy_mj == pytest.approx((250 + 50) / 1e3)
    assert reading.source == "rapl:package-0+dram"
    assert (reading.compute_mj, reading.radio_mj, reading.idle_mj) == (None, None, None)


def test_rapl_that_may_not_be_read_is_none(tmp_path: Path) -> None:
    zones = rapl_tree(tmp_path)
    meter = RaplMeter(find_zones(tmp_path))
    meter.begin()
    (zones / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.end(IDLE).energy_mj is None


def jetson_tree(root: Path) -> Path:
    hwmon = root / "class" / "hwmon"
    write(hwmon / "hwmon0", name="tmp451")
    sensor = {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 600}
    write(hwmon / "hwmon1", **sensor, in2_label="VDD_CPU", in2_input=5000, curr2_input=200)
    return hwmon / "hwmon1"


def test_jetson_takes_the_board_rail(tmp_path: Path) -> None:
    sensor = jetson_tree(tmp_path)
    rails = find_rails(tmp_path)
    assert [rail.label for rail in rails] == ["VDD_IN", "VDD_CPU"]
    rail = total_rail(rails)
    assert rail is not None
    assert rail.power_mw() == 3000  # 5 V x 600 mA
    write(sensor, curr1_input="nonsense")
    assert rail.power_mw() is None


def test_a_sampled_meter_integrates_trapezoids() -> None:
    now, power = [10.0], [2000.0]
    meter = SampledMeter(lambda: power[0], "x", interval_s=0, clock=lambda: now[0])
    meter.begin()
    now[0], power[0] = 10.4, 4000.0
    assert meter.end(IDLE).energy_mj == pytest.approx(0.4 * 3000)
    meter.begin()
    now[0] = 10.5
    assert meter.end(IDLE).energy_mj == pytest.approx(0.1 * 4000)


def test_a_sampled_meter_never_guesses() -> None:
    now, power = [0.0], [1000.0]
    values: list[float | None] = [1000.0, None, 1000.0, 1000.0, 1000.0, 1000.0]
    meter = SampledMeter(lambda: values.pop(0), "x", interval_s=0, clock=lambda: now[0])
    meter.begin()
    assert meter.end(IDLE).energy_mj is None  # the sensor failed
    meter.begin()
    now[0] = 5.0
    assert meter.end(IDLE).energy_mj is None  # 5 s without a sample
    meter.begin()
    now[0] = 5.1
    assert meter.end(IDLE).energy_mj == pytest.approx(power[0] * 0.1)


def test_a_sampled_meter_samples_by_itself_until_closed() -> None:
    before = threading.active_count()
    with SampledMeter(lambda: 1000.0, "x", interval_s=0.005) as meter:
        meter.begin()
        began = time.monotonic()
        time.sleep(0.7)  # longer than the largest gap: it must have sampled in between
        energy = meter.end(IDLE).energy_mj
        assert energy == pytest.approx((time.monotonic() - began) * 1000, rel=0.2)
    assert threading.active_count() == before


def test_battery_reads_only_while_discharging(tmp_path: Path) -> None:
    supply = tmp_path / "class" / "power_supply"
    write(supply / "AC", type="Mains", online=0)
    write(supply / "hidpp_battery_0", type="Battery", scope="Device", power_now=1)
    path = write(
        supply / "BAT0",
        type="Battery",
        status="Discharging",
        voltage_now=12_000_000,
        current_now=-500_000,
    )
    assert find_batteries(tmp_path) == [Battery(path)]
    assert Battery(path).power_mw() == pytest.approx(6000)
    write(path, power_now=7_000_000)
    assert Battery(path).power_mw() == pytest.approx(7000)
    write(path, status="Charging")
    assert Battery(path).power_mw() is None


class FakeNvmlError(Exception):
    pass


def fake_nvml(energy_mj: list[float]) -> SimpleNamespace:
    """The three NVML calls that are used, as the binding names them."""

    def read(handle: str) -> float:
        if not energy_mj:
            raise FakeNvmlError
        return energy_mj.pop(0)

    return SimpleNamespace(
        NVMLError=FakeNvmlError,
        nvmlDeviceGetHandleByIndex=lambda index: f"gpu{index}",
        nvmlDeviceGetTotalEnergyConsumption=read,
    )


def test_nvml_counter_and_its_failure() -> None:
    meter = NvmlMeter(fake_nvml([1000, 1250]))
    meter.begin()
    assert meter.end(IDLE).energy_mj == 250
    meter.begin()
    assert meter.end(IDLE).energy_mj is None


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


def test_find_and_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "load_nvml", lambda: None)
    assert not any(info.found for info in find_meters(tmp_path))
    with pytest.raises(ConfigError, match="does not have"):
        open_meter("rapl", "jetson-nano", tmp_path)
    rapl_tree(tmp_path)
    jetson_tree(tmp_path)
    found = {info.name: info for info in find_meters(tmp_path)}
    assert found["rapl"].readable
    assert found["jetson"].readable
    assert not found["battery"].found
    with open_meter("jetson", "jetson-nano", tmp_path) as meter:
        assert meter.source == "jetson:VDD_IN"
    (tmp_path / "class" / "powercap" / "intel-rapl:0" / "energy_uj").unlink()
    assert not {i.name: i for i in find_meters(tmp_path)}["rapl"].readable


def test_nvml_absent_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_module(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(nvml.importlib, "import_module", no_module)
    assert nvml.load_nvml() is None


def row(captured_s: float, queue_ms: float) -> Measurement:
    return Measurement(
        frame_id=0, track=0, frame_in_track=0, label=None, action=1, exit_used=1,
        captured_s=captured_s, queue_ms=queue_ms, head_ms=1.0, encode_ms=None,
        transfer_ms=None, server_queue_ms=None, server_ms=None, fallback_ms=None,
        delay_ms=2.0, uplink_bytes=0, downlink_bytes=0, prediction=1, confidence=0.5,
        correct=None, compute_mj=1.0, radio_mj=0.0, idle_mj=0.0, energy_mj=1.0,
        energy_source="model:x", status="ok", reason="", uplink_mbps=None, rtt_ms=None,
    )  # fmt: skip


def test_external_log_is_aligned_by_time(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    start = 1_000_000.0
    t = np.arange(0, 3, 0.01)
    power_w = 2 + np.sin(t)  # its integral is known
    lines = [f"{start - 5 + s},{5.0},{p / 5}" for s, p in zip(t, power_w, strict=True)]
    path.write_text("time_s,voltage_v,current_a\n" + "\n".join(lines) + "\n")
    log = read_power_log(path, offset_s=5.0)  # the instrument's clock is 5 s behind
    rows = with_external_energy([row(0.5, 0.0), row(1.0, 200.0), row(2.0, 0.0)], start, log)

    def joules(a: float, b: float) -> float:
        return 2 * (b - a) + math.cos(a) - math.cos(b)

    assert rows[0].energy_mj == pytest.approx(joules(0.5, 1.2) * 1e3, rel=1e-3)
    assert rows[1].energy_mj == pytest.approx(joules(1.2, 2.0) * 1e3, rel=1e-3)
    assert rows[2].energy_mj is None  # nobody knows when its window ends
    assert rows[0].compute_mj is None
    assert rows[0].energy_source == "csv:log.csv"


def test_external_log_says_none_outside_and_across_gaps() -> None:
    log = PowerLog(np.array([0.0, 0.5, 1.0, 5.0, 5.5]), np.full(5, 1000.0), "x")
    assert log.energy_mj(0.2, 0.9) == pytest.approx(700)
    assert log.energy_mj(0.9, 1.5) is None
    assert log.energy_mj(-0.1, 0.5) is None
    assert log.energy_mj(5.2, 5.6) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "time_s,power_mw\n",
        "a,b\n1,2\n",
        "time_s,power_mw\n1,x\n2,3\n",
        "time_s,power_mw\n2,1\n1,1\n",
        "time_s,power_mw\n1,nan\n2,1\n",
        "time_s,power_mw\n1\n2\n",
    ],
)
def test_a_broken_log_is_a_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"log\.csv"):
        read_power_log(path)


def test_iso_time_stamps_and_watts(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "timestamp,power_w\n2026-01-01T00:00:00+00:00,1.5\n2026-01-01T00:00:01+00:00,1.5\n"
    )
    log = read_power_log(path)
    assert log.energy_mj(log.time_s[0], log.time_s[1]) == pytest.approx(1500)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.text(alphabet='time_stampower_mw,.0123456789-+:TeE "\n', max_size=200).map(str.encode),
        st.lists(st.tuples(st.floats(), st.floats()), max_size=6).map(
            lambda rows: ("time_s,power_w\n" + "\n".join(f"{a},{b}" for a, b in rows)).encode()
        ),
    )
)
def test_any_bytes_are_a_log_or_a_clear_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(data)
    try:
        log = read_power_log(path)
    except DataError:
        return
    assert np.isfinite(log.power_mw).all()
    assert (np.diff(log.time_s) >= 0).all()
