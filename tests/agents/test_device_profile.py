"""One file is a device: the same profile through scenario, emulated pace, power meter and fit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from agents.export_policy import task_of
from agents.live_run import FrameSource, _settings
from cnn.common.errors import ConfigError
from offload_env.scenario import Scenario, anchored, load_scenario
from offload_env.world import build_world
from testbed.deploy.device_file import load_device_file
from testbed.device.processor import Pace
from testbed.meters.available import open_meter
from testbed.meters.cost_model import CostModel, load_profile
from testbed.meters.meter import FrameActivity
from testbed.meters.power import ModelMeter, RadioPower, power_profile
from testbed.records.record_file import read_records

MACHINE = "Cortex-A72, 4 cores; onnxruntime 1.32.0 (CPUExecutionProvider); server mec:8001"


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """A made-up device: the shipped model's times, fifty times slower, its own powers."""
    shipped = load_profile("shipped")
    own = replace(
        shipped,
        name="pi-4",
        source="measured: campaign 1",
        slowdown=50.0,
        idle_mw=2850.0,
        busy_mw=4600.5,
        power_source="our meter",
        radio=RadioPower("modem.toml", 50.0, 300.0, 0.0, 0.0, "our other meter"),
        machine=MACHINE,
    )
    path = tmp_path / "pi.json"
    own.save(path)
    return path


@pytest.fixture
def scenario(tmp_path: Path, profile: Path) -> Scenario:
    path = tmp_path / "pi.toml"
    path.write_text(
        f'[device]\ncost_model = "{profile}"\n[link]\ntrain_traces = 1\ntest_traces = 1\n'
    )
    return load_scenario(path)


def test_the_file_keeps_everything(profile: Path) -> None:
    own = CostModel.load(profile)
    assert own.machine == MACHINE
    assert load_profile(str(profile)) == own
    assert "machine" not in load_profile("shipped").to_json()  # byte for byte what it was
    raw = json.loads(profile.read_text())
    profile.write_text(json.dumps({**raw, "machine": 7}))
    with pytest.raises(ConfigError, match="no text"):
        CostModel.load(profile)


def test_scenario_pace_and_meter_take_the_same_figures(profile: Path, scenario: Scenario) -> None:
    own, world = CostModel.load(profile), build_world(scenario, "test")
    assert world.cost == own
    pace = Pace.load(str(profile))
    assert pace.full_local_ms == pytest.approx(50 * own.device_ms[own.topology.main])
    assert pace.full_local_ms == pytest.approx(world.delay_ref_ms)
    power = power_profile(str(profile))
    assert (power.device.idle_mw, power.device.busy_mw) == (own.idle_mw, own.busy_mw)
    assert (power.device.origin, power.radio) == ("our meter", own.radio)
    meter = open_meter("model", str(profile))
    activity = FrameActivity(
        0, 1, compute_ms=10, wait_ms=50, exchange_ms=60, sent_bytes=1000, tail_ms=0
    )
    compute, idle, radio = 4600.5 * 0.010, 2850 * 0.050, 300 * 0.060 + 50e-6 * 8000
    assert meter.end(activity).energy_mj == pytest.approx(compute + idle + radio)


def test_the_demos_live_part_drives_it(tmp_path: Path, profile: Path, scenario: Scenario) -> None:
    """Its device gets the world's device as one file, for pace and powers."""
    world = build_world(scenario, "test")
    written = tmp_path / "run.device.json"
    world.cost.save(written)
    options = _settings(world, FrameSource("render", 0), 10, written, tmp_path / "run.parquet")
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given["--pace"] == given["--power"] == str(written)
    assert Pace.load(given["--pace"]) == Pace.load(str(profile))


def test_a_policy_does_not_name_files_of_the_training_machine(
    tmp_path: Path, profile: Path, scenario: Scenario
) -> None:
    device = replace(scenario.device, power=f"{profile}+lte")
    world = build_world(replace(scenario, device=device), "test")
    assert world.cost.radio == power_profile("jetson-nano+lte").radio
    assert world.cost.power_source == "our meter"
    assert task_of(world).power == ""
    assert anchored(world.scenario) == world.scenario  # its paths are absolute


def test_relative_paths_in_scenario_and_device_file(
    tmp_path: Path, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pi.toml").write_text('[device]\ncost_model = "pi.json"\npower = "pi.json+lte"\n')
    device = anchored(load_scenario("pi.toml")).device
    assert (device.cost_model, device.power) == (str(profile), f"{profile}+lte")
    (tmp_path / "device.toml").write_text(
        '[bundles]\naction = "e5s2"\n[frames]\npace = "pi.json"\n[meter]\npower = "pi.json+lte"\n'
    )
    monkeypatch.chdir("/")
    file = load_device_file(tmp_path / "device.toml")
    assert (file.frames.pace, file.meter.power) == (str(profile), f"{profile}+lte")


@pytest.mark.slow(10)
def test_a_real_device_runs_from_it_and_its_records_are_fit_to_it(
    tmp_path: Path, profile: Path
) -> None:
    def testbed(*words: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "testbed", *words, "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    device = ("device", "--local-only", "--action", "e5s5", "--n-frames", "12", "--fps", "0")
    files = ("--pace", "pi.json", "--power", "pi.json", "--out", "rec.parquet")
    ran = testbed(*device, *files)
    assert ran["providers"] == ["CPUExecutionProvider"]
    assert ran["energy_source"] == "model:pi.json+modem.toml"
    own = CostModel.load(profile)
    records = read_records(tmp_path / "rec.parquet")
    assert records.source["providers"] == ["CPUExecutionProvider"]
    assert records.source["device_power"] == asdict(power_profile(str(profile)).device)
    local_ms = 50 * own.device_ms[own.topology.main]
    assert ran["delay_ms"] == pytest.approx(local_ms, rel=0.3)  # it keeps the profile's pace
    assert ran["energy_mj"] == pytest.approx(4600.5 * ran["delay_ms"] / 1e3, rel=0.05)
    # Where the fit is made the device's file need not be.
    (tmp_path / "elsewhere").mkdir()
    profile.rename(tmp_path / "elsewhere" / "base.json")
    fit = ("fit", "--records", "rec.parquet", "--base", "elsewhere/base.json", "--out", "new.json")
    testbed(*fit)
    new = CostModel.load(tmp_path / "new.json")
    assert (new.idle_mw, new.busy_mw, new.power_source) == (2850.0, 4600.5, "our meter")
    assert "(CPUExecutionProvider)" in new.machine
    assert isinstance(open_meter("model", str(tmp_path / "new.json")), ModelMeter)
