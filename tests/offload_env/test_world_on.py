"""A world on some of its tracks."""

from __future__ import annotations

import numpy as np
import pytest

from cnn.common.errors import DataError
from offload_env.batch_simulator import BatchSimulator
from offload_env.episode import episode_keys
from offload_env.world import World, world_on


def driven(world: World, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, delays and observations of drives that always send after block 2."""
    simulator = BatchSimulator(world, 8)
    simulator.reset(episode_keys(3, 8))
    seen, outcomes = [], []
    for _ in range(n):
        seen.append(simulator.observe())
        outcomes.append(simulator.settle(np.full(8, world.topology.action(5, 2).index)))
    return (
        np.stack([o.row for o in outcomes]),
        np.stack([o.delay_ms for o in outcomes]),
        np.stack(seen),
    )


def test_only_its_tracks_are_driven(world: World) -> None:
    keep = np.arange(world.table.n_tracks) % 3 == 1
    part = world_on(world, keep)
    rows = np.flatnonzero(keep[world.table.track])
    driven_rows = rows[driven(part)[0]]  # as rows of the whole table
    assert set(world.table.track[driven_rows].ravel()) <= set(np.flatnonzero(keep))
    np.testing.assert_array_equal(part.sent_bytes, world.sent_bytes[rows])
    np.testing.assert_array_equal(part.features, world.features[rows])
    np.testing.assert_array_equal(part.track_end, world.track_end[rows])
    assert not part.correct.flags.writeable


def test_its_floors_are_those_of_its_frames(world: World) -> None:
    keep = np.arange(world.table.n_tracks) < 7
    part, constraint = world_on(world, keep), world.scenario.constraint
    rows = keep[world.table.track]
    right = world.correct[rows, world.topology.main]
    assert part.accuracy_floor == pytest.approx(right.mean() - constraint.accuracy_margin)
    critical = world.critical[rows]
    assert part.critical_floor == pytest.approx(right[critical].mean() - 0.001)
    # What the device is told stays as it is, and a policy sees the two worlds alike.
    assert part.settings is world.settings


def test_all_tracks_are_the_same_world_bit_for_bit(world: World) -> None:
    whole = world_on(world, np.ones(world.table.n_tracks, bool))
    for a, b in zip(driven(world), driven(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_track_is_an_error(world: World) -> None:
    with pytest.raises(DataError, match="0 among 12 tracks"):
        world_on(world, np.zeros(12, bool))
