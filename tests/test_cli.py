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
from sockets import free_port
from typer.testing import CliRunner

import cnn
from agents.cli import app
from cnn.bundle import embedded_bundle_path
from cnn.common.console import run_app

ROOT = Path(__file__).parents[1]
ROOT_COMMAND = typer.main.get_command(app)

# Every command that the project promises, with options that scripts rely on.
PROMISED = {
    "cnn adapt": {"--model", "--data", "--out", "--train", "--seed", "--resume", "--json"},
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
    "agent tune": {"--local", "--address", "--resume", "--out", "--at-once", "--seed", "--json"},
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


@pytest.mark.slow(2)
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


def device_file(folder: Path, text: str) -> Path:
    """A device's configuration file that is right but for `text`."""
    path = folder / "device.toml"
    path.write_text('[bundles]\naction = "e1s1"\n' + text)
    return path


def check(folder: Path, text: str) -> list[str | Path]:
    return ["testbed", "device", "--check", "--config", device_file(folder, text)]


def scenario_file(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


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
    "unknown provider, device": (lambda d: [*ALONE, "--providers", "Rocket"], "no 'Rocket' here"),
    "unknown provider, serve": (
        lambda d: ["testbed", "serve", "--port", "0", "--providers", "Rocket"],
        "CPUExecutionProvider",
    ),
    "unknown provider, evaluate": (
        lambda d: ["cnn", "evaluate", "--data", d, "--providers", "Rocket"],
        "no 'Rocket' here",
    ),
    "probe budget too large": (
        lambda d: [*ALONE, "--probe-budget", "9999"],
        "--probe-budget",
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
        lambda d: [*DEVICE, "--server", f"127.0.0.1:{free_port()}", "--action", "e5s0"],
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


AS_PROCESSES = {
    "missing data folder, evaluate",
    "damaged bundle, serve",
    "server absent",
    "garbage as trace, link",
    "nothing to resume",
    "unknown scenario, demo",
}
"""Cases that run as a user's do; the others, which end as early, in this process."""


BAD_INPUT |= {
    # values and sizes that nothing can be made of
    "not a number": (lambda d: ["agent", "train", "--gamma", "nan", "--out", "run"], "--gamma nan"),
    "infinite": (lambda d: [*ALONE, "--fps", "inf"], "--fps"),
    "negative infinite": (
        lambda d: ["testbed", "campaign", "--timeout-ms", "-inf", "--out", "c.parquet"],
        "--timeout-ms",
    ),
    "huge learning rate": (
        lambda d: ["agent", "train", "--learning-rate", "1e308", "--out", "run"],
        "--learning-rate 1e+308",
    ),
    "negative seed, train": (
        lambda d: ["agent", "train", "--seed", "-1", "--out", "run"],
        "--seed",
    ),
    "negative seed, link": (
        lambda d: ["testbed", "link", "--server", "127.0.0.1:1", "--seed", "-1"],
        "--seed",
    ),
    "negative seed, table": (
        lambda d: ["cnn", "table", "--out", "t.npz", "--seed", "-1"],
        "--seed",
    ),
    "seed beyond 32 bits": (
        lambda d: ["agent", "evaluate", "--seed", str(2**32)],
        "--seed",
    ),
    "number of 100 digits": (
        lambda d: ["agent", "train", "--steps", "9" * 100, "--out", "run"],
        "--steps 10^100 or so",
    ),
    "a billion drives, evaluate": (
        lambda d: ["agent", "evaluate", "--episodes", str(10**9)],
        "frames in all",
    ),
    "a billion drives, sweep": (
        lambda d: ["agent", "sweep", "--episodes", str(10**9), "--out", "run"],
        "frames in all",
    ),
    "a billion lanes": (
        lambda d: ["agent", "train", "--n-envs", str(10**9), "--out", "run"],
        "--n-envs 1000000000",
    ),
    "a billion neurons": (
        lambda d: ["agent", "train", "--hidden", str(10**9), "--out", "run"],
        "hidden 1000000000",
    ),
    "a trillion device frames": (lambda d: [*ALONE, "--n-frames", str(10**12)], "--n-frames"),
    "a trillion epochs": (lambda d: ["cnn", "train", "--epochs", str(10**12)], "--epochs"),
    "a trillion frames in a scenario": (
        lambda d: [
            "agent",
            "evaluate",
            "--scenario",
            scenario_file(d, "[timing]\nn_frames = 1_000_000_000_000"),
        ],
        "n_frames 1000000000000",
    ),
    "scenario that is no TOML": (
        lambda d: ["agent", "train", "--scenario", scenario_file(d, "[timing"), "--out", "run"],
        "end of a table declaration",
    ),
    "floors too close": (
        lambda d: ["agent", "sweep", "--floors", "0.98,0.98", "--out", "run"],
        "0.0001",
    ),
    "a pause for ever": (
        lambda d: ["testbed", "campaign", "--pause-ms", "1e308", "--out", "c.parquet"],
        "--pause-ms",
    ),
    "a round trip for ever": (
        lambda d: [
            *("testbed", "link", "--server", "127.0.0.1:1"),
            *("--rate-mbps", "8", "--rtt-ms", "1e308"),
        ],
        "--rtt-ms",
    ),
    # combinations, and what can be refused before the work
    "precision of the bundle, train": (
        lambda d: ["cnn", "train", "--data", d, "--precision", "int4"],
        "--precision int4",
    ),
    "precision of the bundle, export": (
        lambda d: ["cnn", "export", "--checkpoint", d / "n.pt", "--out", "b", "--precision", "x"],
        "--precision x",
    ),
    "unknown part": (lambda d: ["cnn", "evaluate", "--data", d, "--part", "best"], "--part best"),
    "output that is no folder, evaluate": (
        lambda d: ["agent", "evaluate", "--out", garbage_file(d) / "x"],
        "garbage.bin",
    ),
    "output that is no folder, sweep": (
        lambda d: ["agent", "sweep", "--out", garbage_file(d)],
        "garbage.bin",
    ),
    "check without a file": (lambda d: ["testbed", "device", "--check"], "--config"),
    "neither policy nor action": (lambda d: [*DEVICE, "--local-only"], "neither --policy"),
    "neither server nor local": (lambda d: [*DEVICE, "--action", "e1s1"], "neither --server"),
    "check, records in no folder": (
        lambda d: check(d, f'[records]\nfolder = "{garbage_file(d)}"\n'),
        "garbage.bin",
    ),
    "check, frames in no folder": (
        lambda d: check(d, f'[frames]\nsource = "folder:{d / "none"}"\n'),
        "none",
    ),
    "check, folder without images": (
        lambda d: check(d, f'[frames]\nsource = "folder:{d}"\n'),
        "without images",
    ),
    "check, data that is missing": (
        lambda d: check(d, f'[frames]\nsource = "gtsrb:policy-test"\ndata = "{d / "none"}"\n'),
        "none",
    ),
    "check, unknown meter": (lambda d: check(d, '[meter]\nname = "dowsing"\n'), "dowsing"),
    "check, unknown power": (lambda d: check(d, '[meter]\npower = "perpetual"\n'), "perpetual"),
    # command lines that cannot be read
    "unknown option": (lambda d: ["agent", "train", "--speed", "9"], "--speed"),
    "unknown command": (lambda d: ["agent", "praise"], "praise"),
    "option without its value": (lambda d: ["agent", "train", "--steps"], "--steps"),
    "required option left out": (lambda d: ["cnn", "table"], "--out"),
    "word for a number": (lambda d: ["testbed", "serve", "--port", "http"], "--port"),
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
    for representation in ("[Errno", "Path(", "{'", "None", "Error(", "(("):
        assert representation not in errors[0]


def in_this_process(
    line: list[str | Path], cwd: Path, capfd: pytest.CaptureFixture[str]
) -> subprocess.CompletedProcess[str]:
    """As `sliproad` does, without a process; what came before is no part of what was said."""
    words = [str(word) for word in line]
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as left:
            run_app(app, prog_name="sliproad", args=words)
    said = capfd.readouterr()
    return subprocess.CompletedProcess(words, int(left.value.code or 0), said.out, said.err)


@pytest.mark.slow(25)
@pytest.mark.parametrize("case", BAD_INPUT, ids=lambda c: c.replace(" ", "-").replace(",", ""))
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, names = BAD_INPUT[case]
    inputs, cwd = tmp_path / "inputs", tmp_path / "cwd"
    inputs.mkdir()
    cwd.mkdir()
    line = arguments(inputs)
    before = tree(inputs)
    alone = case in AS_PROCESSES
    done = sliproad(*line, cwd=cwd) if alone else in_this_process(line, cwd, capfd)
    assert_one_clear_line(done, names)
    assert done.stdout == ""
    assert tree(cwd) == [], "something half-written"
    assert tree(inputs) == before


@pytest.mark.slow(1)
def test_no_data_folder_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLIPROAD_DATA", raising=False)
    assert_one_clear_line(sliproad("cnn", "evaluate", cwd=tmp_path), "SLIPROAD_DATA")


@pytest.mark.slow(1)
def test_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = str(taken.getsockname()[1])
        done = sliproad("testbed", "serve", "--port", port, cwd=tmp_path)
    assert_one_clear_line(done, port)


@pytest.mark.slow(2)
def test_a_file_that_is_fit_to_run_says_what_was_tried(tmp_path: Path) -> None:
    records = tmp_path / "new" / "records"
    text = f'[records]\nfolder = "{records}"\n[metrics]\nport = 0\n'
    done = sliproad(*check(tmp_path, text), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in ("bundles: ", "meter: model", "frames: render", "records: ", "metrics: "):
        assert part in done.stdout
    assert done.stdout.splitlines()[-1].endswith("is fit to run")
    assert tree(tmp_path) == ["device.toml"], "a check keeps nothing"


def test_check_finds_the_metrics_port_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        line = [str(a) for a in check(tmp_path, f"[metrics]\nport = {port}\n")]
        with pytest.raises(SystemExit) as left:
            run_app(app, prog_name="sliproad", args=line)
    assert left.value.code == 2
    assert str(port) in capsys.readouterr().err
