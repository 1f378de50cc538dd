"""A plug-in's meter: what it promises is kept for it, and what it raises ends no drive."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from distributions import install

from cnn.common.errors import ConfigError
from testbed.meters.available import open_meter
from testbed.meters.meter import EnergyReading, FrameActivity, Meter

MODULE = """
from testbed import EnergyReading, Meter

class Bench(Meter):
    def __init__(self, setting):
        self.source, self.tail_ms, self.setting = "bench", 40, setting
    def begin(self):
        if self.setting == "deaf":
            raise OSError("no answer")
    def end(self, activity):
        if self.setting == "late":
            raise TimeoutError
        mj = float(self.setting) if self.setting.lstrip("-") else 5
        return EnergyReading(None, None, None, mj, self.source)
    def close(self):
        raise RuntimeError("closed twice")

def numbers(setting):
    return [1, 2]

def refuses(setting):
    raise PermissionError(13, "Permission denied", setting)
"""
ACTIVITY = FrameActivity(0.0, 0.1, 20.0, 5.0, 8.0, 900.0, 0.0)


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    points = (
        "lab-bench = bench_plug:Bench\nnumbers = bench_plug:numbers\nlocked = bench_plug:refuses"
    )
    install(tmp_path, "bench-plug", MODULE, {"sliproad.meters": points})
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def read(meter: Meter) -> EnergyReading:
    meter.begin()
    return meter.end(ACTIVITY)


def test_the_setting_is_what_follows_the_first_colon() -> None:
    meter = open_meter("lab-bench:7.5", "")
    assert read(meter) == EnergyReading(None, None, None, 7.5, "lab-bench:bench")
    assert meter.tail_ms == 40
    assert read(open_meter("lab-bench", "")).energy_mj == 5


@pytest.mark.parametrize("setting", ["nan", "inf", "-1", "late", "a:b"])
def test_a_window_that_it_cannot_measure_is_empty_and_said_once(
    setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    meter = open_meter(f"lab-bench:{setting}", "")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert read(meter) == EnergyReading(None, None, None, None, "lab-bench:bench")
        meter.close()
    (record,) = caplog.records
    assert "meter lab-bench of bench-plug 1.0 (bench_plug:Bench) raised" in record.getMessage()


def test_a_failing_start_or_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), open_meter("lab-bench:deaf", "") as meter:
        meter.begin()
    assert "raised OSError (no answer)" in caplog.text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("numbers", "raised TypeError (it opens list, no testbed.Meter)"),
        ("locked:/dev/x", "raised PermissionError (Permission denied)"),
    ],
)
def test_one_that_does_not_open_is_one_line(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"of bench-plug 1.0") as caught:
        open_meter(name, "")
    assert said in caught.value.given


def test_an_unknown_name_lists_the_plug_ins() -> None:
    for name in ("lab-banch", "model:x", "rapl:0"):
        with pytest.raises(ConfigError, match=r"none, lab-bench, locked, numbers that"):
            open_meter(name, "jetson-nano+lte")
