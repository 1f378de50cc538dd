"""The floor by drive, track and class, against counting by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.evaluation import evaluate, resamples
from agents.floor_kept import floor_kept, rank, tracks_driven
from agents.rollout import simulate
from agents.terminal import floor_table
from cnn.topology import SHIPPED
from offload_env.episode import episode_keys
from offload_env.scenario import Constraint
from testbed.policy.policies import StaticPolicy

MARGIN = 0.01


@pytest.fixture(scope="module")
def world(make_world):
    world = make_world(20.0, n_frames=50)
    constraint = Constraint(accuracy_margin=MARGIN)
    return replace(world, scenario=replace(world.scenario, constraint=constraint))


@pytest.fixture(scope="module")
def driven(world):
    return simulate(world, StaticPolicy(SHIPPED.action(1, 1)), episode_keys(3, 24))


def test_counts_of_drives_tracks_and_classes(world, driven) -> None:
    weights = resamples(tracks_driven(world, driven.row), 4, n=200)
    found = floor_kept(world, driven.row, driven.correct, weights)
    lost = np.array(  # against full local processing, frame by frame
        [
            [int(world.correct[row, 19]) - int(ok) for row, ok in zip(rows, oks, strict=True)]
            for rows, oks in zip(driven.row, driven.correct, strict=True)
        ]
    )
    over = [MARGIN - losses.mean() for losses in lost]
    assert 0 < found.drives_below < 1
    assert found.drives_below == np.mean([value < 0 for value in over])
    assert found.worst_drive == over.index(min(over))
    assert found.worst_drive_over == pytest.approx(min(over))

    tracks = sorted({int(world.table.track[row]) for row in driven.row.flat})
    of_track = {t: lost[world.table.track[driven.row] == t] for t in tracks}
    below = 0
    for counts in weights * len(tracks):  # how often each track was drawn
        drawn = [of_track[t] for t, n in zip(tracks, counts, strict=True) for _ in range(round(n))]
        below += bool(np.concatenate(drawn).mean() > MARGIN)
    assert found.tracks_below == pytest.approx(below / 200)

    label = world.table.label[driven.row]
    losses = {int(c): lost[label == c].mean() for c in np.unique(label)}
    assert found.worst_class_loss == pytest.approx(max(losses.values()))
    assert losses[found.worst_class] == max(losses.values())
    assert found.classes[found.worst_class] == driven.correct[label == found.worst_class].mean()
    assert set(found.classes) == set(losses)


def test_full_local_processing_is_above_by_the_margin_everywhere(world) -> None:
    local = simulate(world, StaticPolicy(SHIPPED.action(5, 5)), episode_keys(3, 8))
    weights = resamples(tracks_driven(world, local.row), 0)
    found = floor_kept(world, local.row, local.correct, weights)
    assert (found.drives_below, found.tracks_below, found.worst_class_loss) == (0, 0, 0)
    assert found.worst_drive_over == pytest.approx(MARGIN)


def test_an_explicit_floor_holds_for_each_drive(world, driven) -> None:
    fixed = replace(world.scenario, constraint=Constraint(accuracy_floor=0.97))
    weights = resamples(tracks_driven(world, driven.row), 0)
    found = floor_kept(replace(world, scenario=fixed), driven.row, driven.correct, weights)
    assert found.drives_below == np.mean([ok.mean() < 0.97 for ok in driven.correct])


def test_frames_without_classes_have_no_worst_class(world, driven) -> None:
    table = replace(world.table, label=np.full_like(world.table.label, -1))
    weights = resamples(tracks_driven(world, driven.row), 0)
    found = floor_kept(replace(world, table=table), driven.row, driven.correct, weights)
    assert (found.worst_class, found.worst_class_loss, found.classes) == (None, 0.0, {})


@pytest.mark.slow(12)
def test_an_evaluation_has_it_for_every_policy(world) -> None:
    agent = StaticPolicy(SHIPPED.action(1, 1), "agent")
    result = evaluate(world, world, {"agent": agent}, drives=4, tuning_drives=4)
    rows = result.as_json()["policies"]
    for name, row in rows.items():
        assert {"drives_below", "worst_drive", "tracks_below", "classes"} <= set(row), name
    assert len(floor_table(result).rows) == len(rows)
    assert set(result.as_json()["energy_gains"]) == {"whole", "active", "above_idle"}


def test_cheap_counts_only_above_the_floor() -> None:
    """(cost, accuracy) in the order that a floor of 0.9 gives them."""
    given = [(0.1, 0.5), (0.4, 0.99), (0.8, 0.89), (0.3, 0.9)]
    wanted = [(0.3, 0.9), (0.4, 0.99), (0.8, 0.89), (0.1, 0.5)]
    assert sorted(given, key=lambda each: rank(*each, 0.9)) == wanted
