"""Jetson boards: rails laid out as their developer guides and the kernel's documents say."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.meters.jetson import JetsonMeter, TotalRail, find_rails, total_rail
from testbed.meters.meter import FrameActivity

CHIP = "class/hwmon/hwmon{}"


def chip(sysfs: Any, number: int, *rails: tuple[str, int, int], name: str = "ina3221") -> None:
    """A sensor with rails (label, millivolts, milliamperes) on its channels from 1."""
    files: dict[str, object] = {"name": name}
    for n, (label, voltage_mv, current_ma) in enumerate(rails, start=1):
        values = {f"in{n}_label": label, f"in{n}_input": voltage_mv, f"curr{n}_input": current_ma}
        files.update(values)
    sysfs.write(CHIP.format(number), **files)


def iio_chip(sysfs: Any, address: str, *rails: tuple[str, int], folder: str = "") -> None:
    """A sensor behind the vendor's driver, with rails (label, milliwatts) from channel 0."""
    files = {}
    for n, (label, power_mw) in enumerate(rails):
        files.update({f"rail_name_{n}": label, f"in_power{n}_input": power_mw})
    where = folder or f"bus/i2c/drivers/ina3221x/{address}/iio:device{address[-1]}"
    sysfs.write(where, **files)


def total(sysfs: Any) -> TotalRail:
    found = total_rail(find_rails(sysfs.root))
    assert found is not None
    return found


def test_orin_nx_xavier_nx_the_input_rail_alone(sysfs: Any) -> None:
    sysfs.write(CHIP.format(0), name="tmp451", in1_label="VDD_IN", in1_input=1, curr1_input=1)
    chip(sysfs, 1, ("VDD_IN", 5000, 600), ("VDD_CPU_GPU_CV", 5000, 200), ("VDD_SOC", 5000, 100))
    assert total(sysfs).label == "VDD_IN"
    assert total(sysfs).power_mw() == 3000
    assert total(sysfs).coverage.startswith("module")


def test_agx_orin_the_memory_rail_is_part_of_the_5_v_rail(sysfs: Any) -> None:
    rails = (("VDD_GPU_SOC", 20000, 150), ("VDD_CPU_CV", 20000, 50), ("VIN_SYS_5V0", 5000, 700))
    chip(sysfs, 3, *rails)
    chip(sysfs, 4, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 80), ("NC", 0, 0))
    sysfs.write(CHIP.format(3), in7_label="sum of shunt voltages", in7_input=760, curr4_input=900)
    assert [rail.label for rail in find_rails(sysfs.root)] == [
        "VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO",
    ]  # fmt: skip
    assert total(sysfs).label == "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0"
    assert total(sysfs).power_mw() == 3000 + 1000 + 3500


def test_agx_xavier_all_six_rails(sysfs: Any) -> None:
    chip(sysfs, 1, ("GPU", 19000, 10), ("CPU", 19000, 100), ("SOC", 19000, 50))
    chip(sysfs, 2, ("CV", 19000, 0), ("VDDRQ", 19000, 20), ("SYS5V", 5000, 400))
    assert total(sysfs).power_mw() == 19 * (10 + 100 + 50 + 20) + 2000


def test_agx_thor_the_input_of_the_board(sysfs: Any) -> None:
    chip(
        sysfs, 1, ("VDD_GPU", 20000, 100), ("VDD_CPU_SOC_MSS", 20000, 300), ("VIN_SYS_5V0", 5000, 9)
    )
    chip(sysfs, 5, ("VIN", 19800, 1010), name="ina238")
    sysfs.write(CHIP.format(5), power1_input=20_000_000)  # microwatts
    assert total(sysfs).label == "VIN"
    assert total(sysfs).power_mw() == 20_000
    assert total(sysfs).coverage == "whole board"
    sysfs.write(CHIP.format(5), power1_input=0)
    assert total(sysfs).power_mw() == pytest.approx(19.8 * 1010)


def test_an_input_sensor_without_a_label(sysfs: Any) -> None:
    """As on Thor; with two of them nobody knows which is the input."""
    chip(sysfs, 1, ("VDD_GPU", 20000, 1), ("VDD_CPU_SOC_MSS", 20000, 3), ("VIN_SYS_5V0", 5000, 4))
    files = {"name": "ina238", "in0_input": 4, "in1_input": 20000, "curr1_input": 900}
    sysfs.write(CHIP.format(5), **files, power1_input=18_000_000)
    sysfs.write("bus/i2c/devices/1-0044/hwmon/hwmon5", **files, power1_input=18_000_000)
    assert total(sysfs).label == "VIN"
    assert total(sysfs).power_mw() == 18_000
    sysfs.write(CHIP.format(6), **files)
    assert total(sysfs).label == "VDD_GPU+VDD_CPU_SOC_MSS+VIN_SYS_5V0"


