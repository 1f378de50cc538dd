"""The systemd units: accepted by systemd where it is there, and true to the command line."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import typer

from agents.cli import app
from cnn.common.console import EXIT_USER_ERROR
from testbed.deploy.device_file import load_device_file
from testbed.deploy.systemd import notify

UNITS = sorted((Path(__file__).parents[3] / "examples" / "systemd").glob("*.service"))


def read(path: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(path)
    return unit


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_units_start_a_command_that_exists(path: Path) -> None:
    unit = read(path)
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert program == "/opt/sliproad/bin/sliproad"
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("x", words)
    assert unit["Service"]["Restart"] == "always"
    assert unit["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.stem)
def test_an_error_that_stays_is_not_tried_for_ever(path: Path) -> None:
    """Exit code 2 is the user's to fix (`cnn.common.console`)."""
    assert f"RestartPreventExitStatus={EXIT_USER_ERROR}" in path.read_text().splitlines()


def test_the_drop_in_for_mutual_tls_starts_a_command_that_exists() -> None:
    (path,) = UNITS[0].parent.glob("*.service.d/*.conf")
    text = path.read_text().replace("\\\n", "")
    program, *words = shlex.split(re.findall(r"^ExecStart=(.+)$", text, re.M)[0])
    assert program == "/opt/sliproad/bin/sliproad"
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("x", words)


def test_the_recipes_device_records_where_its_unit_may_write() -> None:
    folder = UNITS[0].parent
    file = load_device_file(folder / "device.toml")
    unit = (folder / "sliproad-device.service").read_text()
    state = re.search(r"^StateDirectory=(.*)$", unit, re.M)
    assert state is not None
    assert file.records.folder is not None
    assert Path(file.records.folder).is_relative_to(f"/var/lib/{state[1]}")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_systemd_finds_nothing_wrong(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name  # only the program's path differs from one machine to another
    dropped = path.with_name(path.name + ".d")
    for each in (path, *dropped.glob("*.conf")):
        beside = tmp_path / each.relative_to(path.parent)
        beside.parent.mkdir(exist_ok=True)
        beside.write_text(each.read_text().replace("/opt/sliproad/bin/sliproad", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if path.name in line]
    assert ours == []


def test_systemd_is_told_through_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert listener.recv(100) == b"READY=1"
    notify("WATCHDOG=1")  # nobody listens any more: no error
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")
