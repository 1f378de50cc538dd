"""RAPL through the powercap interface: energy counters of processor packages and DRAM.

Files as in the kernel's ``Documentation/power/powercap/powercap.rst``: a zone holds
``name``, ``energy_uj`` (counter, microjoules) and ``max_energy_range_uj`` (where it wraps).
Since Linux 5.10 ``energy_uj`` is readable by root only.

Zones overlap. ``core`` and ``uncore`` are parts of their package, ``psys`` contains it, and the
tree ``intel-rapl-mmio`` shows packages of ``intel-rapl`` a second time. The meter counts every
package once, and DRAM, which no package includes.

Not every package has its own counter. AMD's multi-die processors (Zen 1 and 2) list one package
zone a die, and every die shows the counter of the whole socket
(https://github.com/mlco2/codecarbon/issues/1274). Intel's multi-die processors list the same zones,
each with its own counter. Names do not distinguish the two; values do (`Mirrors`): two counters
that have run since the start do not hold the same number of microjoules.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testbed.meters.meter import (
    EnergyReading,
    FrameActivity,
    Meter,
    read_int,
    read_text,
    unmeasured,
)

MAX_W: Final = 1000.0
"""No package or memory spends more: a counter with a higher value was restarted or wrapped."""
SLACK_UJ: Final = 100e6
"""Allowance beyond `MAX_W`, so that short windows are not refused."""
LONG_S: Final = 10.0
"""A window up to this length has no second wrap, for any range of a zone."""
_ZONE = re.compile(r"(intel-rapl(?:-mmio)?):(\d+)(:\d+)?")
FAR_UJ: Final = 500_000
"""Two views of one counter are never this far apart: they differ by one update, about 1 ms."""
NEAR: Final = 0.05
"""They differ by less than this fraction of their increase in a window."""
SAME: Final = 1e-6
"""Two values that differ by less than this fraction always count as equal."""
Seen = tuple[int, int]
"""Microjoules of a counter in a first pass over all counters, and in a second one after it."""


@dataclass(frozen=True, slots=True)
class RaplZone:
    """One energy counter.

    Attributes:
        path: its folder.
        name: such as ``package-0`` or ``dram``.
        range_uj: value at which the counter wraps, microjoules; 0 if the zone does not state it.
    """

    path: Path
    name: str
    range_uj: int

    @property
    def is_package(self) -> bool:
        """Whether it is a processor package (or one die of it), and not memory."""
        return self.name.startswith("package")

    def energy_uj(self) -> int | None:
        """The counter, microjoules; None if it cannot be read."""
        value = read_int(self.path / "energy_uj")
        return None if value is None or value < 0 else value

    def spent_uj(self, began_uj: int, now_uj: int, window_s: float) -> int | None:
        """Energy between two values of the counter, microjoules; None if unknown.

        It is unknown if the counter was restarted (it went back and cannot have wrapped), or if the
        window is so long that it can have wrapped more than once.
        """
        spent = now_uj - began_uj
        if spent < 0 and self.range_uj:
            spent += self.range_uj
        if self.range_uj and window_s > max(LONG_S, self.range_uj / (MAX_W * 1e6)):
            return None
        possible = 0 <= spent <= SLACK_UJ + MAX_W * 1e6 * max(window_s, 0.0)
        return spent if possible else None


def find_zones(root: Path = Path("/sys")) -> list[RaplZone]:
    """Packages, and DRAM zones, which packages do not include; other zones overlap."""
    folders = {
        path.name: path
        for pattern in ("intel-rapl*/*/*", "intel-rapl*/*", "*")
        for path in (root / "class" / "powercap").glob(pattern)
        if _ZONE.fullmatch(path.name)
    }
    zones = list[RaplZone]()
    shown = set[tuple[str, str]]()  # by the first tree: the second one repeats them
    for folder in sorted(folders, key=lambda name: ("mmio" in name, _natural(name))):
        tree, number, below = _parts(folder)
        path = folders[folder]
        name = read_text(path / "name") or ""
        package = read_text(folders.get(f"{tree}:{number}", path) / "name") or number
        if not (name == "dram" if below else name.startswith("package")):
            continue
        if tree == "intel-rapl":
            shown.add((package, name))
        elif (package, name) in shown:
            continue
        range_uj = max(0, read_int(path / "max_energy_range_uj") or 0)
        zones.append(RaplZone(path, name, range_uj))
    return sorted(zones, key=lambda zone: not zone.is_package)


def _parts(folder: str) -> tuple[str, str, str | None]:
    """Tree, number and subzone of ``intel-rapl-mmio:0:1``."""
    match = _ZONE.fullmatch(folder)
    assert match is not None
    tree, number, below = match.groups()
    return tree, number, below


class RaplMeter(Meter):
    """Sum of the zones' counters, each counted once.

    It covers the processor (and memory) for everything on the machine, but no modem.
    A window is None if a package's counter could not be read, did not move (virtual machines
    show constant ones) or made an impossible step. Memory whose counter never moves is left out
    of the sum and of the reading's source.
    """

    def __init__(self, zones: list[RaplZone]) -> None:
        self.source = _source(zones)
        self._zones = zones
        self._packages = [zone for zone in zones if zone.is_package]
        self._mirrors = Mirrors([zone.range_uj for zone in self._packages])
        self._moved: set[Path] = set()
        self._began: _Look | None = None
        self._look()

    def begin(self) -> None:
        """Remember the counters."""
        self._began = self._look()

    def end(self, activity: FrameActivity) -> EnergyReading:
        """Energy of the counters over the window, millijoules; None if one did not measure."""
        now, began, self._began = self._look(), self._began, None
        if began is None:
            return unmeasured(self.source)
        window_s = activity.end_s - activity.start_s
        counted, total_uj = list[RaplZone](), 0
        for zone in self._counted(began, now):
            first, last = began.values[zone.path], now.values[zone.path]
            spent = None
            if first is not None and last is not None:
                spent = zone.spent_uj(first, last, window_s)
            if spent:
                self._moved.add(zone.path)
            elif zone.is_package or zone.path in self._moved:
                return unmeasured(self.source)
            else:
                continue
            counted.append(zone)
            total_uj += spent
        if not counted:
            return unmeasured(self.source)
        self.source = _source(counted)
        return EnergyReading(None, None, None, total_uj / 1e3, self.source)

    def mirrored(self) -> list[str]:
        """Names of the packages that currently show another one's counter."""
        look = self._look()
        counted = self._counted(look, look)
        return [zone.name for zone in self._packages if zone not in counted]

    def _counted(self, began: _Look, now: _Look) -> list[RaplZone]:
        originals = self._mirrors.originals(began.packages, now.packages)
        packages = [self._packages[i] for i in originals]
        return packages + [zone for zone in self._zones if not zone.is_package]

    def _look(self) -> _Look:
        """All counters now; packages twice while two of them may still be the same."""
        values = {zone.path: zone.energy_uj() for zone in self._zones}
        seen: list[Seen | None] = []
        for zone in self._packages:
            first = values[zone.path]
            second = first if self._mirrors.decided else zone.energy_uj()
            seen.append(None if first is None or second is None else (first, second))
        self._mirrors.watch(seen)
        return _Look(values, seen)


