"""The command line as a user meets it: help, exit codes, one-line errors, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import cnn
from agents.cli import app
from cnn.bundle import embedded_bundle_path

ROOT = Path(__file__).parents[1]
ROOT_COMMAND = typer.main.get_command(app)

# Every command that the project promises, with options that scripts rely on.
PROMISED = {
    "cnn train": {"--data", "--out", "--seed", "--resume", "--json"},
    "cnn evaluate": {"--data", "--bundle", "--json"},
    "cnn table": {"--data", "--out", "--json"},
    "cnn export": {"--out", "--json"},
    "cnn info": {"--bundle", "--json"},
    "testbed serve": {"--port", "--bundle"},
    "testbed device": {"--server", "--policy", "--action", "--n-frames", "--seed", "--json"},
    "testbed campaign": {"--out", "--seed", "--json"},
    "testbed fit": {"--records", "--base", "--out", "--seed", "--json"},
    "testbed link": {"--server", "--trace", "--generate", "--rate-mbps", "--seed", "--json"},
    "testbed traces import": {"--format", "--out", "--rtt-ms", "--json"},
    "testbed keygen": {"--out", "--json"},
    "testbed sign": {"--key", "--json"},
    "testbed doctor": {"--json"},
    "agent train": {"--scenario", "--out", "--seed", "--json"},
    "agent evaluate": {"--scenario", "--policy", "--traces", "--frames", "--seed", "--json"},
    "agent export": {"--run", "--out", "--json"},
    "agent estimate": {"--records", "--policy", "--scenario", "--seed", "--json"},
    "agent sweep": {"--scenario", "--floors", "--weights", "--out", "--seed", "--json"},
    "demo": {"--seed", "--json"},
}


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(path, command) of every command that does something."""
    for name, sub in getattr(command, "commands", {}).items():
        if getattr(sub, "commands", None):
            yield from leaves(sub, (*path, name))
        else:
            yield " ".join((*path, name)), sub


COMMANDS = dict(leaves(ROOT_COMMAND))


def options(command: Any) -> set[str]:
    return {o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("-")}


