"""Evaluation: intervals against theory, paired drives, figures that add up, one whole report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agents.evaluation import (
    AGENT,
    evaluate,
    gap_closed,
    interval,
    keeps,
    paired_differences,
    resamples,
)
from agents.report import write_report
from agents.rollout import simulate, summary
from agents.terminal import comparison
from cnn.topology import SHIPPED
from offload_env.episode import episode_keys
from offload_env.scenario import Constraint
from offload_env.simulator import Simulator
from testbed.policy.policies import StaticPolicy

pytestmark = pytest.mark.slow(12)


def test_interval_agrees_with_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = interval(values, resamples(400, 1))
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.25 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.25 * half)


def test_pairing_removes_what_drives_share() -> None:
    rng = np.random.default_rng(2)
    drive = rng.normal(0, 10, 100)
    per_drive = {"a": drive + 1.0, "b": drive + rng.normal(0, 0.1, 100)}
    found = paired_differences(per_drive, "b", resamples(100, 3))
    assert list(found) == ["a"]
    assert 0.95 < found["a"].low < found["a"].high < 1.05


def test_resamples_are_seeded_and_whole() -> None:
    a, b = resamples(10, 1), resamples(10, 1)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a.sum(1), 1.0)
    assert not np.array_equal(a, resamples(10, 2))


def test_gap_closed() -> None:
    assert gap_closed(1.0, 1.0, 0.5) == 0.0
    assert gap_closed(1.0, 0.5, 0.5) == 1.0
    assert gap_closed(1.0, 0.625, 0.5) == 0.75
    assert gap_closed(0.5, 0.5, 0.5) is None


DRIVES = 6


@pytest.fixture(scope="module")
def worlds(make_world):
    train = make_world([100.0, 0.1, 0.1], floor=0.98, n_frames=40)
    return train, replace(train, split="test")


@pytest.fixture(scope="module")
def result(worlds):
    agent = StaticPolicy(SHIPPED.action(3, 3), AGENT)
    return evaluate(*worlds, {AGENT: agent}, drives=DRIVES, tuning_drives=8)


def test_batched_rollout_equals_the_scalar_simulator(worlds) -> None:
    _, world = worlds
    keys = episode_keys(5, 3)
    policy = StaticPolicy(SHIPPED.action(2, 0))
    rollout = simulate(world, policy, keys)
    for drive, key in enumerate(keys):
        simulator = Simulator(world)
        simulator.reset(world.plan(int(key)))
        outcomes = [simulator.settle(policy.decide(simulator.observe())) for _ in range(40)]
        np.testing.assert_allclose(rollout.delay_ms[drive], [o.delay_ms for o in outcomes])
        np.testing.assert_allclose(rollout.energy_mj[drive], [o.energy_mj for o in outcomes])
        np.testing.assert_array_equal(rollout.correct[drive], [o.correct for o in outcomes])
        np.testing.assert_array_equal(rollout.row[drive], [o.row for o in outcomes])


def test_every_policy_meets_the_same_frames(result) -> None:
    rows = [rollout.row for rollout in result.rollouts.values()]
    assert len(rows) == 13
    for other in rows[1:]:
        np.testing.assert_array_equal(other, rows[0])


def test_the_bound_is_below_everyone_who_keeps_the_floor(result) -> None:
    for name, figures in {**result.policies, **result.statics}.items():
        if figures["accuracy"] >= result.floor:
            assert figures["cost"] >= result.bound_cost - 1e-9, name
    assert result.policies["clairvoyant"]["accuracy"] >= result.floor


def test_figures_agree_with_the_saved_frames(result, tmp_path: Path) -> None:
    result.save(tmp_path)
    frames = pd.read_parquet(tmp_path / "frames.parquet")
    for name in (AGENT, "full-local"):
        mine = frames[frames["policy"] == result.rollouts[name].policy]
        assert len(mine) == DRIVES * 40
        assert mine["cost"].mean() == pytest.approx(result.policies[name]["cost"])
        assert mine["delay_ms"].quantile(0.99) == pytest.approx(
            result.policies[name]["delay_p99_ms"]
        )
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    best, agent = (saved["policies"][n]["cost"] for n in ("best-static", AGENT))
    assert saved["gap_closed"] == pytest.approx((best - agent) / (best - saved["bound_cost"]))
    local = saved["policies"]["full-local"]
    assert saved["delay_gain"] == pytest.approx(
        local["delay_ms"] / saved["policies"][AGENT]["delay_ms"]
    )
    difference = saved["cost_over_agent"]["full-local"]
    assert difference["mean"] == pytest.approx(local["cost"] - agent)
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evaluation.json", "frames.parquet"]


def test_summary_of_a_policy_that_skips_counts_it_wrong_and_missed(make_world) -> None:
    world = make_world(20.0, full_local_ms=400.0, n_frames=30)
    figures = summary(simulate(world, StaticPolicy(SHIPPED.action(5, 5)), episode_keys(1, 2)))
    assert figures["deadline_miss"] == 1.0
    assert figures["accuracy"] < 0.9


def test_report_is_one_self_contained_file(result, worlds, tmp_path: Path) -> None:
    learning = pd.DataFrame(
        {
            "step": [1.0, 2.0, 3.0],
            "cost": [1.0, 0.5, 0.4],
            "accuracy": [0.9, 0.95, 0.99],
            "multiplier": [5.0, 6.0, 5.5],
            "validation_cost": [np.nan, 0.5, 0.4],
            "validation_accuracy": [np.nan, 0.96, 0.99],
        }
    )
    agent = StaticPolicy(SHIPPED.action(3, 3), AGENT)
    live = {"agent <live>": result.policies[AGENT]}
    path = write_report(
        result, worlds[1], {AGENT: agent}, tmp_path / "report.html", learning=learning, live=live
    )
    text = path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert len(re.findall(r'src="data:image/png;base64,iVBOR', text)) == 6
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "agent &lt;live&gt;" in text
    for name in ("full-local", "greedy", "threshold", "neurosurgeon", "edgent", "clairvoyant"):
        assert name in text


def test_table_is_sorted_by_cost(result) -> None:
    costs = [float(row[-1]) for row in comparison(result).rows]
    assert costs == sorted(costs)


def test_every_row_says_whether_the_floor_is_kept(result) -> None:
    rows = result.as_json()["policies"]
    for name, row in rows.items():
        assert row["keeps_floor"] == (result.policies[name]["accuracy"] >= result.floor), name
    table = comparison(result)
    at = table.columns.index("floor")
    shown = {row[0]: row[at] for row in table.rows}
    assert shown["full-local"] == "kept"
    assert set(shown.values()) <= {"kept", "MISSED"}
    assert len(shown) == len(rows)


@pytest.fixture(scope="module")
def below(worlds):
    """An agent that always leaves at exit 1: cheap, and wrong too often."""
    train, test = (
        replace(w, scenario=replace(w.scenario, constraint=Constraint(accuracy_floor=0.995)))
        for w in worlds
    )
    return evaluate(
        train, test, {AGENT: StaticPolicy(SHIPPED.action(1, 0), AGENT)}, drives=24, tuning_drives=4
    )


def test_a_policy_below_the_floor_closes_no_gap(below, worlds, tmp_path: Path) -> None:
    assert not below.keeps_floor(AGENT)
    assert AGENT not in below.gap_closed
    assert below.as_json()["policies"][AGENT]["keeps_floor"] is False
    notes = " ".join(comparison(below).notes)
    assert "MISSES the accuracy floor" in notes
    assert "closes" not in notes
    agents = {AGENT: StaticPolicy(SHIPPED.action(1, 0), AGENT)}
    page = write_report(below, worlds[1], agents, tmp_path / "report.html").read_text()
    assert "MISSES the accuracy floor" in page
    assert "closes" not in page


def test_a_floor_met_exactly_is_kept_whatever_the_order_of_the_sum() -> None:
    answers = np.array([1.0, 0.0, 1.0] * 7)
    floor = float(np.mean(answers))
    assert keeps(sum(answers[::-1] / 21), floor)
    assert not keeps(floor - 1 / 21, floor)
