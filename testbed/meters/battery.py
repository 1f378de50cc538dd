"""A battery's own gauge through the power-supply class.

Files as in the kernel's ``Documentation/ABI/testing/sysfs-class-power``: ``type``,
``status``, ``power_now`` (microwatts), or ``voltage_now`` (microvolts) and ``current_now``
(microamperes). Gauges refresh about once a second or slower: good for minutes, not for
single frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from testbed.meters.sampled import SampledMeter
from testbed.meters.sysfs import read_int, read_text


@dataclass(frozen=True, slots=True)
class Battery:
    """One battery."""

    path: Path

    @property
    def name(self) -> str:
        """Such as ``BAT0``."""
        return self.path.name

    def power_mw(self) -> float | None:
        """Discharge power, milliwatts; None if unreadable or not discharging.

        On mains the gauge shows the charger's work and not what the device spends.
        """
        if read_text(self.path / "status") != "Discharging":
            return None
        power_uw = read_int(self.path / "power_now")
        if power_uw is not None:
            return abs(power_uw) / 1e3
        voltage_uv = read_int(self.path / "voltage_now")
        current_ua = read_int(self.path / "current_now")
        if voltage_uv is None or current_ua is None:
            return None
        return voltage_uv * abs(current_ua) / 1e9


def find_batteries(root: Path = Path("/sys")) -> list[Battery]:
    """Batteries that feed the system (not those of a mouse or a headset)."""
    return [
        Battery(path)
        for path in sorted((root / "class" / "power_supply").glob("*"))
        if read_text(path / "type") == "Battery" and read_text(path / "scope") != "Device"
    ]


class BatteryMeter(SampledMeter):
    """A battery's discharge power, sampled and integrated."""

    def __init__(self, battery: Battery, *, interval_s: float = 0.1) -> None:
        super().__init__(battery.power_mw, f"battery:{battery.name}", interval_s=interval_s)
        self.battery = battery
