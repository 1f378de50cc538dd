"""The agent commands as a user calls them: train, resume, export, evaluate, bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agents.commands import agent_app
from agents.task import task_of
from cnn.errors import BundleError, ConfigError, DataError
from offload_env.world import build_world
from testbed.decide.policy import load_policy
from testbed.decide.policy_bundle import PolicyBundle

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
        "tensorboard",
    } == names
    assert any((trained / "tensorboard").iterdir())


def test_export_writes_what_training_kept(trained: Path, tmp_path: Path) -> None:
    result = run("export", "--run", trained, "--out", tmp_path / "x.policy", "--json")
    path = Path(result["policy"])
    assert result["bytes"] == path.stat().st_size
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
    arguments = ("--scenario", "urban-5g", "--episodes", 2, "--policy", trained / "agent.policy")
    result = run("evaluate", *arguments, "--out", tmp_path, "--json")
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
    assert {p.name for p in tmp_path.iterdir()} == {
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
