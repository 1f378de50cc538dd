"""The demonstration, short but whole: real training, real processes, nothing left behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from agents.demo import run_demo
from testbed.device.processor import PaceKept
from testbed.records.record_file import read_records
from testbed.server.server_process import ServerProcess

ROOT = Path(__file__).parents[2]
FRAMES = 10


def short_drives(folder: Path) -> Path:
    """The default scenario with drives of 10 frames instead of 300."""
    text = (ROOT / "offload_env" / "scenarios" / "urban-5g.toml").read_text()
    assert "[timing]\n" in text
    assert "n_frames" not in text
    path = folder / "short.toml"
    path.write_text(text.replace("[timing]\n", "[timing]\nn_frames = 10\n"))
    return path


LIVE_ALONE = """
from agents import demo
from agents.baselines.rules import full_local
from agents.cli import main
from offload_env.world import build_world

def live(scenario, out, frames, steps, episodes, seed, console):
    world = build_world(scenario, "test")
    runs = {demo.AGENT: (full_local(world.topology), ("--action", "e5s5"))}
    demo._live(world, runs, frames, seed, out, console)

demo.run_demo = live
main()
"""
"""The demo without training and comparison, which an interrupted live part has no need of."""


def start(out: Path, frames: int, *python: str) -> subprocess.Popen[str]:
    command = [sys.executable, *(python or ("-m", "agents")), "demo", "--out", str(out), "--json"]
    command += ["--frames", str(frames), "--steps", "8000", "--episodes", "2"]
    command += ["--scenario", str(short_drives(out))]
    environment = {k: v for k, v in os.environ.items() if k != "SLIPROAD_DATA"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(demo: subprocess.Popen[str], number: int) -> list[psutil.Process]:
    """The demo's children and theirs, once there are so many."""
    own = psutil.Process(demo.pid)
    until_s = time.monotonic() + 600
    while True:
        assert demo.poll() is None, demo.communicate()[1][-2000:]
        children = own.children(recursive=True)
        if len(children) >= number:
            return children
        assert time.monotonic() < until_s
        time.sleep(0.1)


@pytest.fixture
def make_busy() -> Iterator[Callable[[], None]]:
    """Gives every processor something else to do."""
    loops: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        for _ in range(os.cpu_count() or 1):
            loops.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))

    yield begin
    for loop in loops:
        loop.kill()
        loop.wait()


@pytest.mark.slow(60)
@pytest.mark.timeout(1800)
def test_demo_runs_whole_on_a_machine_that_becomes_busy(
    tmp_path: Path, make_busy: Callable[[], None]
) -> None:
    """It ends well, and says whether its live figures are worth anything."""
    process = start(tmp_path, FRAMES)
    processes_of(process, 1)  # the live part begins, where it matters
    make_busy()
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


@pytest.mark.slow(15)
def test_a_live_part_that_fails_leaves_policy_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real server process, told to start from a network that is not there."""

    class Homeless(ServerProcess):
        def __init__(self, bundle: Path | None = None) -> None:
            super().__init__(tmp_path / "nowhere")

    monkeypatch.setattr("agents.live_run.ServerProcess", Homeless)
    monkeypatch.delenv("SLIPROAD_DATA", raising=False)
    scenario = str(short_drives(tmp_path))
    result = run_demo(scenario, tmp_path, 3, 5_000, 2, 0, Console(file=io.StringIO()))
    assert (result["live"], result["pace"]) == (None, None)
    assert "could not be measured" in result["live_text"]
    assert "could not be measured" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "train" / "agent.policy").is_file()
    assert set(result["policies"]) >= {"agent", "full-local"}


@pytest.mark.slow(25)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, 100, "-c", LIVE_ALONE)
    children = processes_of(process, 3)  # server, link and device
    process.send_signal(number)
    process.communicate()
    assert process.returncode != 0
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
