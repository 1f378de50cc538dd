"""Drives of independent frames: a table in which each track is one frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cnn.frame_table import FrameTable
from offload_env.batch_simulator import BatchSimulator
from offload_env.episode import episode_keys
from offload_env.simulator import Simulator
from offload_env.world import World, build_world
from testbed.policy.observation_fields import schema_of
from tests.support.networks import THREE_EXITS, made_up_table, scenario_of


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    table = made_up_table(THREE_EXITS, 3, n_tracks=40)
    n = len(table)
    alone = replace(table, track=np.arange(n, dtype=np.int32), frame=np.zeros(n, np.int16))
    return build_world(scenario_of(THREE_EXITS, tmp_path_factory.mktemp("w")), table=alone)


def test_a_drive_passes_frames_at_random(world: World, tmp_path: Path) -> None:
    rows = np.concatenate([world.rows(int(key), 200) for key in episode_keys(1, 20)])
    counts = np.bincount(rows, minlength=len(world.table))
    assert counts.min() > 0
    # Independent draws: the next row follows the last one no more often than any other.
    assert (np.diff(rows) == 1).mean() < 3 / len(world.table)
    world.table.save(tmp_path / "t.npz")
    assert FrameTable.load(tmp_path / "t.npz").n_tracks == len(world.table)


def test_nothing_is_known_of_a_track_before_its_only_frame(world: World) -> None:
    keys = episode_keys(2, 8)
    batch, single = BatchSimulator(world, len(keys)), [Simulator(world) for _ in keys]
    batch.reset(keys)
    for simulator, key in zip(single, keys, strict=True):
        simulator.reset(world.plan(int(key)))
    names = [field.name for field in schema_of(world.topology).fields]
    unknown = [names.index(n) for n in ("frame_in_track", "answers_on_track", "last_confidence")]
    rng = np.random.default_rng(2)
    for _ in range(40):
        observed = batch.observe()
        np.testing.assert_allclose(observed, [s.observe() for s in single], atol=2e-6)
        assert np.ptp(observed[:, unknown[1:]]) == 0
        actions = rng.integers(0, world.topology.n_actions, len(keys))
        together = batch.settle(actions)
        for k, simulator in enumerate(single):
            assert simulator.settle(int(actions[k])) == tuple(column[k] for column in together)
