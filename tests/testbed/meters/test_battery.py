"""Batteries as `Documentation/ABI/testing/sysfs-class-power` lays them out."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.meters.battery import (
    STALE_S,
    Batteries,
    Battery,
    BatteryMeter,
    find_batteries,
    find_mains,
)
from testbed.meters.meter import FrameActivity

SUPPLY = "class/power_supply"


def battery(sysfs: Any, name: str = "BAT0", **files: object) -> Battery:
    return Battery(
        sysfs.write(f"{SUPPLY}/{name}", **{"type": "Battery", "status": "Discharging", **files})
    )


def batteries(sysfs: Any) -> Batteries:
    return Batteries(tuple(find_batteries(sysfs.root)), find_mains(sysfs.root))


def test_what_feeds_the_system_counts(sysfs: Any) -> None:
    sysfs.write(f"{SUPPLY}/AC", type="Mains", online=0)
    sysfs.write(f"{SUPPLY}/ups", type="UPS", status="Discharging")
    battery(sysfs, "hidpp_battery_0", scope="Device", power_now=1)
    battery(sysfs, "BAT1", present=0)
    mine = battery(sysfs, "BAT0", present=1)
    assert find_batteries(sysfs.root) == [mine]
    assert [path.name for path in find_mains(sysfs.root)] == ["AC"]


@pytest.mark.parametrize(
    ("files", "power_mw"),
    [
        ({"power_now": 7_000_000}, 7000),
        ({"power_now": -7_000_000}, 7000),
        ({"voltage_now": 12_000_000, "current_now": 500_000}, 6000),
        ({"voltage_now": 12_000_000, "current_now": -500_000}, 6000),
        ({"power_now": 0, "voltage_now": 12_000_000, "current_now": 500_000}, 6000),
        ({"power_now": "", "voltage_now": 12_000_000, "current_now": 500_000}, 6000),
        ({"power_now": 65_535_000, "voltage_now": 12_000_000, "current_now": 500_000}, 6000),
        ({"power_now": 0}, None),
        ({"power_now": 0, "voltage_now": 12_000_000, "current_now": 0}, None),
        ({"power_now": 0, "voltage_now": 0, "current_now": 500_000}, None),
        ({"voltage_now": 12_000_000, "current_now": 65_535_000}, None),
        ({"voltage_now": 12_000, "current_now": 500}, None),  # a driver in thousandths
        ({"power_now": 4_294_967_295_000}, None),
        ({"voltage_now": 12_000_000}, None),
        ({}, None),
    ],
)
def test_discharge_power(sysfs: Any, files: dict[str, object], power_mw: float | None) -> None:
    assert battery(sysfs, **files).power_mw() == power_mw


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown", ""])
def test_no_power_unless_it_discharges(sysfs: Any, status: str) -> None:
    assert battery(sysfs, power_now=7_000_000, status=status).power_mw() is None
    assert batteries(sysfs).power_mw() is None
    assert batteries(sysfs).why_unreadable()


@pytest.mark.parametrize(
    ("other", "power_mw"),
    [
        ({"power_now": 4_000_000}, 11_000),
        ({"power_now": 4_000_000, "status": "Full"}, 7000),
        ({"power_now": 0, "status": "Unknown"}, 7000),
        ({"power_now": 4_000_000, "status": "Charging"}, None),
        ({"power_now": 0}, None),
    ],
)
def test_two_batteries(sysfs: Any, other: dict[str, object], power_mw: float | None) -> None:
    battery(sysfs, "BAT0", power_now=7_000_000)
    battery(sysfs, "BAT1", **other)
    assert batteries(sysfs).power_mw() == power_mw
    assert bool(batteries(sysfs).why_unreadable()) == (power_mw is None)


@pytest.mark.parametrize("kind", ["Mains", "USB", "Wireless"])
def test_a_battery_that_helps_the_mains_is_not_all_that_is_spent(sysfs: Any, kind: str) -> None:
    battery(sysfs, power_now=7_000_000)
    sysfs.write(f"{SUPPLY}/AC", type=kind, online=1)
    assert batteries(sysfs).power_mw() is None
    assert "on mains" in batteries(sysfs).why_unreadable()


def test_a_gauge_that_stands_still_measures_nothing(sysfs: Any, second: FrameActivity) -> None:
    battery(sysfs, power_now=7_000_000, voltage_now=12_000_000)
    now = [0.0]
    meter = BatteryMeter(batteries(sysfs), interval_s=0, clock=lambda: now[0])
    energies = []
    for now_s, voltage_uv in (
        (0.0, 12_000_000), (STALE_S, 12_000_000), (2 * STALE_S, 12_000_000),
        (2 * STALE_S + 10, 11_900_000),
    ):  # fmt: skip
        now[0] = now_s
        sysfs.write(f"{SUPPLY}/BAT0", voltage_now=voltage_uv)
        meter.begin()
        now[0] += 0.1
        energies.append(meter.end(second).energy_mj)
    assert energies == [pytest.approx(700), None, None, pytest.approx(700)]


def test_the_source_names_all_batteries(sysfs: Any) -> None:
    battery(sysfs, "BAT0")
    battery(sysfs, "BAT1")
    with BatteryMeter(batteries(sysfs), interval_s=0) as meter:
        assert meter.source == "battery:BAT0+BAT1"
