"""The generator: its own statistics, its fit on data of known truth, and held-out drives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cnn.common.errors import ConfigError, DataError
from testbed.traces.collection import load_traces
from testbed.traces.generator import GRID, KINDS, TraceModel, generate, generate_trace, load_models
from testbed.traces.generator_fit import fit_model, fit_rtt, fit_weibull, runs
from testbed.traces.trace_statistics import distribution_distance, summary


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_trace_other_seed_other(kind: str) -> None:
    one, again, other = (generate_trace(kind, seed) for seed in (3, 3, 4))
    assert np.array_equal(one.uplink_mbps, again.uplink_mbps)
    assert np.array_equal(one.rtt_ms, again.rtt_ms)
    assert not np.array_equal(one.uplink_mbps, other.uplink_mbps)
    assert not np.array_equal(one.rtt_ms, other.rtt_ms)


@pytest.mark.parametrize("kind", KINDS)
def test_length_name_and_range(kind: str) -> None:
    trace = generate_trace(kind, 1, duration_s=33.3, period_s=0.1)
    assert len(trace.uplink_mbps) == len(trace.rtt_ms) == 333
    assert trace.name == f"generated:{kind}:1"
    assert trace.source.startswith("generated")
    model = load_models()[kind]
    top = max(level.capacity_mbps[-1] for level in model.levels)
    assert trace.uplink_mbps.max() <= top + 1e-9
    assert trace.rtt_ms.min() > 0


def test_period_does_not_change_the_capacity_over_time() -> None:
    fine = generate_trace("urban-5g", 5, 60.0, 0.1).uplink_mbps
    coarse = generate_trace("urban-5g", 5, 60.0, 1.0).uplink_mbps
    assert fine.reshape(-1, 10).mean(axis=1) == pytest.approx(coarse)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="urban-5g"):
        generate_trace("rural", 0)
    for seed, duration_s, period_s in ((-1, 10.0, 0.1), (0, 0.05, 0.1), (0, 1e9, 0.1), (0, 5, 0)):
        with pytest.raises(ConfigError):
            generate_trace("urban-5g", seed, duration_s, period_s)
    (tmp_path / "m.json").write_text('{"models": [{"kind": "x"}]}')
    with pytest.raises(DataError):
        load_models(tmp_path / "m.json")
    with pytest.raises(DataError):
        load_models(tmp_path / "none.json")


def test_models_shipped_say_where_they_come_from() -> None:
    models = load_models()
    assert set(models) == set(KINDS)
    for model in models.values():
        assert model.provenance["uplink_drives"]
        assert model.provenance["command"].startswith("python benchmarks/fit_trace_models.py")
        text = json.dumps(model.to_json())
        assert TraceModel.from_json(json.loads(text)) == model
        for level in model.levels:
            assert list(level.capacity_mbps) == sorted(level.capacity_mbps)
            assert len(level.capacity_mbps) == len(GRID)
        assert sum(level.share for level in model.levels) == pytest.approx(1)


def test_stationary_quantiles_match_the_levels() -> None:
    """Pooled over many traces, the generated distribution is the mixture of the levels'."""
    model = load_models()["highway-lte"]
    pooled = np.concatenate([generate(model, s, 60.0, 0.1).uplink_mbps for s in range(60)])
    rng = np.random.default_rng(0)
    shares = np.array([level.share for level in model.levels])
    k = rng.choice(len(shares), size=200_000, p=shares / shares.sum())
    u = rng.random(200_000)
    expected = np.empty(200_000)
    for n, level in enumerate(model.levels):
        expected[k == n] = np.interp(u[k == n], GRID, level.capacity_mbps)
    assert distribution_distance(pooled[pooled > 0], expected) < 0.08


# The fit, on data of known truth.


def test_weibull_fit_finds_the_truth_through_censoring() -> None:
    rng = np.random.default_rng(1)
    lengths = 12.0 * rng.weibull(0.8, 4000)
    end = rng.uniform(0, 40, 4000)
    shape, scale = fit_weibull(lengths[lengths <= end], end[lengths > end])
    assert shape == pytest.approx(0.8, rel=0.06)
    assert scale == pytest.approx(12.0, rel=0.08)


def test_runs_of_equal_values() -> None:
    assert runs(np.array([1, 1, 0, 2, 2])) == [(0, 2), (2, 3), (3, 5)]
    assert runs(np.array([])) == []


def test_stalls_are_found_with_rate_and_length() -> None:
    rng = np.random.default_rng(2)
    rtts, onsets = [], 0
    for _ in range(40):
        rtt = 20.0 + rng.uniform(-1, 1, 600)
        for at in range(20, 560, 60):
            wait = 500.0 - 100.0 * np.arange(5)
            rtt[at : at + 5] += wait
            onsets += 1
        rtts.append(rtt)
    model = fit_rtt(rtts, 0.1)
    assert model.stalls_per_s == pytest.approx(onsets / (40 * 60.0), rel=0.01)
    assert model.stall_ms[4] == pytest.approx(500, rel=0.02)
    assert model.base_ms[4] == pytest.approx(19.5, rel=0.02)
    assert model.stall_clumping == 100.0  # evenly spread


@pytest.mark.slow(4)
def test_refitting_generated_traces_finds_the_same_statistics() -> None:
    truth = load_models()["urban-5g"]
    made = [generate(truth, seed, 240.0, truth.step_s) for seed in range(60)]
    rtts = [generate(truth, seed, 120.0, truth.rtt.step_s).rtt_ms for seed in range(60)]
    again = fit_model(
        "urban-5g",
        "5G",
        [trace.uplink_mbps for trace in made],
        truth.step_s,
        rtts,
        truth.rtt.step_s,
        len(truth.levels),
        {},
    )
    a = summary(made)
    b = summary([generate(again, 1000 + seed, 240.0, truth.step_s) for seed in range(60)])
    assert b["uplink_mbps"]["mean"] == pytest.approx(a["uplink_mbps"]["mean"], rel=0.15)
    assert b["outage_fraction"] == pytest.approx(a["outage_fraction"], abs=0.015)
    assert b["rtt_ms"]["p50"] == pytest.approx(a["rtt_ms"]["p50"], rel=0.1)
    lag = b["autocorrelation_within"]["1 s"]
    assert lag == pytest.approx(a["autocorrelation_within"]["1 s"], abs=0.15)


def test_data_without_capacity_is_refused() -> None:
    with pytest.raises(DataError, match="any capacity"):
        fit_model("x", "LTE", [np.zeros(100)], 0.5, [np.full(9, 20.0)], 0.2, 3, {})


# Held-out drives.


@pytest.mark.slow(8)
def test_generated_resemble_held_out_drives(data_dir: Path) -> None:
    """The generator is about as near to unseen drives as the drives are to each other."""
    for kind in KINDS:
        train = load_traces(data_dir, kind, "train", period_s=0.5)
        held = load_traces(data_dir, kind, "test", period_s=0.5)
        made = [generate_trace(kind, seed, 120.0, 0.5) for seed in range(150)]
        up = [np.concatenate([t.uplink_mbps for t in part]) for part in (train, held, made)]
        among_drives = distribution_distance(up[0], up[1])
        assert distribution_distance(up[2], up[0]) < 0.1
        assert distribution_distance(up[2], up[1]) < among_drives + 0.1
        measured, generated = summary(held), summary(made)
        for lag in ("1 s", "5 s", "10 s"):
            gap = measured["autocorrelation"][lag] - generated["autocorrelation"][lag]
            assert abs(gap) < 0.2, (kind, lag)
