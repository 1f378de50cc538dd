"""NVIDIA Jetson boards: the power sensors of their rails.

Two layouts. JetPack 5 and later: hwmon, as in the kernel's ``Documentation/hwmon/ina3221.rst``
and ``ina238.rst``; ``inN_label`` names the rail, ``inN_input`` is its voltage (mV),
``currN_input`` its current (mA), ``powerN_input`` its power (uW; INA238 only). JetPack 4: the
vendor's iio driver, with ``rail_name_N``, ``in_voltageN_input`` (mV), ``in_currentN_input`` (mA)
and ``in_powerN_input`` (mW).

Rails overlap: the input rail contains the others. `total_rail` selects, by the rails' names, the
rails that make up a board, and counts nothing twice:

========================================  ==================================================
board                                     counted
========================================  ==================================================
AGX Thor                                  ``VIN`` of the INA238, all that enters the board
Orin NX and Nano, Xavier NX, TX2, TX1     ``VDD_IN``, the module
Nano                                      ``POM_5V_IN``, the board
AGX Orin                                  ``VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0``
AGX Xavier                                ``GPU + CPU + SOC + CV + VDDRQ + SYS5V``
Thor on a carrier without INA238          ``VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0``
========================================  ==================================================

Sources: the Jetson Linux Developer Guide, chapters on power management; its section on software
based power consumption modeling (r36.4.3) says that ``VIN_SYS_5V0`` includes AGX Orin's fourth
rail, ``VDDQ_VDD2_1V8AO``. For AGX Xavier, whose rails are fed side by side,
https://forums.developer.nvidia.com/t/xavier-jetson-total-power-consumption/81016 and the
module's design guide DG-09840-001, 5.6.2; for Thor, whose INA238 has no label,
https://github.com/rbonghi/jetson_stats/pull/900. The Nano 2GB has no sensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testbed.meters.meter import SampledMeter, read_int, read_text, why_unreadable

TOTAL_RAILS: Final = ("VIN", "VDD_IN", "POM_5V_IN", "5V_IN", "SYS_VIN")
"""Rails that contain all others; the first one present is used."""
MODULE_RAILS: Final = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
)
"""Rails side by side that make up a module without a rail that contains them."""
WHOLE_BOARD: Final = ("VIN", "POM_5V_IN", "5V_IN", "SYS_VIN")
_HWMON: Final = (
    "class/hwmon/hwmon*",
    "bus/i2c/drivers/ina*/*/hwmon/hwmon*",
    "bus/i2c/devices/*/hwmon/hwmon*",
)
_IIO: Final = (
    "bus/i2c/drivers/ina3221x/*/iio*device*",
    "bus/i2c/devices/*/iio*device*",
    "bus/iio/devices/iio*device*",
)
_CHANNELS: Final = {"ina3221": (1, 2, 3), "ina238": (1,)}
"""By the sensor's name; an INA3221's channel 7 is the sum of its shunt voltages."""


@dataclass(frozen=True, slots=True)
class JetsonRail:
    """One rail of one sensor.

    Attributes:
        label: its name, such as ``VDD_IN``.
        voltage: file of its voltage, millivolts.
        current: file of its current, milliamperes.
        power: file of its power.
        power_unit_mw: value of a 1 in that file, milliwatts.
    """

    label: str
    voltage: Path
    current: Path
    power: Path
    power_unit_mw: float

    def power_mw(self) -> float | None:
        """Its power, milliwatts: the sensor's own value, otherwise voltage times current.

        None if neither can be read. A rail that is switched off reads 0.
        """
        power = read_int(self.power)
        if power:
            return power * self.power_unit_mw
        voltage_mv, current_ma = read_int(self.voltage), read_int(self.current)
        if voltage_mv is None or current_ma is None:
            return None if power is None else 0.0
        return voltage_mv * current_ma / 1e3

    def why_unreadable(self) -> str:
        """Why it has no power value, in words; empty if it has one."""
        if self.power_mw() is not None:
            return ""
        return f"{self.label}: {why_unreadable(self.voltage) or why_unreadable(self.current)}"


@dataclass(frozen=True, slots=True)
class TotalRail:
    """Rails that make up a board or its module, none contained in another.

    Attributes:
        rails: those rails.
    """

    rails: tuple[JetsonRail, ...]

    @property
    def label(self) -> str:
        """Names of its rails."""
        return "+".join(rail.label for rail in self.rails)

    @property
    def coverage(self) -> str:
        """Its coverage, in words."""
        whole = self.rails[0].label in WHOLE_BOARD
        return "whole board" if whole else "module, without its carrier board"

    def power_mw(self) -> float | None:
        """Sum, milliwatts; None if a rail cannot be read, or all are 0."""
        powers = [rail.power_mw() for rail in self.rails]
        known = [power for power in powers if power is not None]
        total_mw = sum(known)
        return total_mw if len(known) == len(powers) and total_mw > 0 else None

    def why_unreadable(self) -> str:
        """Why it has no power value, in words; empty if it has one."""
        if self.power_mw() is not None:
            return ""
        reasons = [rail.why_unreadable() for rail in self.rails]
        return "; ".join(filter(None, reasons)) or f"{self.label}: the sensor shows no power"


def find_rails(root: Path = Path("/sys")) -> list[JetsonRail]:
    """Every labelled rail of every sensor, each once (sysfs shows a sensor in several places)."""
    rails: dict[str, JetsonRail] = {}
    for rail in (*_hwmon_rails(root), *_iio_rails(root)):
        rails.setdefault(rail.label, rail)
    return list(rails.values())


def total_rail(rails: list[JetsonRail]) -> TotalRail | None:
    """The rails of the whole board or module; None if the rails are unknown."""
    by_label = {rail.label.upper(): rail for rail in rails}
    for labels in (*((label,) for label in TOTAL_RAILS), *MODULE_RAILS):
        if all(label in by_label for label in labels):
            return TotalRail(tuple(by_label[label] for label in labels))
    return None


def _hwmon_rails(root: Path) -> Iterator[JetsonRail]:
    unnamed = dict[Path, JetsonRail]()
    for path in (found for pattern in _HWMON for found in sorted(root.glob(pattern), key=_number)):
        chip = read_text(path / "name")
        for n in _CHANNELS.get(chip or "", ()):
            volt, amp, watt = (path / f"{kind}{n}_input" for kind in ("in", "curr", "power"))
            label = read_text(path / f"in{n}_label")
            if chip == "ina238":  # one channel: the label may be the sensor's, or be missing
                label = label or read_text(path / "label")
            rail = JetsonRail(label or "VIN", volt, amp, watt, power_unit_mw=1e-3)
            if label and label != "NC":
                yield rail
            elif chip == "ina238" and not label:
                unnamed[path.resolve()] = rail
    if len({path.name for path in unnamed}) == 1:
        yield next(iter(unnamed.values()))


def _iio_rails(root: Path) -> Iterator[JetsonRail]:
    for path in (found for pattern in _IIO for found in sorted(root.glob(pattern), key=_number)):
        for n in (0, 1, 2):
            label = read_text(path / f"rail_name_{n}")
            if label and label != "NC":
                volt, amp, watt = (
                    path / f"in_{kind}{n}_input" for kind in ("voltage", "current", "power")
                )
                yield JetsonRail(label, volt, amp, watt, power_unit_mw=1.0)


def _number(path: Path) -> tuple[str, int]:
    digits = re.search(r"\d+$", path.name)
    return str(path.parent), int(digits.group()) if digits else 0


class JetsonMeter(SampledMeter):
    """A board's total, sampled and integrated."""

    def __init__(self, rail: TotalRail, *, interval_s: float = 0.01) -> None:
        super().__init__(rail.power_mw, f"jetson:{rail.label}", interval_s=interval_s)
        self.rail = rail
