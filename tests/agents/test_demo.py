"""The demonstration, short but whole: real training, real processes, nothing left behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from agents.demo import run_demo
from testbed.device.pace import PaceKept
from testbed.records.record_file import read_records
from testbed.server.server_process import ServerProcess

ROOT = Path(__file__).parents[2]
FRAMES = 25


def short_drives(folder: Path) -> Path:
    """The default scenario with drives of 30 frames instead of 300."""
    text = (ROOT / "offload_env" / "scenarios" / "urban-5g.toml").read_text()
    assert "[timing]\n" in text
    assert "n_frames" not in text
    path = folder / "short.toml"
    path.write_text(text.replace("[timing]\n", "[timing]\nn_frames = 30\n"))
    return path


def start(out: Path, frames: int, steps: int = 40_000) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "agents", "demo", "--out", str(out), "--json"]
    command += ["--frames", str(frames), "--steps", str(steps), "--episodes", "2"]
    command += ["--scenario", str(short_drives(out))]
    environment = {k: v for k, v in os.environ.items() if k != "SLIPROAD_DATA"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Every processor has something else to do."""
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(os.cpu_count() or 1)
    ]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("busy_machine")
def test_demo_runs_whole_on_a_busy_machine(tmp_path: Path) -> None:
    """It ends well, and says whether its live figures are worth anything."""
    process = start(tmp_path, FRAMES)
    output, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    assert "Traceback" not in errors
    result = json.loads(output.strip().splitlines()[-1])
    for figures in result["policies"].values():
        assert set(figures) == {"delay_ms", "energy_mj", "accuracy", "cost"}
    live = result["live"]
    assert (live["frames"], live["policy"]) == (FRAMES, "agent")
    records = read_records(tmp_path / "live-agent.parquet")
    assert len(records) == FRAMES
    assert live["delay_ms"] == pytest.approx(records.numbers("delay_ms").mean())
    assert live["energy_mj"] == pytest.approx(records.numbers("energy_mj").mean())
    assert live["accuracy"] == pytest.approx((records.numbers("correct") == 1).mean())
    pace = result["pace"]
    # Two policies; a frame that is not skipped has at least one section.
    assert pace["sections"] > 0
    assert pace["valid"] == (pace["late_share"] <= 0.02)
    assert ("not valid on this machine" in output) != pace["valid"]
    full_local = read_records(tmp_path / "live-full-local.parquet")
    assert PaceKept.of_source(full_local.source) is not None
    report = Path(result["report"]).read_text()
    assert "agent, live" in report
    assert "agent, replayed" in report


@pytest.mark.slow
def test_a_live_part_that_fails_leaves_policy_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real server process, told to start from a network that is not there."""

    class Homeless(ServerProcess):
        def __init__(self) -> None:
            super().__init__(bundle=tmp_path / "nowhere")

    monkeypatch.setattr("agents.live_run.ServerProcess", Homeless)
    monkeypatch.delenv("SLIPROAD_DATA", raising=False)
    scenario = str(short_drives(tmp_path))
    result = run_demo(scenario, tmp_path, 3, 5_000, 2, 0, Console(file=io.StringIO()))
    assert (result["live"], result["pace"]) == (None, None)
    assert "could not be measured" in result["live_text"]
    assert "could not be measured" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "train" / "agent.policy").is_file()
    assert set(result["policies"]) >= {"agent", "full-local"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, 300, steps=2000)
    own = psutil.Process(process.pid)
    children: list[psutil.Process] = []
    until_s = time.monotonic() + 600
    while len(children) < 3:  # server, link and device
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < until_s
        time.sleep(0.2)
        children = own.children(recursive=True)
    process.send_signal(number)
    process.communicate()
    assert process.returncode != 0
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
