"""Policies written again with their task, and used where another one is set: said, or refused."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy_manifests import static_manifest
from typer.testing import CliRunner

from agents.cli import agent_app
from agents.contenders import contenders_of, warn_of_other_task
from agents.export_policy import task_of, with_task
from agents.off_policy import warn_of_other_log
from cnn.common.errors import BundleError, SliproadError
from offload_env.preferences import Preferences, preferring
from offload_env.world import World, build_world
from testbed.policy.observer import Observer
from testbed.policy.policy_file import PolicyBundle
from testbed.policy.task_settings import Task

PATH = Path("x.policy")
URBAN = Path(str(resources.files("agents"))) / "assets" / "urban-5g.policy"


@pytest.fixture(scope="module")
def world(make_world: Any) -> World:
    toy: World = make_world(20.0)
    return toy


def old_file(world: World, **manifest: Any) -> PolicyBundle:
    about = static_manifest(world.table.bundle_hash, world.scenario.name)
    return PolicyBundle({**about, **manifest}, {})


def test_written_again_it_carries_the_worlds_task(world: World, tmp_path: Path) -> None:
    figures = {"metrics": {"accuracy_floor": 0.5}, "provenance": {"traces": 1}}
    with_task(old_file(world, **figures), world).save(tmp_path / "x.policy")
    bundle = PolicyBundle.load(tmp_path / "x.policy")
    # The world of conftest: a floor of 0.5, a device of 80 ms, and the scenario's own timing.
    assert bundle.task == Task("5G", 0.5, 0.5, 81.0, 100.0, 150.0, 100.0, 200.0)
    assert bundle.manifest["metrics"] == figures["metrics"]


def test_a_conditioned_policy_keeps_the_range_that_it_serves(world: World) -> None:
    asked = {"floor": [0.6, 0.7], "delay_share": [0.0, 1.0]}
    task = with_task(old_file(world, preferences=asked), world).task
    assert task == task_of(world, Preferences((0.6, 0.7), (0.0, 1.0)))
    assert (task.accuracy_floors, task.delay_shares) == ((0.6, 0.7), (0.0, 1.0))
    assert task.accuracy_floor == 0.6  # the scenario's 0.5 is none that it serves


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"scenario": "urban-5g"}, "scenario urban-5g; expected toy"),
        ({"metrics": {"accuracy_floor": 0.7}}, "accuracy floor 0.7; expected 0.5"),
        ({"provenance": {"traces": 5}}, "number of traces 5; expected 1"),
        ({"bundle_hash": "f" * 64}, "model bundle"),
    ],
)
def test_the_task_of_another_world_is_refused(
    world: World, manifest: dict[str, Any], said: str
) -> None:
    with pytest.raises(BundleError) as caught:
        with_task(old_file(world, **manifest), world)
    assert said in str(caught.value)


def test_another_task_is_said_once_with_its_fields(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = with_task(old_file(world), world)
    warn_of_other_task(PATH, bundle, world)
    assert capsys.readouterr().err == ""
    timing = replace(world.scenario.timing, timeout_ms=60.0)
    other = preferring(replace(world, scenario=replace(world.scenario, timing=timing)), 0.6, 0.5)
    warn_of_other_task(PATH, bundle, other)
    assert capsys.readouterr().err == (
        "warning: policy file x.policy was trained for another task than that of toy: "
        "accuracy_floor 0.6 instead of 0.5, timeout_ms 60 instead of 150\n"
    )
    warn_of_other_task(PATH, old_file(world), world)
    (line,) = capsys.readouterr().err.splitlines()
    assert "format 1" in line


def test_a_log_of_a_device_that_was_told_something_else_is_named(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = with_task(old_file(world), world)
    task = task_of(world)

    def logged(told: Task) -> np.ndarray:
        return np.tile(Observer(told.settings()).observe(0.0, [0.5] * 6, 0.0, 0.0), (50, 1))

    warn_of_other_log(PATH, bundle, logged(task))
    assert capsys.readouterr().err == ""
    seen = np.concatenate([logged(task), logged(replace(task, full_local_ms=9.0, tech="LTE"))])
    warn_of_other_log(PATH, bundle, seen)
    (line,) = capsys.readouterr().err.splitlines()
    assert "another radio_5g, full_local_ms than policy file x.policy" in line


def test_what_is_evaluated_elsewhere_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(contenders_of([URBAN], build_world("slow-device", "test"))) == {"agent"}
    (line,) = capsys.readouterr().err.splitlines()
    assert "full_local_ms 356 instead of 80" in line
    assert "timeout_ms 150 instead of 60" in line
    contenders_of([URBAN], build_world("urban-5g", "test"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", URBAN, "--scenario", "slow-device"], "scenario urban-5g"),
        (["--policy", URBAN, "--run", "r"], "exactly one"),
        ([], "exactly one"),
    ],
)
def test_an_export_that_cannot_be_is_refused(
    arguments: list[object], said: str, tmp_path: Path
) -> None:
    out = tmp_path / "y.policy"
    command = [str(a) for a in ("export", "--out", out, *arguments)]
    with pytest.raises(SliproadError, match=said):
        CliRunner().invoke(agent_app, command, catch_exceptions=False)
    assert not out.exists()
