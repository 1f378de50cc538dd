"""RAPL through the powercap interface: energy counters of processor packages and DRAM.

Files as in the kernel's ``Documentation/power/powercap/powercap.rst``: a zone holds
``name``, ``energy_uj`` (counter, microjoules) and ``max_energy_range_uj`` (where it wraps).
Since Linux 5.10 ``energy_uj`` is readable by root only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from testbed.meters.base import CounterMeter
from testbed.meters.sysfs import read_int, read_text

_PACKAGE = re.compile(r"intel-rapl:\d+")
_SUBZONE = re.compile(r"intel-rapl:\d+:\d+")


@dataclass(frozen=True, slots=True)
class RaplZone:
    """One energy counter.

    Attributes:
        path: its folder.
        name: such as ``package-0`` or ``dram``.
        range_uj: value at which the counter wraps, microjoules.
    """

    path: Path
    name: str
    range_uj: int

    def energy_uj(self) -> int | None:
        """The counter, microjoules; None if it may not be read."""
        return read_int(self.path / "energy_uj")


def find_zones(root: Path = Path("/sys")) -> list[RaplZone]:
    """Packages, and DRAM zones, which packages do not include; other zones overlap."""
    zones: list[RaplZone] = []
    folder = root / "class" / "powercap"
    for path in sorted(folder.glob("intel-rapl:*")):
        name = read_text(path / "name") or ""
        range_uj = read_int(path / "max_energy_range_uj")
        package = _PACKAGE.fullmatch(path.name) and name.startswith("package")
        dram = _SUBZONE.fullmatch(path.name) and name == "dram"
        if (package or dram) and range_uj:
            zones.append(RaplZone(path, name, range_uj))
    return zones


class RaplMeter(CounterMeter):
    """Sum of the zones' counters, unwrapped.

    Covers the processor (and memory) for everything that runs on the machine, and no
    modem. A counter that wraps more than once between two readings is misread: at 100 W
    that takes about 40 minutes with the usual range.
    """

    def __init__(self, zones: list[RaplZone]) -> None:
        super().__init__("rapl:" + "+".join(zone.name for zone in zones))
        self._zones = zones
        self._last_uj: list[int | None] = [zone.energy_uj() for zone in zones]
        self._total_uj = 0

    def counter_mj(self) -> float | None:
        """Energy since construction, millijoules; None if a zone cannot be read."""
        if not self._zones:
            return None
        for i, zone in enumerate(self._zones):
            now, last = zone.energy_uj(), self._last_uj[i]
            self._last_uj[i] = now
            if now is None or last is None:
                return None
            self._total_uj += now - last if now >= last else now - last + zone.range_uj
        return self._total_uj / 1e3
