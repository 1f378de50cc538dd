"""Tables of P(correct) against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.baselines.answer_odds import BINS, PSEUDO, STATES, AnswerOdds
from cnn.frame_table import embedded_table
from cnn.topology import SHIPPED
from offload_env.world import World, build_world

LOCAL = list(SHIPPED.local)
SEND = SHIPPED.index(5, 0)


@pytest.fixture(scope="module")
def world(make_world) -> World:
    return make_world(20.0)


@pytest.fixture(scope="module")
def odds(world) -> AnswerOdds:
    return AnswerOdds(world)


@pytest.mark.parametrize(("last", "exit"), [(2, 1), (1, 3), (5, 4)])
def test_tables_are_counts_of_frames(world, odds, last: int, exit: int) -> None:
    """After exit `last` answered the frame before, exit `exit` was evaluated on this one."""
    table, before, now = world.table, LOCAL[last - 1], LOCAL[exit - 1]
    counted = np.zeros((STATES, 3))  # frames, right by e5s0, next exit in its surest state
    sums, frames = np.zeros(3), 0
    deeper, surest = LOCAL[exit], 2 * (BINS - 1) + 1
    for i in range(1, len(table)):
        if table.track[i] != table.track[i - 1]:
            continue
        agrees = [
            int(table.prediction[i, a] == table.prediction[i - 1, before]) for a in (now, deeper)
        ]
        state = 2 * odds.bin(exit - 1, float(table.confidence[i, now])) + agrees[0]
        then = 2 * odds.bin(exit, float(table.confidence[i, deeper])) + agrees[1]
        row = np.array([1, table.prediction[i, SEND] == table.label[i], then == surest])
        counted[state] += row
        sums += row
        frames += 1
    share = (counted[:, 1:] + PSEUDO * sums[1:] / frames) / (counted[:, :1] + PSEUDO)
    np.testing.assert_allclose(odds.right[last, exit - 1, :, SEND], share[:, 0])
    np.testing.assert_allclose(odds.shown[last, exit - 1, :, exit, surest], share[:, 1])


def test_shares_of_states_add_up_to_one(odds) -> None:
    np.testing.assert_allclose(odds.shown.sum(-1), 1.0)
    np.testing.assert_allclose(odds.shown_before.sum(-1), 1.0)


def test_agreement_and_confidence_speak_for_an_answer(odds) -> None:
    """Of exit 1's own answer, after a last answer by any exit."""
    own = odds.right[1:, 0, :, LOCAL[0]]
    surest_agrees, surest_differs = own[:, STATES - 1], own[:, STATES - 2]
    assert (surest_agrees > surest_differs).all()
    assert (surest_agrees > own[:, 1]).all()


def test_bins_share_the_doubt(world, odds) -> None:
    for e, a in enumerate(LOCAL):
        confidence = world.table.confidence[:, a].astype(np.float64)
        doubt = np.bincount(odds.bins(e, confidence), 1.0 - confidence, BINS)
        # Up to one frame's doubt at either end of a bin.
        np.testing.assert_allclose(doubt, doubt.mean(), atol=2.0)
        one_by_one = [odds.bin(e, c) for c in confidence[::97].tolist()]
        assert one_by_one == odds.bins(e, confidence[::97]).tolist()


def test_frames_without_a_second_one_on_their_track_are_as_on_a_new_track(make_world) -> None:
    table = embedded_table("policy-train")
    starts = table.track_starts()
    fields = ("label", "frame", "prediction", "confidence", "payload_bytes", "features")
    alone = {name: getattr(table, name)[starts] for name in fields}
    single = replace(table, track=np.arange(len(starts), dtype=table.track.dtype), **alone)
    like = make_world(20.0)
    made = AnswerOdds(
        build_world(like.scenario, "train", traces=like.traces, table=single, cost=like.cost)
    )
    assert np.isfinite(made.shown).all()
    np.testing.assert_array_equal(made.right[3], made.right[0])
