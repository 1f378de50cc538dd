"""Learning, rules and reports on frames whose answers have a quality."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from networks import THREE_EXITS, TWO_EXITS, made_up_table, right_as_quality, scenario_of
from networks import with_quality as qualities
from typer.testing import CliRunner

from agents.cli import app
from agents.evaluation import AGENT, evaluate
from agents.report import write_report
from agents.terminal import comparison
from agents.training import error_probability
from cnn.frame_table import FrameTable
from offload_env.scenario import Scenario, scenario_toml
from offload_env.world import World, build_world
from testbed.policy.policies import StaticPolicy


def scenario_with(tables: dict[str, FrameTable], folder: Path) -> Scenario:
    """The made-up scenario on other tables of its network."""
    scenario = scenario_of(tables["train"].topology, folder)
    for name, table in tables.items():
        table.save(folder / f"{name}.npz")
    return replace(scenario, timing=replace(scenario.timing, n_frames=10))


def worlds_of(tables: dict[str, FrameTable], folder: Path) -> tuple[World, World]:
    folder.mkdir()
    scenario = scenario_with(tables, folder)
    return build_world(scenario, "train"), build_world(scenario, "test")


@pytest.mark.slow(5)
def test_right_or_wrong_as_quality_gives_the_very_same_evaluation(tmp_path: Path) -> None:
    tables = {"train": made_up_table(THREE_EXITS), "test": made_up_table(THREE_EXITS, 1)}
    as_quality = {name: right_as_quality(table) for name, table in tables.items()}
    agent = StaticPolicy(THREE_EXITS.action(3, 2), topology=THREE_EXITS)
    results = [
        evaluate(*worlds_of(of, tmp_path / name), {AGENT: agent}, drives=6, tuning_drives=4)
        for name, of in (("labels", tables), ("quality", as_quality))
    ]
    figures = [result.as_json() for result in results]
    assert [of.pop("measure") for of in figures] == ["accuracy", "quality"]
    assert figures[0] == figures[1]
    for name, rollout in results[0].rollouts.items():
        np.testing.assert_array_equal(results[1].rollouts[name].correct, rollout.correct)
        np.testing.assert_array_equal(results[1].rollouts[name].action, rollout.action)


def test_right_or_wrong_as_quality_has_the_very_same_chance_of_error() -> None:
    table = made_up_table(THREE_EXITS)
    np.testing.assert_array_equal(
        error_probability(right_as_quality(table)), error_probability(table)
    )


def test_the_chance_of_error_keeps_each_actions_mean_quality() -> None:
    table = qualities(made_up_table(THREE_EXITS, n_tracks=200))
    chance = error_probability(table)
    np.testing.assert_allclose(chance.mean(0), 1 - table.correct.mean(0), atol=5e-3)


@pytest.mark.slow(5)
def test_the_report_speaks_of_quality(tmp_path: Path) -> None:
    tables = {"train": made_up_table(TWO_EXITS), "test": made_up_table(TWO_EXITS, 1)}
    train, test = worlds_of(
        {name: qualities(table) for name, table in tables.items()}, tmp_path / "of"
    )
    agent = StaticPolicy(TWO_EXITS.action(1, 1), topology=TWO_EXITS)
    result = evaluate(train, test, {AGENT: agent}, drives=6, tuning_drives=4)
    assert result.bound_cost <= min(
        figures["cost"]
        for name, figures in result.policies.items()
        if figures["accuracy"] >= result.floor
    )
    told = comparison(result)
    assert "quality %" in told.columns
    assert "accuracy" not in " ".join((*told.columns, *told.notes))
    page = write_report(result, test, {AGENT: agent}, tmp_path / "report.html").read_text()
    assert "quality floor" in page
    assert "accuracy floor" not in page
    result.save(tmp_path / "saved")
    assert pq.read_table(tmp_path / "saved" / "frames.parquet")["correct"].type == pa.float64()


def run(*arguments: object) -> dict[str, Any]:
    """The command's JSON object: the last line of its standard output."""
    done = CliRunner().invoke(app, [str(a) for a in (*arguments, "--json")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.slow(15)
def test_an_agent_learns_and_is_judged_on_an_imported_table(tmp_path: Path) -> None:
    scenario = scenario_of(TWO_EXITS, tmp_path)
    for seed, name in enumerate(("train", "test")):
        table = qualities(made_up_table(TWO_EXITS, seed, n_tracks=30), seed)
        frame, action = np.indices(table.confidence.shape)
        columns = {
            "frame": frame,
            "track": table.track[frame],
            "exit": TWO_EXITS.exit_of[action],
            "split": TWO_EXITS.split_of[action],
            "confidence": table.confidence,
            "quality": table.quality,
            "payload_bytes": table.payload_bytes,
        }
        pq.write_table(
            pa.table({k: np.ravel(v) for k, v in columns.items()}), tmp_path / f"{name}.parquet"
        )
        made = run(
            *("cnn", "table", "--import", tmp_path / f"{name}.parquet"),
            *("--out", tmp_path / f"{name}.npz"),
        )
        assert made["frames"] == len(table)
    cost = json.loads((tmp_path / "cost.json").read_text())
    (tmp_path / "cost.json").write_text(json.dumps(cost | {"topology": made["topology"]}))
    (tmp_path / "mine.toml").write_text(
        scenario_toml(replace(scenario, timing=replace(scenario.timing, n_frames=10)))
    )
    short = ["--steps", "1024", "--n-envs", "16", "--hidden", "16", "--validate-every", "512"]
    trained = run(
        *("agent", "train", "--scenario", tmp_path / "mine.toml", *short, "--seed", 1),
        *("--out", tmp_path / "run"),
    )
    assert 0 < trained["floor"] < 1
    judged = run(
        "agent", "evaluate", tmp_path / "run", "--episodes", 4, "--out", tmp_path / "judged"
    )
    assert judged["measure"] == "quality"
    assert judged["bound_cost"] < judged["policies"]["full-local"]["cost"]
