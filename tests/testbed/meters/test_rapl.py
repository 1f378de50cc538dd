"""RAPL against trees as `Documentation/power/powercap/powercap.rst` lays them out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.meters.meter import EnergyReading, FrameActivity
from testbed.meters.rapl import MAX_W, Mirrors, RaplMeter, RaplZone, find_zones, stuck_zones

WRAP_UJ = 262_143_328_850
"""2^32 steps of 61 microjoules: what most processors state."""
ZONES = "class/powercap"


def package(sysfs: Any, number: int, energy_uj: int, name: str = "", **more: object) -> None:
    files = {"name": name or f"package-{number}", "energy_uj": energy_uj, **more}
    sysfs.write(f"{ZONES}/intel-rapl:{number}", **{"max_energy_range_uj": WRAP_UJ, **files})


def step(sysfs: Any, window: FrameActivity, **energy_uj: int) -> EnergyReading:
    """A meter's reading over a window in which zones (`p0` for package 0) reach these values."""
    meter = RaplMeter(find_zones(sysfs.root))
    meter.begin()
    for zone, value in energy_uj.items():
        sysfs.write(f"{ZONES}/intel-rapl:{zone[1:].replace('_', ':')}", energy_uj=value)
    return meter.end(window)


def test_packages_and_dram_count_once(sysfs: Any, second: FrameActivity) -> None:
    """Core and uncore are parts of the package, psys contains it, mmio shows it again."""
    sysfs.write(f"{ZONES}/intel-rapl", enabled=1)
    package(sysfs, 0, 900, max_energy_range_uj=1000)
    for below, name, energy_uj in ((0, "core", 5), (1, "uncore", 7), (2, "dram", 10)):
        folder = f"{ZONES}/intel-rapl:0:{below}"
        sysfs.write(folder, name=name, energy_uj=energy_uj, max_energy_range_uj=5000)
    package(sysfs, 1, 7, name="psys")
    sysfs.write(f"{ZONES}/intel-rapl-mmio:0", name="package-0", energy_uj=3)
    assert [zone.name for zone in find_zones(sysfs.root)] == ["package-0", "dram"]
    reading = step(sysfs, second, p0=150, p0_2=60, p0_0=99, p1=999)  # p0 wrapped at 1000
    assert reading.energy_mj == pytest.approx((250 + 50) / 1e3)
    assert reading.source == "rapl:package-0+dram"
    assert (reading.compute_mj, reading.radio_mj, reading.idle_mj) == (None, None, None)


def test_a_package_that_only_the_mmio_tree_shows_counts(sysfs: Any, second: FrameActivity) -> None:
    folder = f"{ZONES}/intel-rapl-mmio:0"
    sysfs.write(folder, name="package-0", energy_uj=10, max_energy_range_uj=WRAP_UJ)
    meter = RaplMeter(find_zones(sysfs.root))
    meter.begin()
    sysfs.write(folder, energy_uj=5010)
    assert meter.end(second).energy_mj == 5


def test_zones_are_found_where_the_kernel_nests_them(sysfs: Any) -> None:
    top = f"{ZONES}/intel-rapl/intel-rapl:0"
    sysfs.write(top, name="package-0", energy_uj=1)
    sysfs.write(f"{top}/intel-rapl:0:0", name="dram", energy_uj=1)
    sysfs.write(f"{top}/intel-rapl:0:1", name="core", energy_uj=1)
    assert [zone.name for zone in find_zones(sysfs.root)] == ["package-0", "dram"]


def test_memory_of_two_packages_is_two_zones(sysfs: Any) -> None:
    for n in (0, 1):
        package(sysfs, n, 1000 * n)
        sysfs.write(f"{ZONES}/intel-rapl:{n}:0", name="dram", energy_uj=1)
    names = [zone.name for zone in find_zones(sysfs.root)]
    assert names == ["package-0", "package-1", "dram", "dram"]


@pytest.mark.parametrize("name", ["package-0-die-{}", "package-{}"])
def test_a_counter_shown_by_two_zones_counts_once(
    sysfs: Any, second: FrameActivity, name: str
) -> None:
    package(sysfs, 0, 5_000_000, name=name.format(0))
    package(sysfs, 1, 5_000_000, name=name.format(1))
    reading = step(sysfs, second, p0=5_080_000, p1=5_080_000)
    assert reading.energy_mj == pytest.approx(80)
    assert reading.source == "rapl:" + name.format(0)