def sliproad(
    *arguments: str | Path, cwd: Path, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run ``sliproad`` in a process of its own, as the console script does."""
    return subprocess.run(
        [sys.executable, "-m", "agents", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_promised_commands_exist_with_their_options(name: str) -> None:
    assert name in COMMANDS
    assert PROMISED[name] <= options(COMMANDS[name])


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_names_and_explains_every_option(name: str) -> None:
    result = CliRunner().invoke(
        app, [*name.split(), "--help"], env={"COLUMNS": "300", "NO_COLOR": "1"}
    )
    assert result.exit_code == 0
    command = COMMANDS[name]
    assert (command.help or "").strip(), "a command without a description"
    for parameter in command.params:
        assert (getattr(parameter, "help", "") or "").strip(), f"{parameter.name} has no help"
        for option in parameter.opts:
            if option.startswith("-"):
                assert option in result.output


@pytest.mark.parametrize("group", ["cnn", "testbed", "agent"])
def test_a_group_alone_shows_its_commands(group: str) -> None:
    result = CliRunner().invoke(app, [group], env={"COLUMNS": "200", "NO_COLOR": "1"})
    for name in ROOT_COMMAND.commands[group].commands:
        assert name in result.output


def test_version(tmp_path: Path) -> None:
    done = sliproad("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"sliproad {cnn.__version__}\n")


def test_json_is_the_last_line_of_standard_output(tmp_path: Path) -> None:
    done = sliproad("cnn", "info", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout.splitlines()[-1])["actions"]) == 20


# --- Bad input -------------------------------------------------------------------------------


def damaged_bundle(folder: Path) -> Path:
    """A copy of the shipped bundle with one bit of one weight turned over."""
    copy = folder / "damaged"
    shutil.copytree(embedded_bundle_path(), copy)
    segment = copy / "segments" / "block3.onnx"
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(bytes(content))
    return copy


def cut_bundle(folder: Path) -> Path:
    """A copy of the shipped bundle with half a manifest."""
    copy = folder / "cut"
    shutil.copytree(embedded_bundle_path(), copy)
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text()[:-100])
    return copy


def garbage_file(folder: Path) -> Path:
    path = folder / "garbage.bin"
    path.write_bytes(bytes(range(256)) * 8)
    return path


def odd_scenario(folder: Path) -> Path:
    path = folder / "odd.toml"
    path.write_text('description = "odd"\n[device]\nwheels = 4\n')
    return path


def header_only(folder: Path) -> Path:
    path = folder / "header.csv"
    path.write_text("trace,time_s,uplink_mbps,rtt_ms\n")
    return path


def pensieve_file(folder: Path) -> Path:
    path = folder / "pensieve.txt"
    path.write_text("0.5\t2.1\n1.0\t2.2\n")
    return path


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


DEVICE = ("testbed", "device", "--n-frames", "5")

Arguments = Callable[[Path], list[str | Path]]

ALONE = ("testbed", "device", "--local-only", "--action", "e1s1")

BAD_INPUT: dict[str, tuple[Arguments, str]] = {
    # what is wrong: (arguments, given a folder for inputs; what the line must name)
    "missing data folder, evaluate": (
        lambda d: ["cnn", "evaluate", "--data", d / "nowhere"],
        "nowhere",
    ),
    "data folder without GTSRB, table": (
        lambda d: ["cnn", "table", "--data", d, "--out", "table.npz"],
        "parquet",
    ),
    "missing data folder, train": (
        lambda d: ["cnn", "train", "--data", d / "nowhere", "--out", "run"],
        "nowhere",
    ),
    "unknown preset": (lambda d: ["cnn", "train", "--preset", "huge"], "huge"),
    "unknown frame encoding": (
        lambda d: [*ALONE, "--frame-encoding", "gif"],
        "jpeg:1..95",
    ),
    "probe budget too large": (
        lambda d: [*ALONE, "--probe-budget", "9999"],
        "probes a minute",
    ),
    "absent video": (
        lambda d: [*ALONE, "--frames", f"camera:{d / 'absent.avi'}"],
        "camera",
    ),
    "unknown training device": (
        lambda d: ["cnn", "train", "--data", d, "--device", "tpu"],
        "auto, cpu or cuda",
    ),
    "missing bundle": (lambda d: ["cnn", "info", "--bundle", d / "nowhere"], "nowhere"),
    "damaged bundle": (lambda d: ["cnn", "info", "--bundle", damaged_bundle(d)], "block3"),
    "cut manifest": (lambda d: ["cnn", "info", "--bundle", cut_bundle(d)], "manifest"),
    "damaged bundle, serve": (
        lambda d: ["testbed", "serve", "--port", "0", "--bundle", damaged_bundle(d)],
        "block3",
    ),
    "server absent": (
        lambda d: [*DEVICE, "--server", f"127.0.0.1:{closed_port()}", "--action", "e5s0"],
        "server",
    ),
    "unknown action": (
        lambda d: [*DEVICE, "--local-only", "--action", "e9s1"],
        "exit=9",
    ),
    "no action at all": (
        lambda d: [*DEVICE, "--local-only", "--action", "fast"],
        "fast",
    ),
    "unknown frame source": (
        lambda d: [*DEVICE, "--local-only", "--action", "e1s1", "--frames", "satellite"],
        "satellite",
    ),
    "unknown power profile": (
        lambda d: [*DEVICE, "--local-only", "--action", "e1s1", "--power", "perpetual"],
        "perpetual",
    ),
    "record file in no folder": (
        lambda d: [*DEVICE, "--local-only", "--action", "e1s1", "--out", garbage_file(d) / "x"],
        "garbage.bin",
    ),
    "missing TLS file": (
        lambda d: (
            [*DEVICE, "--server", "127.0.0.1:1", "--action", "e1s0", "--tls-ca", d / "no-ca.pem"]
        ),
        "no-ca.pem",
    ),
    "missing policy": (
        lambda d: [*DEVICE, "--local-only", "--policy", d / "no.policy"],
        "no.policy",
    ),
    "garbage as policy": (
        lambda d: [*DEVICE, "--local-only", "--policy", garbage_file(d)],
        "garbage.bin",
    ),
    "unknown condition, campaign": (
        lambda d: ["testbed", "campaign", "--out", "c.parquet", "--condition", "fast"],
        "fast",
    ),
    "missing records, fit": (
        lambda d: ["testbed", "fit", "--records", d / "no.parquet", "--out", "model.json"],
        "no.parquet",
    ),
    "garbage as records, fit": (
        lambda d: ["testbed", "fit", "--records", garbage_file(d), "--out", "model.json"],
        "garbage.bin",
    ),
    "missing trace, link": (
        lambda d: ["testbed", "link", "--server", "127.0.0.1:1", "--trace", d / "no.json"],
        "no.json",
    ),
    "table without a row, link": (
        lambda d: ["testbed", "link", "--server", "127.0.0.1:1", "--trace", header_only(d)],
        "no row under it",
    ),
    "foreign trace, link": (
        lambda d: ["testbed", "link", "--server", "127.0.0.1:1", "--trace", pensieve_file(d)],
        "--format pensieve",
    ),
    "no format told, import": (
        lambda d: ["testbed", "traces", "import", pensieve_file(d), "--out", "trace.json"],
        "--format pensieve",
    ),
    "garbage as trace, link": (
        lambda d: ["testbed", "link", "--server", "127.0.0.1:1", "--trace", garbage_file(d)],
        "garbage.bin",
    ),
    "unknown kind of trace, link": (
        lambda d: ["testbed", "link", "--server", "127.0.0.1:1", "--generate", "moon-6g"],
        "moon-6g",
    ),
    "no address, link": (
        lambda d: ["testbed", "link", "--server", "nowhere", "--rate-mbps", "8"],
        "nowhere",
    ),
    "unknown algorithm": (lambda d: ["agent", "train", "--algo", "guess", "--out", "run"], "guess"),
    "nothing to resume": (
        lambda d: ["agent", "train", "--out", "run", "--resume"],
        "run",
    ),
    "missing run, export": (
        lambda d: ["agent", "export", "--run", d / "no-run", "--out", "x.policy"],
        "no-run",
    ),
    "garbage as policy, evaluate": (
        lambda d: ["agent", "evaluate", "--policy", garbage_file(d), "--episodes", "2"],
        "garbage.bin",
    ),
    "missing traces, evaluate": (
        lambda d: ["agent", "evaluate", "--traces", d / "no-traces", "--episodes", "2"],
        "no-traces",
    ),
    "missing frames, evaluate": (
        lambda d: ["agent", "evaluate", "--frames", d / "no.npz", "--episodes", "2"],
        "no.npz",
    ),
    "scenario file with an unknown key": (
        lambda d: ["agent", "evaluate", "--scenario", odd_scenario(d)],
        "wheels",
    ),
    "unknown scenario, demo": (lambda d: ["demo", "--scenario", "moon-6g"], "moon-6g"),
    "unknown scenario, train": (
        lambda d: ["agent", "train", "--scenario", "moon-6g", "--out", "run"],
        "moon-6g",
    ),
    "unknown scenario, evaluate": (
        lambda d: ["agent", "evaluate", "--scenario", "moon-6g"],
        "moon-6g",
    ),
}


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def assert_one_clear_line(done: subprocess.CompletedProcess[str], names: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.rstrip("\n").splitlines()[-1] == errors[0]
    assert names in errors[0]
    assert "expected" in errors[0]


@pytest.mark.parametrize("case", BAD_INPUT, ids=lambda c: c.replace(" ", "-").replace(",", ""))
def test_bad_input_is_one_clear_line_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    arguments, names = BAD_INPUT[case]
    inputs, cwd = tmp_path / "inputs", tmp_path / "cwd"
    inputs.mkdir()
    cwd.mkdir()
    line = arguments(inputs)
    before = tree(inputs)
    done = sliproad(*line, cwd=cwd)
    assert_one_clear_line(done, names)
    assert done.stdout == ""
    assert tree(cwd) == [], "something half-written"
    assert tree(inputs) == before


def test_no_data_folder_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLIPROAD_DATA", raising=False)
    assert_one_clear_line(sliproad("cnn", "evaluate", cwd=tmp_path), "SLIPROAD_DATA")


def test_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = str(taken.getsockname()[1])
        done = sliproad("testbed", "serve", "--port", port, cwd=tmp_path)
    assert_one_clear_line(done, port)
