"""What `doctor` says of the meters, and opening one by name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cnn.common.errors import ConfigError
from testbed.cli.doctor_command import Finding, examine
from testbed.meters import available
from testbed.meters.available import MeterInfo, find_meters, open_meter

PACKAGE = "class/powercap/intel-rapl:{}"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "load_nvml", lambda: None)


def info(sysfs: Any, name: str) -> MeterInfo:
    return {found.name: found for found in find_meters(sysfs.root)}[name]


def meter_findings(root: Path) -> dict[str, Finding]:
    return {f.name: f for f in examine(sysfs=root, port=0) if "meter" in f.name}


def package(sysfs: Any, number: int, name: str = "") -> None:
    sysfs.write(PACKAGE.format(number), name=name or f"package-{number}", energy_uj=1000)


@contextmanager
def running(sysfs: Any, *folders: str) -> Iterator[None]:
    """Counters that a processor keeps moving."""
    stop = threading.Event()

    def run() -> None:
        value = 2000
        while not stop.wait(0.002):
            value += 50
            for folder in folders:
                part = sysfs.root / folder / "energy_uj.part"
                part.write_text(str(value))
                part.replace(part.with_suffix(""))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_machine_without_a_meter(sysfs: Any) -> None:
    assert not any(found.found for found in find_meters(sysfs.root))
    for name in ("rapl", "jetson", "battery", "nvml"):
        with pytest.raises(ConfigError, match="does not have"):
            open_meter(name, "jetson-nano", sysfs.root)
    assert not meter_findings(sysfs.root)["any hardware meter"].ok


def test_a_counter_that_moves(sysfs: Any) -> None:
    package(sysfs, 0)
    with running(sysfs, PACKAGE.format(0)):
        found = meter_findings(sysfs.root)
    assert found["meter rapl"].ok
    assert "any hardware meter" not in found


def test_a_counter_that_does_not_move(sysfs: Any) -> None:
    package(sysfs, 0)
    found = meter_findings(sysfs.root)["meter rapl"]
    assert not found.ok
    assert found.found == "package-0: counter does not move"
    assert found.hint


def test_memory_that_does_not_move_is_said(sysfs: Any) -> None:
    package(sysfs, 0)
    sysfs.write(PACKAGE.format("0:0"), name="dram", energy_uj=0)
    with running(sysfs, PACKAGE.format(0)):
        found = info(sysfs, "rapl")
    assert found.readable
    assert "dram does not move and is left out" in found.note


def test_a_counter_shown_twice_is_said(sysfs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "stuck_zones", lambda zones: [])
    for n in (0, 1):
        package(sysfs, n, name=f"package-0-die-{n}")
    assert "package-0-die-1 shows another one's counter" in info(sysfs, "rapl").note


def test_a_counter_that_is_not_readable_without_root(
    sysfs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(sysfs, 0)
    read_text = Path.read_text

    def as_a_user(path: Path, *args: Any, **kwargs: Any) -> str:
        if path.name == "energy_uj":  # mode 0400, which root does not feel
            raise PermissionError(13, "Permission denied")
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", as_a_user)
    found = meter_findings(sysfs.root)["meter rapl"]
    assert not found.ok
    assert found.found == "package-0: energy_uj is not readable without root"
    assert "chmod" in found.hint


@pytest.mark.parametrize(
    ("text", "why"), [(None, "is missing"), ("", "no number"), ("\udcff", "gives an error")]
)
def test_other_reasons_to_read_nothing(sysfs: Any, text: str | None, why: str) -> None:
    package(sysfs, 0)
    file = sysfs.root / PACKAGE.format(0) / "energy_uj"
    file.unlink() if text is None else file.write_text(text, errors="surrogateescape")
    assert why in info(sysfs, "rapl").note
    assert not info(sysfs, "rapl").readable


def test_a_jetson(sysfs: Any) -> None:
    files = {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 600}
    where = sysfs.write("class/hwmon/hwmon1", **files)
    assert info(sysfs, "jetson").note == "VDD_IN: module, without its carrier board"
    with open_meter("jetson", "jetson-nano", sysfs.root) as meter:
        assert meter.source == "jetson:VDD_IN"
    (where / "curr1_input").unlink()
    assert info(sysfs, "jetson").note == "VDD_IN: curr1_input is missing"
    (where / "in1_label").write_text("VDD_CPU")
    assert "no known board: VDD_CPU" in info(sysfs, "jetson").note


def test_a_battery(sysfs: Any) -> None:
    files = {"type": "Battery", "status": "Discharging", "power_now": 5_000_000}
    sysfs.write("class/power_supply/BAT0", **files)
    assert info(sysfs, "battery").readable
    with open_meter("battery", "jetson-nano", sysfs.root) as meter:
        assert meter.source == "battery:BAT0"
    sysfs.write("class/power_supply/BAT0", status="Full")
    assert info(sysfs, "battery").note == "BAT0: not discharging (BAT0 full)"


def test_a_gpu_that_raises_is_no_meter(sysfs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "load_nvml", lambda: SimpleNamespace())
    assert not info(sysfs, "nvml").found
    with pytest.raises(ConfigError, match="does not have"):
        open_meter("nvml", "jetson-nano", sysfs.root)
