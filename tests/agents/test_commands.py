"""The agent commands as a user calls them: train, resume, export, evaluate, bad input."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import agents
from agents.cli import agent_app
from agents.contenders import contender, paths_of, scenario_to_judge
from agents.export_policy import task_of
from cnn.common.errors import BundleError, ConfigError, DataError
from cnn.frame_table import embedded_table
from offload_env.scenario import Scenario, load_scenario
from offload_env.world import build_world
from testbed.policy.network_policy import load_policy
from testbed.policy.policy_file import PolicyBundle

pytestmark = pytest.mark.slow(50)

ROOT = Path(__file__).parents[2]
SHORT = ["--steps", "2048", "--n-envs", "16", "--hidden", "16", "--validate-every", "1024"]


def run(*arguments: object) -> dict[str, Any]:
    """The command's JSON object: the last line of its standard output."""
    result = CliRunner().invoke(agent_app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("agent") / "run"
    result = run("train", "--scenario", "urban-5g", *SHORT, "--out", out, "--seed", 3, "--json")
    assert result["policy"] == str(out / "agent.policy")
    assert result["steps"] == 2048
    kept = result["validation"]["accuracy"] >= result["floor"]
    assert result["keeps_floor"] == kept
    return out


def test_training_leaves_a_whole_run(trained: Path) -> None:
    names = {p.name for p in trained.iterdir()}
    assert {
        "agent.policy",
        "best.zip",
        "best.json",
        "checkpoint",
        "config.json",
        "learning.parquet",
        "scenario",
        "tensorboard",
    } == names
    assert any((trained / "tensorboard").iterdir())


def test_export_writes_what_training_kept(trained: Path, tmp_path: Path) -> None:
    result = run("export", "--run", trained, "--out", tmp_path / "x.policy", "--json")
    path = Path(result["policy"])
    assert result["bytes"] == path.stat().st_size
    assert isinstance(result["keeps_floor"], bool)
    manifest = PolicyBundle.load(path).manifest
    assert manifest["scenario"] == "urban-5g"
    assert manifest["provenance"]["config"]["seed"] == 3
    assert manifest["observation"]["fields"][0]["name"] == "uplink_mbps"
    load_policy(path, manifest["bundle_hash"])
    task = PolicyBundle.load(path).task
    assert task == PolicyBundle.load(trained / "agent.policy").task
    assert task == task_of(build_world("urban-5g", "train"))


def test_a_run_whose_scenario_has_changed_since_is_not_exported(
    trained: Path, tmp_path: Path
) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(trained, run_folder)
    bundle = PolicyBundle.load(run_folder / "agent.policy")
    task = {**bundle.manifest["task"], "full_local_ms": 43.0}  # as from records of another device
    replace(bundle, manifest={**bundle.manifest, "task": task}).save(run_folder / "agent.policy")
    command = ["export", "--run", str(run_folder), "--out", str(tmp_path / "x.policy")]
    with pytest.raises(DataError, match="another task"):
        CliRunner().invoke(agent_app, command, catch_exceptions=False)


def test_evaluate_prints_the_promised_keys(trained: Path, tmp_path: Path) -> None:
    # Drives of a second: tuning the baselines takes as long as the drives do.
    short, out = tmp_path / "urban-5g.toml", tmp_path / "out"
    text = Path(str(resources.files("offload_env") / "scenarios" / "urban-5g.toml")).read_text()
    short.write_text(text.replace("[timing]\n", "[timing]\nn_frames = 10\n"))
    arguments = ("--scenario", short, "--episodes", 2, "--policy", trained / "agent.policy")
    result = run("evaluate", *arguments, "--out", out, "--json")
    assert {
        "scenario",
        "policies",
        "bound_cost",
        "gap_closed",
        "gap_closed_staged",
        "delay_gain",
        "energy_gain",
        "floor",
    } <= set(result)
    assert {"agent", "clairvoyant", "full-local", "full-offload", "best-static", "random"} <= set(
        result["policies"]
    )
    for figures in result["policies"].values():
        assert {
            "cost",
            "delay_ms",
            "energy_mj",
            "accuracy",
            "delay_p99_ms",
            "deadline_miss",
        } <= set(figures)
    assert {p.name for p in out.iterdir()} == {
        "evaluation.json",
        "frames.parquet",
        "report.html",
    }


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["train", "--scenario", "nowhere"], ConfigError),
        (["train", "--algo", "sarsa"], ConfigError),
        (["evaluate", "--scenario", "urban-5g", "--policy", "none.policy"], BundleError),
        (["evaluate", "--scenario", "urban-5g", "--frames", "none.npz"], DataError),
        (["evaluate", "--scenario", "urban-5g", "--traces", "none"], DataError),
        (["export", "--run", "none", "--out", "x.policy"], DataError),
    ],
    ids=["scenario", "algorithm", "policy", "frames", "traces", "run"],
)
def test_bad_input_is_the_users_error(
    arguments: list[str], error: type[Exception], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        CliRunner().invoke(agent_app, arguments, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


SHORT_DRIVES = """
[timing]
n_frames = 20
[link]
kind = "urban-5g"
train_traces = 4
test_traces = 4
duration_s = 30.0
[device]
full_local_ms = 80.0
power = "jetson-nano+5g-nsa-lowband"
"""


def test_a_run_is_judged_from_anywhere_even_if_its_scenario_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder alone is enough: it keeps its policy and its scenario."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    table = here / "frames.npz"
    embedded_table("policy-test").save(table)
    scenario = here / "mine.toml"
    scenario.write_text(f'{SHORT_DRIVES}[frames]\ntest = "frames.npz"\n')
    monkeypatch.chdir(here)
    run("train", "--scenario", "mine.toml", *SHORT, "--out", "run", "--json")
    scenario.rename(tmp_path / "moved.toml")
    monkeypatch.chdir(there)
    result = run("evaluate", here / "run", "--episodes", 2, "--json")
    assert result["scenario"] == "mine"
    assert result["frames"] == 20
    agent = result["policies"]["agent"]
    assert agent["path"] == str(here / "run" / "agent.policy")
    assert agent["sha256"] == sha256(here / "run" / "agent.policy")
    assert agent["shipped"] is False
    exported = run("export", "--run", here / "run", "--out", "x.policy", "--json")
    assert PolicyBundle.load(Path(exported["policy"])).manifest["scenario"] == "mine"
    more = ("train", "--resume", "--out", here / "run", "--steps", 4096, "--json")
    assert run(*more)["steps"] == 4096


def test_without_a_policy_the_shipped_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.contenders.load_scenario", lambda name: short_urban())
    line = ["evaluate", "--episodes", "2", "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(agent_app, line, catch_exceptions=False)
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assets = Path(agents.__file__).parent / "assets"
    for name, file in (("agent", "urban-5g.policy"), ("staged-agent", "urban-5g.staged.policy")):
        row = result["policies"][name]
        assert row["shipped"] is True
        assert row["sha256"] == sha256(assets / file)
        assert Path(row["path"]).samefile(assets / file)
    assert "path" not in result["policies"]["greedy"]
    page = (tmp_path / "report.html").read_text()
    assert "agent (shipped)" in done.stdout
    for text in (page, done.stdout):
        assert sha256(assets / "urban-5g.policy")[:12] in text


def short_urban() -> Scenario:
    scenario = load_scenario("urban-5g")
    return replace(scenario, timing=replace(scenario.timing, n_frames=10))


def test_a_policy_is_judged_in_the_scenario_it_was_trained_for(tmp_path: Path) -> None:
    assets = Path(agents.__file__).parent / "assets"
    paths = paths_of(None, assets / "highway-lte.policy", None)
    judged = [contender(p, None) for p in paths]
    assert scenario_to_judge("", paths, judged).name == "highway-lte"
    assert scenario_to_judge("urban-5g", paths, judged).name == "urban-5g"


def test_two_ways_to_name_the_policy_are_one_too_many(trained: Path) -> None:
    with pytest.raises(ConfigError, match="one of the two"):
        run("evaluate", trained, "--policy", trained, "--episodes", 2)


def test_a_run_without_a_policy_yet_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"agent\.policy"):
        run("evaluate", tmp_path, "--episodes", 2)


def test_too_many_test_drives_are_refused_at_once(trained: Path) -> None:
    with pytest.raises(ConfigError, match="frames in all"):
        run("evaluate", trained, "--episodes", 10**9)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_ctrl_c_keeps_the_work_and_says_how_to_go_on(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the first regular checkpoint; the line printed is run as it stands."""
    command = [sys.executable, "-m", "agents", "agent", "train", "--scenario", "urban-5g"]
    command += ["--steps", "400000", "--n-envs", "16", "--hidden", "16", "--out", "my run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "my run" / "tensorboard"
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        if any(f.stat().st_size > 2000 for f in log.glob("events*")):
            break
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert (tmp_path / "my run" / "checkpoint" / "model.zip").is_file()
    (line,) = [x for x in errors.splitlines() if x.startswith("sliproad agent train --resume")]
    manifest = json.loads((tmp_path / "my run" / "checkpoint" / "manifest.json").read_text())
    steps = manifest["step"] + 2048
    monkeypatch.chdir(tmp_path)
    result = run(*shlex.split(line)[2:], "--steps", steps, "--json")
    assert result["steps"] == steps
