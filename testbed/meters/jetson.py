"""Jetson boards: INA3221 rail sensors through hwmon.

Files as in the kernel's ``Documentation/hwmon/ina3221.rst``: ``name`` is ``ina3221``,
``inN_label`` names the rail, ``inN_input`` is its voltage (mV) and ``currN_input`` its
current (mA).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testbed.meters.sampled import SampledMeter
from testbed.meters.sysfs import read_int, read_text

TOTAL_RAILS: Final = ("VDD_IN", "POM_5V_IN", "SYS_VIN")
"""Rails that feed the whole board, by board generation (Orin and Xavier NX, Nano, TX2)."""


@dataclass(frozen=True, slots=True)
class JetsonRail:
    """One rail of one sensor."""

    path: Path
    channel: int
    label: str

    def power_mw(self) -> float | None:
        """Voltage times current, milliwatts; None if either cannot be read."""
        voltage_mv = read_int(self.path / f"in{self.channel}_input")
        current_ma = read_int(self.path / f"curr{self.channel}_input")
        if voltage_mv is None or current_ma is None:
            return None
        return voltage_mv * current_ma / 1e3


def find_rails(root: Path = Path("/sys")) -> list[JetsonRail]:
    """Every labelled rail of every INA3221 sensor."""
    rails: list[JetsonRail] = []
    for path in sorted((root / "class" / "hwmon").glob("hwmon*")):
        if read_text(path / "name") != "ina3221":
            continue
        for channel in (1, 2, 3):
            label = read_text(path / f"in{channel}_label")
            if label:
                rails.append(JetsonRail(path, channel, label))
    return rails


def total_rail(rails: list[JetsonRail]) -> JetsonRail | None:
    """The rail that feeds the whole board, if one is labelled so."""
    for label in TOTAL_RAILS:
        for rail in rails:
            if rail.label == label:
                return rail
    return None


class JetsonMeter(SampledMeter):
    """The board's input rail, sampled and integrated."""

    def __init__(self, rail: JetsonRail, *, interval_s: float = 0.01) -> None:
        super().__init__(rail.power_mw, f"jetson:{rail.label}", interval_s=interval_s)
        self.rail = rail
