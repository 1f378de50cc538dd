"""Finding the meters of this machine, and opening one by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cnn.common.errors import ConfigError
from cnn.common.plug_ins import Group, plug_in, plug_in_names
from testbed.meters.battery import Batteries, BatteryMeter, find_batteries, find_mains
from testbed.meters.jetson import JetsonMeter, find_rails, total_rail
from testbed.meters.meter import Meter, NoMeter, why_unreadable
from testbed.meters.nvml import NvmlMeter, count_gpus, load_nvml, open_nvml
from testbed.meters.plugged_meter import PluggedMeter
from testbed.meters.power import ModelMeter, power_profile
from testbed.meters.rapl import RaplMeter, find_zones, stuck_zones

METERS: Final = ("model", "rapl", "jetson", "battery", "nvml", "none")
METER_PLUG_INS: Final = Group("sliproad.meters", "meter", METERS)


@dataclass(frozen=True, slots=True)
class MeterInfo:
    """The result of a search for one kind of meter.

    Attributes:
        name: as given to `open_meter`.
        found: whether the sensor exists.
        readable: whether this process could read it just now.
        note: its coverage, or why it cannot be used.
        moves: whether it measures: a constant counter can be read but does not measure.
        hint: how to fix it; empty if that is impossible or not needed.
    """

    name: str
    found: bool
    readable: bool
    note: str
    moves: bool = True
    hint: str = ""


def find_meters(root: Path = Path("/sys")) -> list[MeterInfo]:
    """Search for every kind of hardware meter and try to read each once."""
    return [_rapl(root), _jetson(root), _battery(root), _nvml()]


def open_meter(name: str, profile: str, root: Path = Path("/sys")) -> Meter:
    """Open a meter by name: one of `METERS`, or a plug-in.

    Args:
        name: ``model`` uses the power profile `profile`; the others read hardware. A plug-in's name
            may have a colon and its setting after it.
        profile: power profile, ``device+modem``.
        root: where sysfs is mounted.

    Raises:
        ConfigError: if the name is unknown, this machine has no such meter, or the plug-in fails.
    """
    plugged = plug_in(METER_PLUG_INS, name.partition(":")[0])
    if plugged is not None:
        return PluggedMeter(plugged, name.partition(":")[2])
    if name == "model":
        return ModelMeter(power_profile(profile))
    if name == "none":
        return NoMeter()
    meter: Meter | None = None
    if name == "rapl" and (zones := find_zones(root)):
        meter = RaplMeter(zones)
    elif name == "jetson" and (rail := total_rail(find_rails(root))):
        meter = JetsonMeter(rail)
    elif name == "battery" and (batteries := _batteries(root)):
        meter = BatteryMeter(batteries)
    elif name == "nvml" and (nvml := load_nvml()) is not None:
        meter = open_nvml(nvml)
    if meter is None:
        known = name in METERS
        raise ConfigError(
            f"meter {name}" + (", which this machine does not have" if known else ""),
            expected=f"one of {', '.join([*METERS, *plug_in_names(METER_PLUG_INS)])} that "
            "`sliproad testbed doctor` finds",
            hint="use --meter model",
        )
    return meter


def _rapl(root: Path) -> MeterInfo:
    zones = find_zones(root)
    if not zones:
        return MeterInfo("rapl", False, False, f"no package zone in {root}/class/powercap")
    names = ", ".join(zone.name for zone in zones)
    unreadable = [zone for zone in zones if zone.energy_uj() is None]
    if unreadable:
        why = why_unreadable(unreadable[0].path / "energy_uj")
        hint = f"run as root, or allow it: chmod a+r {root}/class/powercap/*/energy_uj"
        return MeterInfo("rapl", True, False, f"{unreadable[0].name}: {why}", hint=hint)
    stuck = stuck_zones(zones)
    if any(zone.is_package for zone in stuck):
        note = ", ".join(zone.name for zone in stuck) + ": counter does not move"
        hint = "use --meter model: a virtual machine has no counter of its own"
        return MeterInfo("rapl", True, True, note, moves=False, hint=hint)
    notes = [f"{names}: processor and memory, no modem"]
    notes += [f"{zone.name} does not move and is left out" for zone in stuck]
    if mirrored := RaplMeter(zones).mirrored():
        notes.append(f"{', '.join(mirrored)} shows another one's counter and is left out")
    return MeterInfo("rapl", True, True, "; ".join(notes))


def _jetson(root: Path) -> MeterInfo:
    rails = find_rails(root)
    total = total_rail(rails)
    if total is None:
        labels = ", ".join(rail.label for rail in rails)
        why = f"rails of no known board: {labels}" if rails else "no ina3221 or ina238 sensor"
        return MeterInfo("jetson", False, False, why)
    why = total.why_unreadable()
    return MeterInfo("jetson", True, not why, why or f"{total.label}: {total.coverage}")


def _battery(root: Path) -> MeterInfo:
    batteries = _batteries(root)
    if batteries is None:
        return MeterInfo("battery", False, False, f"none in {root}/class/power_supply")
    why = batteries.why_unreadable()
    note = why or "whole device, slow gauge"
    return MeterInfo("battery", True, not why, f"{batteries.name}: {note}")


def _batteries(root: Path) -> Batteries | None:
    found = find_batteries(root)
    return Batteries(tuple(found), find_mains(root)) if found else None


def _nvml() -> MeterInfo:
    nvml = load_nvml()
    if nvml is None:
        return MeterInfo("nvml", False, False, "no NVIDIA driver, or nvidia-ml-py not installed")
    gpus = count_gpus(nvml)
    if not gpus:
        return MeterInfo("nvml", False, False, "no GPU")
    which = "GPU 0 alone" if gpus == 1 else f"GPU 0 alone, of {gpus}"
    meter = open_nvml(nvml)
    if meter is None:
        return MeterInfo("nvml", True, False, f"{which}: no energy counter that moves, no power")
    meter.close()
    if isinstance(meter, NvmlMeter):
        how = f"energy counter; windows below {meter.step_s * 1e3:.0f} ms stay empty"
    else:
        how = "no energy counter that moves: its power is sampled"
    return MeterInfo("nvml", True, True, f"{which}: {how}")
