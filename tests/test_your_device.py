"""The guide "Your device": its files and its commands, in its order, at a small size."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sockets import free_port
from waiting import wait_until

from testbed.meters.cost_model import CostModel
from testbed.records.record_file import read_all

GUIDE = Path(__file__).parents[1] / "docs" / "your-device.md"
TEXT = GUIDE.read_text()
SMALL = {
    "testbed campaign": "--rounds 1 --repetitions 1 --warm-up 0 "
    "--condition 40/20 --condition 90/10",
    "agent train": "--steps 2048",
    "agent evaluate": "--episodes 2",
}
"""What is added to a command, so that it ends soon."""


def commands() -> list[str]:
    """The lines of the guide's blocks that start with ``sliproad``, and the last inline one."""
    blocks = re.findall(r"^```sh\n(.*?)^```", TEXT, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("sliproad")]
    return [*lines, *re.findall(r"`(sliproad testbed fit --records records [^`]*)`", TEXT)]


def files() -> dict[str, str]:
    """The guide's files, by name."""
    return dict(re.findall(r"`([\w-]+\.toml)`[^`]*:\n\n```toml\n(.*?)```", TEXT, re.S))


def words_of(line: str, port: int) -> list[str]:
    """A command of the guide as this test runs it."""
    line = line.replace("mec.example:8001", f"localhost:{port}").replace("0.0.0.0", "127.0.0.1")
    line = line.replace("--port 8001", f"--port {port}")
    more = next((more for name, more in SMALL.items() if f"sliproad {name} " in line), "")
    return [sys.executable, "-m", "agents", *shlex.split(f"{line} {more}")[1:]]


@pytest.mark.slow(70)
def test_every_command_of_the_guide_runs(tmp_path: Path) -> None:
    port, found = free_port(), files()
    assert set(found) == {"pi-power.toml", "device.toml"}
    for name, text in found.items():
        (tmp_path / name).write_text(text.replace("mec.example:8001", f"localhost:{port}"))
    lines = commands()
    assert len(lines) == 11
    server: subprocess.Popen[str] | None = None
    try:
        for line in lines:
            words = words_of(line, port)
            if " serve " in line:
                server = subprocess.Popen(words, cwd=tmp_path, text=True, stderr=subprocess.PIPE)
            elif line.endswith("device --config device.toml"):
                drive(words, tmp_path)
            else:
                done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
                assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            if "new-scenario" in line:  # short drives, so that baselines are tuned soon
                text = (tmp_path / "pi.toml").read_text()
                assert "[timing]\n" in text
                text = text.replace("[timing]\n", "[timing]\nn_frames = 10\n")
                (tmp_path / "pi.toml").write_text(text)
            policy = tmp_path / "runs/pi/agent.policy"
            if policy.exists() and not (tmp_path / "agent.policy").exists():
                (tmp_path / "agent.policy").write_bytes(policy.read_bytes())
    finally:
        if server is not None:
            server.kill()
            server.communicate()
    profile = CostModel.load(tmp_path / "pi.json")
    assert profile.power_source.startswith("our Pi 4 B")
    assert profile.radio.name == "lte"
    assert f"server localhost:{port}" in profile.machine
    assert CostModel.load(tmp_path / "pi-2.json").busy_mw == 4600


def drive(words: list[str], folder: Path) -> None:
    """Let the unattended device run for some seconds, then end it as a supervisor would."""
    with subprocess.Popen(words, cwd=folder, text=True, stderr=subprocess.PIPE) as device:
        wait_until(lambda: any((folder / "records").glob("*")) or device.poll() is not None)
        with pytest.raises(subprocess.TimeoutExpired):
            device.wait(8)
        device.send_signal(signal.SIGTERM)
        said = device.communicate(timeout=60)[1]
    assert device.returncode == 0, said
    rows = read_all(folder / "records")
    assert sum(len(run) for run in rows) > 10
    assert all(run.source["providers"] == ["CPUExecutionProvider"] for run in rows)