def test_thor_on_a_carrier_without_the_input_sensor(sysfs: Any) -> None:
    chip(sysfs, 1, ("VDD_GPU", 20000, 1), ("VDD_CPU_SOC_MSS", 20000, 3), ("VIN_SYS_5V0", 5000, 4))
    assert total(sysfs).power_mw() == 20 + 60 + 20


def test_a_sensor_that_is_labelled_as_a_whole(sysfs: Any) -> None:
    files = {"name": "ina238", "label": "VIN", "in1_input": 20000, "curr1_input": 500}
    sysfs.write(CHIP.format(2), **files)
    assert total(sysfs).power_mw() == 10_000


def test_nano_on_jetpack_4(sysfs: Any) -> None:
    iio_chip(sysfs, "6-0040", ("POM_5V_IN", 2500), ("POM_5V_GPU", 40), ("POM_5V_CPU", 700))
    assert total(sysfs).label == "POM_5V_IN"
    assert total(sysfs).power_mw() == 2500


def test_tx2_on_jetpack_4_has_several_chips(sysfs: Any) -> None:
    iio_chip(sysfs, "0-0040", ("VDD_SYS_GPU", 100), ("VDD_SYS_SOC", 400), ("VDD_4V0_WIFI", 50))
    iio_chip(sysfs, "0-0041", ("VDD_IN", 2300), ("VDD_SYS_CPU", 200), ("VDD_SYS_DDR", 300))
    iio_chip(sysfs, "0-0042", ("VDD_MUX", 4000), ("VDD_5V0_IO_SYS", 900), ("VDD_3V3_SYS", 100))
    assert total(sysfs).power_mw() == 2300


def test_jetpack_4_without_a_power_file(sysfs: Any) -> None:
    where = "bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    sysfs.write(where, rail_name_0="POM_5V_IN", in_voltage0_input=5000, in_current0_input=500)
    assert total(sysfs).power_mw() == 2500


def test_a_sensor_shown_in_two_places_is_one(sysfs: Any) -> None:
    rails = ("GPU", 100), ("CPU", 200), ("SOC", 300)
    iio_chip(sysfs, "1-0040", *rails)
    iio_chip(sysfs, "1-0040", *rails, folder="bus/iio/devices/iio:device0")
    iio_chip(sysfs, "1-0041", ("CV", 0), ("VDDRQ", 400), ("SYS5V", 500))
    assert total(sysfs).power_mw() == 1500


def test_rails_of_no_known_board_are_no_total(sysfs: Any) -> None:
    chip(sysfs, 1, ("VDD_CPU", 5000, 100), ("VDD_GPU", 5000, 100))
    assert total_rail(find_rails(sysfs.root)) is None
    assert total_rail([]) is None


@pytest.mark.parametrize(
    ("voltage", "current"), [("", 100), (5000, "x"), (0, 0), (5000, 0), (5000, -7)]
)
def test_a_total_that_is_not_measured_is_none(sysfs: Any, voltage: object, current: object) -> None:
    sysfs.write(
        CHIP.format(1), name="ina3221", in1_label="VDD_IN", in1_input=voltage, curr1_input=current
    )
    assert total(sysfs).power_mw() is None
    assert "VDD_IN" in total(sysfs).why_unreadable()


def test_one_rail_that_cannot_be_read_leaves_no_sum(sysfs: Any) -> None:
    chip(sysfs, 1, ("VDD_GPU_SOC", 20000, 1), ("VDD_CPU_CV", 20000, 1), ("VIN_SYS_5V0", 5000, 4))
    (sysfs.root / CHIP.format(1) / "curr2_input").unlink()
    assert total(sysfs).power_mw() is None
    assert total(sysfs).why_unreadable() == "VDD_CPU_CV: curr2_input is missing"


def test_the_meter_names_its_rails(sysfs: Any, second: FrameActivity) -> None:
    chip(sysfs, 1, ("VDD_IN", 5000, 600))
    with JetsonMeter(total(sysfs), interval_s=0.005) as meter:
        meter.begin()
        reading = meter.end(second)
    assert reading.source == "jetson:VDD_IN"
    assert reading.energy_mj is not None
    assert reading.energy_mj > 0
