"""The batteries' own gauges through the power-supply class.

Files as in the kernel's ``Documentation/ABI/testing/sysfs-class-power``: ``type``, ``scope``,
``present``, ``status``, ``power_now`` (microwatts), or ``voltage_now`` (microvolts) and
``current_now`` (microamperes; drivers differ in its sign). Gauges refresh about once a second or
slower: good for minutes, not for single frames. ``energy_now`` is coarser still (about a
thousandth of the charge, minutes of work) and not used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testbed.meters.meter import SampledMeter, read_int, read_text

STALE_S: Final = 300.0
"""A discharging battery whose gauge is constant for this long does not measure: at 5 W that is 1 %
of a laptop's charge."""
PLAUSIBLE_MW: Final = (10.0, 1e7)
"""Plausible power of a device: values outside mean a gauge with other units, or none."""
_UNKNOWN: Final = (65_535_000, 4_294_967_295_000)
"""A gauge's 0xFFFF, and ACPI's 0xFFFFFFFF for "unknown", in thousandths."""
_GAUGE: Final = ("power_now", "current_now", "voltage_now", "energy_now", "charge_now", "capacity")


@dataclass(frozen=True, slots=True)
class Battery:
    """One battery."""

    path: Path

    @property
    def name(self) -> str:
        """Such as ``BAT0``."""
        return self.path.name

    @property
    def status(self) -> str:
        """``Discharging``, ``Charging``, ``Full``, ``Not charging`` or ``Unknown``."""
        return read_text(self.path / "status") or "Unknown"

    def power_mw(self) -> float | None:
        """Discharge power, milliwatts; None if unreadable or not discharging.

        On mains the gauge shows the charger's work, not the device's consumption. A gauge of 0
        during discharge does not measure: then voltage times current is used, and if one of these
        is also 0 there is no figure.
        """
        if self.status != "Discharging":
            return None
        power_uw = self._magnitude("power_now")
        if power_uw is not None:
            return _plausible(power_uw / 1e3)
        voltage_uv, current_ua = self._magnitude("voltage_now"), self._magnitude("current_now")
        if voltage_uv is None or current_ua is None:
            return None
        return _plausible(voltage_uv * current_ua / 1e9)

    def gauge(self) -> tuple[int | None, ...]:
        """All values of the gauge, to detect whether it still changes."""
        return tuple(read_int(self.path / name) for name in _GAUGE)

    def _magnitude(self, name: str) -> int | None:
        """A file's value without its sign; None for 0 and for a gauge's "unknown"."""
        value = read_int(self.path / name)
        return abs(value) if value and abs(value) not in _UNKNOWN else None


def _plausible(power_mw: float) -> float | None:
    low, high = PLAUSIBLE_MW
    return power_mw if low <= power_mw <= high else None


@dataclass(frozen=True, slots=True)
class Batteries:
    """The power supplies of a device on battery.

    Attributes:
        batteries: all batteries of the system.
        mains: folders of its other supplies.
    """

    batteries: tuple[Battery, ...]
    mains: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """Names of the batteries."""
        return "+".join(battery.name for battery in self.batteries)

    def power_mw(self) -> float | None:
        """Sum over the batteries that discharge, milliwatts.

        None on mains or while one charges: then the batteries do not show the device's
        consumption. Also None if none discharges, or a discharging one cannot be read.
        """
        if self.on_mains():
            return None
        powers = [b.power_mw() for b in self.batteries if b.status == "Discharging"]
        known = [power for power in powers if power is not None]
        return sum(known) if known and len(known) == len(powers) else None

    def on_mains(self) -> bool:
        """Whether another supply also powers the device."""
        return any(read_int(path / "online") not in (None, 0) for path in self.mains) or any(
            battery.status == "Charging" for battery in self.batteries
        )

    def why_unreadable(self) -> str:
        """Why there is no figure now, in words; empty if there is one."""
        if self.power_mw() is not None:
            return ""
        if self.on_mains():
            return "on mains: the gauge shows the charger, not the device"
        if not any(battery.status == "Discharging" for battery in self.batteries):
            states = ", ".join(f"{b.name} {b.status.lower()}" for b in self.batteries)
            return f"not discharging ({states})"
        return "power_now, or voltage_now with current_now, shows nothing"


def find_batteries(root: Path = Path("/sys")) -> list[Battery]:
    """Present batteries that power the system (not those of a mouse or a phone)."""
    return [
        Battery(path)
        for path in _supplies(root)
        if read_text(path / "type") == "Battery" and read_int(path / "present") != 0
    ]


def find_mains(root: Path = Path("/sys")) -> tuple[Path, ...]:
    """Other supplies of the system: mains, USB and wireless chargers."""
    chargers = ("Mains", "USB", "Wireless")
    return tuple(path for path in _supplies(root) if read_text(path / "type") in chargers)


def _supplies(root: Path) -> list[Path]:
    folder = root / "class" / "power_supply"
    return [path for path in sorted(folder.glob("*")) if read_text(path / "scope") != "Device"]


class BatteryMeter(SampledMeter):
    """The batteries' discharge power, sampled and integrated; None if the gauge stays constant."""

    def __init__(
        self,
        batteries: Batteries,
        *,
        interval_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.batteries = batteries
        self._seen: Sequence[object] = ()
        self._since_s = clock()
        self._now_s = clock
        super().__init__(
            self._fresh_mw, f"battery:{batteries.name}", interval_s=interval_s, clock=clock
        )

    def _fresh_mw(self) -> float | None:
        seen = [battery.gauge() for battery in self.batteries.batteries]
        now_s = self._now_s()
        if seen != self._seen:
            self._seen, self._since_s = seen, now_s
        return None if now_s - self._since_s > STALE_S else self.batteries.power_mw()
