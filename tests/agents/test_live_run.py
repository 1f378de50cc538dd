"""A live run of real processes beside its replay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from networks import THREE_EXITS, scenario_of

from agents.baselines.rules import full_local
from agents.live_run import FrameSource, frame_table, replay, run_live, warm_runtime
from cnn.common.errors import ConfigError
from offload_env.scenario import load_scenario
from offload_env.world import World, build_world

pytestmark = pytest.mark.slow(10)

FRAMES = 30


@pytest.fixture(params=["shipped", "3 exits"])
def world_and_bundle(request: Any, tiny_bundle: Any, tmp_path: Path) -> tuple[World, Path | None]:
    """The test world of the shipped network, and of another one with its bundle's folder."""
    shipped = load_scenario("urban-5g")
    if request.param == "shipped":
        return build_world(shipped, "test"), None
    scenario = scenario_of(THREE_EXITS, tmp_path)
    device = replace(scenario.device, power=shipped.device.power)
    return build_world(replace(scenario, device=device), "test"), tiny_bundle(THREE_EXITS).path


def test_full_local_processing_takes_live_what_its_replay_says(
    world_and_bundle: tuple[World, Path | None], tmp_path: Path
) -> None:
    """Compute times are the profile's on both sides; only late sections may add to them."""
    world, bundle = world_and_bundle
    source = FrameSource("render", seed=7)
    policy, trace = full_local(world.topology), world.traces[0]
    action = ("--action", policy.action.name)
    run = run_live(world, trace, source, action, FRAMES, tmp_path / "live.parquet", bundle=bundle)
    assert run.records.topology == world.topology
    table = frame_table(warm_runtime(bundle), source, FRAMES, lambda done: None)
    replayed = replay(world, table, trace, policy, run.offset_ms, source.seed)
    live = run.figures(world)
    assert run.kept.sections == FRAMES
    assert live["delay_ms"] >= replayed["delay_ms"] - 1e-6
    if run.kept.late == 0:
        assert live["delay_ms"] == pytest.approx(replayed["delay_ms"], abs=1e-6)
        assert live["energy_mj"] == pytest.approx(replayed["energy_mj"], rel=1e-6)
    assert live["accuracy"] == replayed["accuracy"]


def test_a_bundle_of_another_network_than_the_worlds_is_refused(
    tiny_bundle: Any, tmp_path: Path
) -> None:
    world = build_world("urban-5g", "test")
    path, source = tiny_bundle(THREE_EXITS).path, FrameSource("render", seed=7)
    with pytest.raises(ConfigError, match="with 4 blocks"):
        run_live(world, world.traces[0], source, (), 1, tmp_path / "live.parquet", bundle=path)
