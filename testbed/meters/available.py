"""Which meters this machine has, and opening one by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cnn.errors import ConfigError
from testbed.costs.power import power_profile
from testbed.meters.base import Meter, NoMeter
from testbed.meters.battery import BatteryMeter, find_batteries
from testbed.meters.jetson import JetsonMeter, find_rails, total_rail
from testbed.meters.model import ModelMeter
from testbed.meters.nvml import NvmlMeter, load_nvml
from testbed.meters.rapl import RaplMeter, find_zones

METERS: Final = ("model", "rapl", "jetson", "battery", "nvml", "none")


@dataclass(frozen=True, slots=True)
class MeterInfo:
    """What a search for one kind of meter found.

    Attributes:
        name: as given to `open_meter`.
        found: whether the sensor exists.
        readable: whether this process could read it just now.
        note: what it covers, or why it cannot be used.
    """

    name: str
    found: bool
    readable: bool
    note: str


def find_meters(root: Path = Path("/sys")) -> list[MeterInfo]:
    """Look for every kind of hardware meter and try to read each once."""
    return [_rapl(root), _jetson(root), _battery(root), _nvml()]


def open_meter(name: str, profile: str, root: Path = Path("/sys")) -> Meter:
    """Open a meter by name (one of `METERS`).

    Args:
        name: ``model`` uses the power profile `profile`; the others read hardware.
        profile: power profile, ``device+modem``.
        root: where sysfs is mounted.

    Raises:
        ConfigError: if the name is unknown, or this machine has no such meter.
    """
    if name == "model":
        return ModelMeter(power_profile(profile))
    if name == "none":
        return NoMeter()
    meter: Meter | None = None
    if name == "rapl" and (zones := find_zones(root)):
        meter = RaplMeter(zones)
    elif name == "jetson" and (rail := total_rail(find_rails(root))):
        meter = JetsonMeter(rail)
    elif name == "battery" and (batteries := find_batteries(root)):
        meter = BatteryMeter(batteries[0])
    elif name == "nvml" and (nvml := load_nvml()) is not None:
        meter = NvmlMeter(nvml)
    if meter is None:
        known = name in METERS
        raise ConfigError(
            f"meter {name!r}" + (", which this machine does not have" if known else ""),
            expected=f"one of {METERS} that `sliproad testbed doctor` finds",
            mend="use --meter model",
        )
    return meter


def _rapl(root: Path) -> MeterInfo:
    zones = find_zones(root)
    if not zones:
        return MeterInfo("rapl", False, False, f"no package zone in {root}/class/powercap")
    names = ", ".join(zone.name for zone in zones)
    if any(zone.energy_uj() is None for zone in zones):
        return MeterInfo("rapl", True, False, f"{names}: energy_uj is readable by root only")
    return MeterInfo("rapl", True, True, f"{names}: processor and memory, no modem")


def _jetson(root: Path) -> MeterInfo:
    rails = find_rails(root)
    total = total_rail(rails)
    if total is None:
        labels = ", ".join(rail.label for rail in rails) or "no ina3221 sensor"
        return MeterInfo("jetson", False, False, f"no board input rail ({labels})")
    readable = total.power_mw() is not None
    return MeterInfo("jetson", True, readable, f"{total.label}: whole board")


def _battery(root: Path) -> MeterInfo:
    batteries = find_batteries(root)
    if not batteries:
        return MeterInfo("battery", False, False, f"none in {root}/class/power_supply")
    readable = batteries[0].power_mw() is not None
    note = "whole device, slow gauge" if readable else "not discharging: no reading on mains"
    return MeterInfo("battery", True, readable, f"{batteries[0].name}: {note}")


def _nvml() -> MeterInfo:
    nvml = load_nvml()
    if nvml is None:
        return MeterInfo("nvml", False, False, "no NVIDIA driver, or nvidia-ml-py not installed")
    try:
        readable = NvmlMeter(nvml).counter_mj() is not None
    except nvml.NVMLError:
        return MeterInfo("nvml", False, False, "no GPU")
    return MeterInfo("nvml", True, readable, "GPU 0 alone")
