"""Kinds of one's own: fitted to files, generated from a file, near their source, checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from agents.cli import app
from cnn.common.errors import ConfigError, DataError
from offload_env.scenario import anchored, parse_scenario
from offload_env.sources import load_traces
from testbed.traces.generator import (
    KINDS,
    generate,
    generate_trace,
    load_models,
    model_of,
    round_trips_of,
)
from testbed.traces.own_kind import fit_files, save_kind
from testbed.traces.trace import Trace, constant_trace, save_trace
from testbed.traces.trace_statistics import distribution_distance, summary


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty drives of 240 s in files, made by a kind that is known."""
    folder = tmp_path_factory.mktemp("drives")
    files = []
    for seed in range(40):
        files.append(folder / f"drive{seed}.json")
        save_trace(generate_trace("highway-lte", seed, 240.0, 0.5), files[-1])
    return files


@pytest.mark.slow(3)
def test_a_fitted_kind_generates_what_it_was_fitted_to(drives: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "tram.json"
    call = ["testbed", "traces", "fit", *map(str, drives), "--out", str(out), "--json"]
    done = CliRunner().invoke(app, call, catch_exceptions=False)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["provenance"]["files"] == [path.name for path in drives]
    assert said["provenance"]["uplink_hours"] == pytest.approx(40 * 240 / 3600, abs=0.01)
    assert said["provenance"]["command"] == "sliproad testbed traces fit"
    source = [generate_trace("highway-lte", seed, 240.0, 0.5) for seed in range(40)]
    made = [generate_trace(str(out), 1000 + seed, 240.0, 0.5) for seed in range(40)]
    assert made[0].name == "generated:tram:1000"
    assert {trace.tech for trace in made} == {"LTE"}
    a, b = summary(source), summary(made)
    assert b["uplink_mbps"]["mean"] == pytest.approx(a["uplink_mbps"]["mean"], rel=0.1)
    assert b["outage_fraction"] == pytest.approx(a["outage_fraction"], abs=0.01)
    assert b["rtt_ms"]["p50"] == pytest.approx(a["rtt_ms"]["p50"], rel=0.1)
    up = [np.concatenate([trace.uplink_mbps for trace in part]) for part in (source, made)]
    assert distribution_distance(*up) < 0.1


def test_shipped_kinds_are_what_they_were() -> None:
    """A file with a shipped model's numbers generates its traces, bit for bit."""
    for kind in KINDS:
        one, other = generate_trace(kind, 5), generate(load_models()[kind], 5, 120.0, 0.1)
        assert np.array_equal(one.uplink_mbps, other.uplink_mbps)
        assert np.array_equal(one.rtt_ms, other.rtt_ms)


def test_a_scenario_names_a_kind_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_kind(load_models()["poor-coverage"], tmp_path / "mine.json")
    monkeypatch.chdir(tmp_path)
    few = "train_traces = 3\ntest_traces = 2\nduration_s = 20.0"
    scenario = parse_scenario(f'[link]\nkind = "mine.json"\n{few}', "s")
    shipped = parse_scenario(f'[link]\nkind = "poor-coverage"\n{few}', "s")
    for mine, theirs in zip(
        load_traces(scenario, "train"), load_traces(shipped, "train"), strict=True
    ):
        assert np.array_equal(mine.uplink_mbps, theirs.uplink_mbps)
    assert anchored(scenario).link.kind == str(tmp_path / "mine.json")
    with pytest.raises(DataError, match=r"no\.json"):
        load_traces(parse_scenario('[link]\nkind = "no.json"', "s"), "train")
    with pytest.raises(ConfigError, match=r"urban-5g.*\.json"):
        load_traces(parse_scenario('[link]\nkind = "rural"', "s"), "train")


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m.update(step_s=0),
        lambda m: m.update(tech="6G"),
        lambda m: m.update(levels=[]),
        lambda m: m["levels"][0].update(following=[1.0]),
        lambda m: m["levels"][0].update(capacity_mbps=[1.0, 2.0]),
        lambda m: m["levels"][0].update(capacity_mbps=[9.0] * 8 + [1.0]),
        lambda m: m["levels"][0].update(persistence=1.5),
        lambda m: m["levels"][0].update(share=float("nan")),
        lambda m: m["levels"][0].update(share="much"),
        lambda m: m["rtt"].update(stall_clumping=-1),
        lambda m: [one.update(capacity_mbps=[0.0] * 9) for one in m["levels"]],
    ],
)
def test_a_file_that_makes_no_traces_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object]
) -> None:
    raw = json.loads(json.dumps(load_models()["urban-5g"].to_json()))
    damage(raw)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"models": [raw]}))
    with pytest.raises(DataError, match="traces fit"):
        generate_trace(str(path), 0)


def test_a_file_holds_one_kind(tmp_path: Path) -> None:
    models = [model.to_json() for model in load_models().values()]
    (tmp_path / "three.json").write_text(json.dumps({"models": models}))
    with pytest.raises(DataError, match="3 kinds"):
        model_of(str(tmp_path / "three.json"))


def test_what_cannot_be_fitted_is_named(tmp_path: Path) -> None:
    flat, steps = tmp_path / "flat.json", tmp_path / "steps.csv"
    save_trace(constant_trace(5.0, 20.0), flat)
    with pytest.raises(DataError, match="hardly varies"):
        fit_files([flat], "k", step_s=0.5)
    rows = "".join(f"x,{t},{1 + t // 30}\n" for t in range(90))
    steps.write_text(f"trace,time_s,uplink_mbps\n{rows}")
    with pytest.raises(ConfigError, match="--rtt-ms"):
        fit_files([steps], "k", step_s=1.0)
    model = fit_files([steps], "k", step_s=1.0, rtt_ms=40.0)
    assert 2 <= len(model.levels) <= 3
    made = generate(model, 0, 60.0, 1.0)
    assert set(made.rtt_ms) == {40.0}
    assert 1 <= made.uplink_mbps.min() <= made.uplink_mbps.max() <= 3
    for wrong in ({"step_s": 0.0}, {"n_levels": 1}, {"tech": "6G"}):
        with pytest.raises(ConfigError, match="levels"):
            fit_files([steps], "k", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="another name"):
        fit_files([steps], "urban-5g", rtt_ms=40.0)
    call = ["testbed", "traces", "fit", str(steps), "--out", str(tmp_path / "k.toml")]
    with pytest.raises(ConfigError, match=r"ending in \.json"):
        CliRunner().invoke(app, call, catch_exceptions=False)


def test_round_trips_of_a_kind_follow_the_traces_name() -> None:
    made = round_trips_of(load_models()["urban-5g"])
    one, origin = made("a", 300, 0.1)
    assert origin == "round trips generated by the model of urban-5g"
    assert np.array_equal(one, made("a", 300, 0.1)[0])
    assert not np.array_equal(one, made("b", 300, 0.1)[0])
    assert len(made("a", 1, 7.5)[0]) == 1
    assert isinstance(Trace(np.ones(300), one, 0.1, "a", "5G", origin), Trace)