def test_dies_with_counters_of_their_own_are_summed(sysfs: Any, second: FrameActivity) -> None:
    package(sysfs, 0, 5_000_000, name="package-0-die-0")
    package(sysfs, 1, 5_000_000, name="package-0-die-1")  # alike by chance, at first
    assert step(sysfs, second, p0=5_080_000, p1=5_030_000).energy_mj == pytest.approx(110)


def test_two_packages_of_one_name_are_two(sysfs: Any, second: FrameActivity) -> None:
    package(sysfs, 0, 5_000_000, name="package-0")
    package(sysfs, 1, 7_000_000, name="package-0")
    assert step(sysfs, second, p0=5_080_000, p1=7_030_000).energy_mj == pytest.approx(110)


def test_a_mirrored_counter_that_wraps_counts_once(sysfs: Any, second: FrameActivity) -> None:
    for n in (0, 1):
        package(sysfs, n, WRAP_UJ - 20_000)
    assert step(sysfs, second, p0=30_000, p1=30_000).energy_mj == pytest.approx(50)


def originals(mirrors: Mirrors, *looks: list[tuple[int, int] | None]) -> list[int]:
    for look in looks:
        mirrors.watch(look)
    return mirrors.originals(looks[0], looks[-1])


def test_one_of_two_mirrors_read_just_after_it_wrapped() -> None:
    mirrors = Mirrors([WRAP_UJ, WRAP_UJ])
    wrapping = [(WRAP_UJ - 40, WRAP_UJ - 40), (20, 20)]
    assert originals(mirrors, wrapping, [(9_000, 9_000), (9_000, 9_000)]) == [0]
    assert not mirrors.decided
    assert originals(mirrors, wrapping, [(1_000, 1_000), (900_000, 900_000)]) == [0, 1]
    assert mirrors.decided


def test_a_mirror_that_is_an_update_behind_is_one() -> None:
    """60 W for 100 ms: 6 J, and 60 mJ an update."""
    began = [(5_000_000, 5_060_000), (5_000_000, 5_000_000)]
    ended = [(11_000_000, 11_000_000), (10_940_000, 10_940_000)]
    mirrors = Mirrors([WRAP_UJ, WRAP_UJ])
    assert originals(mirrors, began, ended) == [0]
    assert originals(mirrors, ended, began) == [0, 1]  # nothing was added that explains it


def test_a_counter_that_was_not_read_is_no_mirror() -> None:
    look = [(5, 5), None]
    assert originals(Mirrors([WRAP_UJ] * 2), look, [(9, 9), (9, 9)]) == [0, 1]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_as_many_counters_as_there_are_values(source: list[int]) -> None:
    """Zone k shows counter `source[k]`; counters are far apart."""
    began = [(10**9 * (s + 1), 10**9 * (s + 1) + 50) for s in source]
    ended = [
        (first + 10**6 * s, second + 10**6 * s)
        for (first, second), s in zip(began, source, strict=True)
    ]
    found = originals(Mirrors([WRAP_UJ] * len(source)), [*began], [*ended])
    assert sorted(source[i] for i in found) == sorted(set(source))


@pytest.mark.parametrize("energy_uj", [0, 123_456])
def test_a_counter_that_stands_still_measures_nothing(
    sysfs: Any, second: FrameActivity, energy_uj: int
) -> None:
    package(sysfs, 0, energy_uj)
    assert step(sysfs, second).energy_mj is None
    assert [zone.name for zone in stuck_zones(find_zones(sysfs.root), 0.01)] == ["package-0"]


def test_one_package_that_stands_still_leaves_no_figure(sysfs: Any, second: FrameActivity) -> None:
    package(sysfs, 0, 100)
    package(sysfs, 1, 0)
    assert step(sysfs, second, p0=900).energy_mj is None


def test_memory_that_never_moves_is_left_out_and_not_named(
    sysfs: Any, second: FrameActivity
) -> None:
    package(sysfs, 0, 100)
    sysfs.write(f"{ZONES}/intel-rapl:0:0", name="dram", energy_uj=0)
    reading = step(sysfs, second, p0=2100)
    assert (reading.energy_mj, reading.source) == (2, "rapl:package-0")


