"""A live run of real processes beside its replay."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.baselines.rules import full_local
from agents.live_run import FrameSource, frame_table, replay, run_live, warm_runtime
from offload_env.world import build_world

pytestmark = pytest.mark.slow(10)

FRAMES = 30


def test_full_local_processing_takes_live_what_its_replay_says(tmp_path: Path) -> None:
    """Compute times are the profile's on both sides; only late sections may add to them."""
    world = build_world("urban-5g", "test")
    source = FrameSource("render", seed=7)
    policy = full_local(world.topology)
    action = ("--action", policy.action.name)
    run = run_live(world, world.traces[0], source, action, FRAMES, tmp_path / "live.parquet")
    table = frame_table(warm_runtime(), source, FRAMES, lambda done: None)
    replayed = replay(world, table, world.traces[0], policy, run.offset_ms, source.seed)
    live = run.figures(world)
    assert run.kept.sections == FRAMES
    assert live["delay_ms"] >= replayed["delay_ms"] - 1e-6
    if run.kept.late == 0:
        assert live["delay_ms"] == pytest.approx(replayed["delay_ms"], abs=1e-6)
        assert live["energy_mj"] == pytest.approx(replayed["energy_mj"], rel=1e-6)
    assert live["accuracy"] == replayed["accuracy"]
