"""A small sweep from end to end; the frontier against brute force."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agents import train_checkpoint as checkpoint
from agents.evaluation import floor_on
from agents.rollout import simulate
from agents.supervisor import TrainingInterrupted
from agents.sweep import check_preferences, default_floors, evaluate_sweep, frontier, train_all
from agents.train_config import TrainConfig
from agents.training import train
from cnn.common.errors import ConfigError
from cnn.topology import SHIPPED
from offload_env.episode import episode_keys
from offload_env.preferences import preferring
from testbed.policy.policies import StaticPolicy

pytestmark = pytest.mark.slow(15)

SHORT = TrainConfig(
    scenario="toy", steps=1024, n_envs=16, n_steps=16, batch_size=128, hidden=8, validate_drives=2
)


@pytest.fixture(scope="module")
def swept(make_world, tmp_path_factory: pytest.TempPathFactory):
    world, out = make_world([30.0, 5.0], floor=0.98), tmp_path_factory.mktemp("sweep")
    policies = train_all(world, SHORT, out, (0.97, 0.99), (0.3, 0.7))
    result = evaluate_sweep(world, world, policies, margin=0.0, drives=8)
    result.save(out)
    return world, out, policies, result


def test_every_preference_has_its_row(swept) -> None:
    world, out, _, result = swept
    points = pd.read_parquet(out / "sweep.parquet")
    assert len(points) == 4 * 4
    asked = {(f, s) for f in (0.97, 0.99) for s in (0.3, 0.7)}
    assert set(zip(points["floor"], points["delay_share"], strict=True)) == asked
    for (floor, share), difference in result.differences.items():
        rows = points[(points["floor"] == floor) & (points["delay_share"] == share)]
        cost = rows.set_index("policy")["cost"]
        gap = cost["conditioned"] - cost["specialist"]
        assert difference.mean == pytest.approx(gap)
    local = simulate(preferring(world, 0.97, 0.3), StaticPolicy(SHIPPED.main), episode_keys(7, 8))
    row = points[(points["policy"] == "full-local") & (points["floor"] == 0.97)].iloc[0]
    owed = float(world.correct[local.row, SHIPPED.main].mean()) - (
        float(world.correct[:, SHIPPED.main].mean()) - 0.97
    )
    assert row["owed"] == pytest.approx(owed)
    assert floor_on(preferring(world, 0.97, 0.3), local.row) == pytest.approx(owed)


def test_files_are_whole(swept) -> None:
    _, out, _, result = swept
    names = {p.name for p in out.iterdir()}
    assert {"sweep.parquet", "sweep.json", "sweep.png", "conditioned.policy"} <= names
    assert not [n for n in names if n.endswith(".part")]
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    printed = json.loads((out / "sweep.json").read_text())
    ratio = printed["conditioned_over_specialist"]
    assert ratio["mean_cost_ratio"] == pytest.approx(np.mean(result.ratios()))
    assert ratio["worst_cost_ratio"] >= ratio["mean_cost_ratio"]


def test_specialists_are_not_trained_twice(swept) -> None:
    world, out, _, _ = swept
    before = {p: p.stat().st_mtime_ns for p in out.rglob("agent.policy")}
    assert len(before) == 4
    train_all(world, SHORT, out, (0.97,), (0.3,))
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_the_frontier_is_what_nothing_beats() -> None:
    rng = np.random.default_rng(2)
    rows = rng.integers(0, 4, (40, 3)).astype(float)
    points = pd.DataFrame(rows, columns=["delay_ms", "energy_mj", "accuracy"])
    found = frontier(points)
    for i, (d, e, a) in enumerate(rows):
        beaten = any(
            d2 <= d and e2 <= e and a2 >= a and (d2 < d or e2 < e or a2 > a) for d2, e2, a2 in rows
        )
        assert found[i] == (not beaten)


def test_preferences_are_checked(make_world) -> None:
    for floors, shares in (((), (0.5,)), ((0.9,), (1.5,)), ((99.0,), (0.5,))):
        with pytest.raises(ConfigError):
            check_preferences(floors, shares)
    low, middle, high = default_floors(make_world(20.0), 0.004)
    assert low < middle < high < 1


def test_an_interrupted_sweep_goes_on_where_it_was(
    make_world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within a specialist: neither it nor the conditioned policy begins anew."""
    world, asked = make_world([30.0, 5.0], floor=0.98), (0.97, 0.3)
    whole = train_all(world, SHORT, tmp_path / "whole", (asked[0],), (asked[1],))
    out = tmp_path / "parts"

    def before_the_specialist(name: str) -> None:
        if name.startswith("floor"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_all(world, SHORT, out, (asked[0],), (asked[1],), before_the_specialist)
    conditioned = (out / "conditioned.policy").stat().st_mtime_ns
    folder = out / "specialists" / "floor0.9700-delay0.30"

    def stop(step: int, row: dict[str, float]) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        train(SHORT, folder, world=preferring(world, *asked), report=stop)
    resumed = []
    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda *args: (resumed.append(args[1]), load(*args))[1])
    parts = train_all(world, SHORT, out, (asked[0],), (asked[1],))
    assert resumed == [folder]
    assert (out / "conditioned.policy").stat().st_mtime_ns == conditioned
    seen = np.random.default_rng(0).uniform(-1, 1, (500, 33)).astype(np.float32)
    for which in (None, asked):
        np.testing.assert_array_equal(
            parts[which].decide_batch(seen), whole[which].decide_batch(seen)
        )


def test_every_point_says_whether_what_is_owed_is_kept(swept) -> None:
    _, out, _, result = swept
    points = json.loads((out / "sweep.json").read_text())["points"]
    assert all(p["keeps_floor"] == (p["accuracy"] >= p["owed"]) for p in points)
    missing = {p["policy"] for p in points if not p["keeps_floor"]} & {"specialist", "conditioned"}
    assert {line.split()[0] for line in result.below_floor()} == missing