def test_memory_that_moved_before_leaves_no_figure(sysfs: Any, second: FrameActivity) -> None:
    package(sysfs, 0, 100)
    dram = f"{ZONES}/intel-rapl:0:0"
    sysfs.write(dram, name="dram", energy_uj=10)
    meter = RaplMeter(find_zones(sysfs.root))
    energies = []
    for package_uj, dram_uj in ((1100, 20), (2100, 20), (3100, 30)):
        meter.begin()
        sysfs.write(f"{ZONES}/intel-rapl:0", energy_uj=package_uj)
        sysfs.write(dram, energy_uj=dram_uj)
        energies.append(meter.end(second).energy_mj)
    assert energies == [pytest.approx(1.01), None, pytest.approx(1.01)]


@pytest.mark.parametrize("range_uj", [WRAP_UJ, 0, None])
def test_a_restarted_counter_measures_nothing(
    sysfs: Any, second: FrameActivity, range_uj: int | None
) -> None:
    """After a suspend it starts again at 0, far from where it would wrap."""
    package(sysfs, 0, 200_000_000_000)
    where = sysfs.write(f"{ZONES}/intel-rapl:0", max_energy_range_uj=range_uj)
    if range_uj is None:
        (where / "max_energy_range_uj").unlink()
    assert step(sysfs, second, p0=1_000_000).energy_mj is None


def test_a_zone_without_a_range_counts_forwards(sysfs: Any, second: FrameActivity) -> None:
    package(sysfs, 0, 100, max_energy_range_uj=0)
    assert step(sysfs, second, p0=1100).energy_mj == 1


def test_a_leap_that_no_processor_spends_measures_nothing(
    sysfs: Any, second: FrameActivity
) -> None:
    package(sysfs, 0, 100)
    assert step(sysfs, second, p0=5_000_000_000).energy_mj is None


def test_a_window_that_may_hold_two_wraps_measures_nothing(sysfs: Any) -> None:
    package(sysfs, 0, 100)
    assert step(sysfs, FrameActivity(0, 3600, 0, 0, 0, 0, 0), p0=900_000).energy_mj is None


@pytest.mark.parametrize("text", [None, "", "n/a", "-5"])
def test_a_counter_that_cannot_be_read_measures_nothing(
    sysfs: Any, second: FrameActivity, text: str | None
) -> None:
    package(sysfs, 0, 100)
    package(sysfs, 1, 9_000_000)
    meter = RaplMeter(find_zones(sysfs.root))
    meter.begin()
    package(sysfs, 0, 1100)
    where = sysfs.root / ZONES / "intel-rapl:1" / "energy_uj"
    where.unlink() if text is None else where.write_text(text)
    assert meter.end(second).energy_mj is None


def test_a_package_that_was_never_readable_is_not_taken_for_a_mirror(
    sysfs: Any, second: FrameActivity
) -> None:
    package(sysfs, 0, 100)
    package(sysfs, 1, 0)
    (sysfs.root / ZONES / "intel-rapl:1" / "energy_uj").unlink()
    assert step(sysfs, second, p0=1100).energy_mj is None


@given(
    start=st.integers(0, WRAP_UJ),
    spent=st.lists(st.integers(1, int(MAX_W * 1e6)), min_size=1, max_size=20),
)
def test_any_run_through_any_number_of_wraps(start: int, spent: list[int]) -> None:
    zone = RaplZone(path=None, name="package-0", range_uj=WRAP_UJ)  # type: ignore[arg-type]
    values = [start]
    for energy_uj in spent:
        values.append((values[-1] + energy_uj) % WRAP_UJ)
    assert [zone.spent_uj(a, b, 1.0) for a, b in pairwise(values)] == spent


@given(a=st.integers(0, 2 * WRAP_UJ), b=st.integers(0, 2 * WRAP_UJ), s=st.floats(0, 1e5))
def test_a_figure_is_never_negative_nor_more_than_a_processor_spends(
    a: int, b: int, s: float
) -> None:
    zone = RaplZone(path=None, name="package-0", range_uj=WRAP_UJ)  # type: ignore[arg-type]
    spent = zone.spent_uj(a, b, s)
    assert spent is None or 0 <= spent / 1e6 <= 100 + MAX_W * s
