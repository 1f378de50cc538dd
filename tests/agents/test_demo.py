"""The demonstration, short but whole: real training, real processes, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from testbed.records.parquet import read_records

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


def start(out: Path, frames: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "agents", "demo", "--out", str(out), "--json"]
    command += ["--frames", str(frames), "--steps", "40000", "--episodes", "3"]
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


@pytest.mark.slow
def test_demo_runs_whole(tmp_path: Path) -> None:
    process = start(tmp_path, FRAMES)
    output, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors[-2000:]
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
    report = Path(result["report"]).read_text()
    assert "agent, live" in report
    assert "agent, replayed" in report


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, 3000)
    own = psutil.Process(process.pid)
    children: list[psutil.Process] = []
    until_s = time.monotonic() + 200
    while len(children) < 3:  # server, link and device
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < until_s
        time.sleep(0.2)
        children = own.children(recursive=True)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