@dataclass(frozen=True, slots=True)
class _Look:
    """All counters at one moment, and the packages' once more for `Mirrors`."""

    values: dict[Path, int | None]
    packages: list[Seen | None]


def stuck_zones(zones: Sequence[RaplZone], wait_s: float = 0.1) -> list[RaplZone]:
    """Zones whose counter can be read but does not move within `wait_s` (it should in 1 ms)."""
    began = {zone.path: zone.energy_uj() for zone in zones}
    stuck = [zone for zone in zones if began[zone.path] is not None]
    until_s = time.monotonic() + wait_s
    while stuck and time.monotonic() < until_s:
        time.sleep(0.005)
        stuck = [zone for zone in stuck if zone.energy_uj() == began[zone.path]]
    return stuck


def _source(zones: Sequence[RaplZone]) -> str:
    return "rapl:" + "+".join(zone.name for zone in zones)


def _natural(name: str) -> list[int | str]:
    """``package-10`` after ``package-9``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


class Mirrors:
    """Distinguishes views of one counter from separate counters, and remembers certain results.

    Args:
        ranges_uj: where each counter wraps, microjoules; 0 if unknown.
    """

    def __init__(self, ranges_uj: Sequence[int]) -> None:
        self._ranges_uj = ranges_uj
        self._distinct: set[tuple[int, int]] = set()

    @property
    def decided(self) -> bool:
        """Whether all are known to be different, so that one pass over them is enough."""
        n = len(self._ranges_uj)
        return len(self._distinct) == n * (n - 1) // 2

    def watch(self, seen: Sequence[Seen | None]) -> None:
        """Add one reading of all counters; None for one that could not be read."""
        for j, b in enumerate(seen):
            for i, a in enumerate(seen[:j]):
                if a is not None and b is not None:
                    apart_uj = self._apart_uj(i, a, b)
                    if apart_uj > max(FAR_UJ, SAME * max(a[1], b[1])):
                        self._distinct.add((i, j))

    def originals(self, began: Sequence[Seen | None], ended: Sequence[Seen | None]) -> list[int]:
        """Indices of the counters to sum over a window: each counter once, despite several views.

        A counter that could not be read at either end is included, since its value is unknown.
        """
        out: list[int] = []
        for j in range(len(self._ranges_uj)):
            if not any(self._one(i, j, began, ended) for i in out):
                out.append(j)
        return out

    def _one(
        self, i: int, j: int, began: Sequence[Seen | None], ended: Sequence[Seen | None]
    ) -> bool:
        """Whether `i` and `j` can be one counter, over the whole window."""
        a, b, c, d = began[i], began[j], ended[i], ended[j]
        if (i, j) in self._distinct or a is None or b is None or c is None or d is None:
            return False
        added = max(c[0] - a[0], d[0] - b[0], 0)
        return all(
            self._apart_uj(i, x, y) <= max(NEAR * added, SAME * max(x[1], y[1]))
            for x, y in ((a, b), (c, d))
        )

    def _apart_uj(self, i: int, a: Seen, b: Seen) -> int:
        """How far two views are apart that one counter, running on, cannot explain."""
        if a[1] < a[0] or b[1] < b[0]:
            return 0  # it wrapped or restarted between the passes: no evidence
        apart = max(0, b[0] - a[1], a[0] - b[1])
        whole = self._ranges_uj[i]
        if whole:  # one of the two may have wrapped already
            apart = min(apart, max(0, whole - max(a[1], b[1]) + min(a[0], b[0])))
        return apart
