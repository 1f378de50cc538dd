"""Scenario files: shipped ones load, wrong ones say what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cnn.common.errors import ConfigError, DataError
from cnn.topology import SHIPPED
from offload_env.scenario import (
    CLASSIC,
    Constraint,
    Scenario,
    load_scenario,
    parse_scenario,
    scenario_names,
    second_generation,
)
from offload_env.server_load import CELL_MS, ServerLoad
from offload_env.world import World, build_world, load_traces

NAMES = ("busy-edge", "fast-device", "highway-lte", "poor-coverage", "slow-device", "urban-5g")


def test_scenarios_of_two_generations_are_shipped() -> None:
    assert scenario_names() == NAMES + second_generation()
    assert NAMES == CLASSIC
    assert len(second_generation()) == 16
    for name in scenario_names():
        scenario = load_scenario(name)
        assert scenario.name == name
        assert scenario.description
        assert scenario.price.delay_weight + scenario.price.energy_weight == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_first_generation_has_a_second_name(name: str) -> None:
    """The same scenario, so the same noise and the same figures."""
    assert load_scenario(f"classic-{name}") == load_scenario(name)


def test_no_other_scenario_is_classic() -> None:
    with pytest.raises(ConfigError, match="scenario 'classic-city-camera'"):
        load_scenario("classic-city-camera")


@pytest.mark.parametrize("name", scenario_names())
def test_a_slower_clock_would_not_pay(name: str) -> None:
    """Even if the voltage fell with the clock: docs/environment.md, "What is left out"."""
    world = build_world(name, "train")
    idle_mw, busy_mw = world.cost.idle_mw, world.cost.busy_mw
    clock = np.linspace(0.1, 1.0, 91)
    energy_mw = idle_mw + (busy_mw - idle_mw) * clock**3
    cost = (world.delay_price + world.energy_price * energy_mw / 1e3) / clock
    assert cost.argmin() == len(clock) - 1


@pytest.mark.parametrize("name", second_generation())
def test_full_local_processing_cannot_keep_up(name: str) -> None:
    """Frames queue, whatever the link: that is what couples them."""
    train, test = build_world(name, "train"), build_world(name, "test")
    assert train.topology == test.topology != SHIPPED
    assert train.delay_ref_ms > 1.9 * train.scenario.timing.period_ms
    assert train.cost.bundle_hash == train.table.bundle_hash == test.table.bundle_hash
    right = [float(test.correct[:, i].mean()) for i in test.topology.local[:3]]
    assert right[0] + 0.04 < right[1] < right[2] - 0.04


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[timing]\nperiod = 3", "unknown key 'period'"),
        ("colour = 3", "unknown key 'colour'"),
        ("[timing]\nperiod_ms = 'soon'", "timing: period_ms = 'soon'"),
        ("[timing]\nn_frames = 1.5", "n_frames = 1.5"),
        ("[timing]\nperiod_ms = true", "period_ms = true"),
        ("[timing]\nperiod_ms = -1", "timing: period_ms -1; expected 0.01..3600000"),
        ("[price]\ndelay_weight = 0\nenergy_weight = 0", "at least one weight"),
        ("[link]\nsource = 'guessed'", "generated or measured"),
        ("[server]\nutilisation = 1.5", "utilisation"),
        ("[device]\nslowdown = 0", "slowdown"),
        ("[constraint]\naccuracy_margin = 2", "accuracy_margin 2; expected 0..1"),
        ("[device]\nfull_local_ms = 200_000", "0.01..100000"),
        ("[device]\nfull_local_ms = 0.001", "0.01..100000"),
        ("[timing]\nmax_queue_ms = nan", "nan"),
        ("[price]\nmiss = nan", "nan"),
        ("[constraint]\naccuracy_floor = nan", "nan"),
        ("[constraint]\naccuracy_floor = 1.01", "accuracy_floor 1.01; expected 0..1"),
        ("[constraint]\ncritical_classes = 14", "critical_classes = 14"),
        ("timing = 3", "timing = 3"),
        ("name = 'x'", "key 'name'"),
        ("[timing", "valid TOML"),
        ("[timing]\nperiod_ms = nan", "period_ms = nan; expected a finite number"),
        ("[timing]\ndeadline_ms = -inf", "deadline_ms = -inf; expected a finite number"),
        ("[timing]\nperiod_ms = 1e308", "period_ms 1e+308"),
        ("[timing]\nn_frames = 1_000_000_000_000", "n_frames 1000000000000; expected 1..100000"),
        ("[timing]\nn_frames = 1" + 400 * "0", "n_frames = 10^400 or so"),
        ("[timing]\nperiod_ms = 1" + 400 * "0", "period_ms = 10^400 or so"),
        ("[timing]\nperiod_ms = 1" + 5000 * "0", "valid TOML"),
        ("[timing]\nn_frames = [1, 2]", "n_frames = [1, 2]"),
        ("[timing]\nn_frames = {a = 1}", "n_frames = a table"),
        ("[timing]\nn_frames = 2020-01-01", "n_frames = 2020-01-01"),
        ("[timing]\nn_frames = 2020-99-01", "valid TOML"),
        ("[link]\nseed = -1", "seed -1"),
        ("[link]\ntrain_traces = 100000\nduration_s = 86400.0", "samples in all"),
        ("[link]\nduration_s = 0.05", "at least one sample"),
        ("[server]\nservice_ms = 1e-300", "service_ms 1e-300"),
        ("[price]\nmiss = inf", "miss = inf"),
        ("[constraint]\ncritical_classes = [32768]", "32768"),
        ("[constraint]\ncritical_classes = ['stop']", "type int"),
        ("x = " + 3000 * "[", "valid TOML"),
    ],
)
def test_a_wrong_key_or_value_is_said_in_one_line(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_scenario(text, "mine")
    message = str(caught.value)
    assert part in message
    assert "scenario mine" in message
    assert "\n" not in message.replace(text, "")
    assert len(message) < 400
    assert "(" not in message.partition("valid TOML")[2], "a Python representation"


@pytest.mark.parametrize("wrong", [-1, 7])
def test_a_critical_class_that_no_frame_has_is_refused(
    make_world: Callable[..., World], wrong: int
) -> None:
    with pytest.raises(ConfigError, match=f"critical.* {wrong}"):
        make_world(constraint=Constraint(critical_classes=(1, wrong)))


def test_unknown_names_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="urban-5g"):
        load_scenario("urban-6g")
    with pytest.raises(ConfigError, match="readable TOML"):
        load_scenario(tmp_path / "none.toml")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[constraint]\ncritical_classes = [14, 17]\n[timing]\nn_frames = 7\n")
    scenario = load_scenario(path)
    assert scenario.name == "mine"
    assert scenario.constraint.critical_classes == (14, 17)
    assert scenario.timing.n_frames == 7
    assert load_scenario(scenario) is scenario


def test_train_and_test_drives_share_no_seed() -> None:
    for name in NAMES:
        link = load_scenario(name).link
        assert not set(link.seeds("train")) & set(link.seeds("test"))
        assert len(link.seeds("train")) == link.train_traces


def test_weights_and_floor_can_be_swept(make_world: Callable[..., World]) -> None:
    scenario = Scenario("s").with_weights(0.2, 0.8).with_floor(0.7)
    assert scenario.price.delay_weight == 0.2
    world = make_world(scenario)
    assert world.accuracy_floor == 0.7
    assert world.settings.delay_share == pytest.approx(0.2)


def test_floor_is_the_main_exits_accuracy_less_the_margin(world: World) -> None:
    right = world.table.correct[:, SHIPPED.main]
    expected = right.mean() - world.scenario.constraint.accuracy_margin
    assert world.accuracy_floor == pytest.approx(expected)
    chosen = np.isin(world.table.label, (1, 3))
    assert world.critical_floor == pytest.approx(right[chosen].mean() - 0.001)


def test_a_cost_model_of_another_network_is_refused(
    world: World, make_world: Callable[..., World]
) -> None:
    from dataclasses import replace

    other = tuple(2 * b for b in world.cost.payload_bytes)
    with pytest.raises(DataError, match="fit the cost model"):
        make_world(cost=replace(world.cost, payload_bytes=other))


def test_unknown_split() -> None:
    with pytest.raises(ConfigError, match="split"):
        build_world("urban-5g", "validation")  # type: ignore[arg-type]


def test_measured_traces_need_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLIPROAD_DATA", raising=False)
    scenario = parse_scenario("[link]\nsource = 'measured'", "mine")
    with pytest.raises(ConfigError, match="SLIPROAD_DATA"):
        load_traces(scenario, "train")


@pytest.mark.slow(1)
def test_measured_traces_split_by_drive(data_dir: Path) -> None:
    text = f"[link]\nsource = 'measured'\nkind = 'highway-lte'\nfolder = '{data_dir}'"
    scenario = parse_scenario(text, "mine")
    train, test = load_traces(scenario, "train"), load_traces(scenario, "test")
    assert train
    assert test
    assert not {t.name for t in train} & {t.name for t in test}


def test_server_load_has_the_stated_utilisation_and_md1_mean_wait() -> None:
    """Without swing the work is an M/D/1 queue: mean rho * service / (2 (1 - rho))."""
    for rho in (0.3, 0.6):
        load = ServerLoad(rho, 5.0, 0.0)
        work = load.work_ms(np.random.default_rng(0), 400_000)
        assert work.min() >= 0
        assert work.mean() == pytest.approx(rho * 5.0 / (2 * (1 - rho)), rel=0.05)
        assert (work > 0).mean() == pytest.approx(rho, rel=0.03)
        assert (np.diff(work) >= -CELL_MS - 1e-9).all()
    swinging = ServerLoad(0.6, 5.0, 1.5).work_ms(np.random.default_rng(0), 400_000)
    assert swinging.mean() > 2 * work.mean()
    assert (ServerLoad().work_ms(np.random.default_rng(0), 10) == 0).all()


def test_embedded_frames_are_disjoint_by_track() -> None:
    from cnn.frame_table import embedded_table

    train, test = embedded_table("policy-train"), embedded_table("policy-test")
    rows = {tuple(row) for row in train.features[:, :5].tolist()}
    shared = sum(tuple(row) in rows for row in test.features[:, :5].tolist())
    assert shared < 5  # chance resemblance, not shared frames
