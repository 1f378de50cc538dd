"""The confidence cascade against its rule, frame by frame."""

from __future__ import annotations

import numpy as np
import pytest

from agents.baselines.prediction import AT
from agents.baselines.rules import CascadePolicy
from agents.rollout import simulate
from cnn.topology import ACTIONS, Action
from offload_env.episode import episode_keys
from testbed.policy.decision_points import ANSWER, LEGAL, STAGED
from testbed.policy.observer import STAGED_FIELDS, normalise

AT_CONFIDENCE = next(f.index for f in STAGED_FIELDS if f.name == "stage_confidence")


def first_confident(confidence: np.ndarray, sure: float, last: int) -> int:
    """Exit (1..5) of BranchyNet's rule for one frame's confidences of the local exits."""
    for exit in range(1, last):
        if confidence[exit - 1] >= sure:
            return exit
    return last


@pytest.mark.parametrize(("sure", "last"), [(0.9, 2), (0.99, 5), (1.1, 3)])
def test_over_a_hopeless_link_it_is_branchynet(make_world, sure: float, last: int) -> None:
    world = make_world(0.1)
    policy = CascadePolicy(world, sure, last)
    assert policy.space is STAGED
    raw = np.zeros(len(STAGED_FIELDS))
    raw[AT["uplink_mbps"]], raw[AT["rtt_ms"]] = 0.1, 1000.0
    local = [Action(e, e).index for e in range(1, 6)]
    for row in range(0, len(world.table), 20):
        confidence = world.table.confidence[row, local]
        position, chosen = 0, -1
        while position < 5 and chosen != ANSWER:
            raw[AT_CONFIDENCE] = confidence[position - 1] if position else 0.0
            chosen = policy.decide(normalise(raw), position)
            if chosen != ANSWER:
                assert ACTIONS[chosen].is_local
                position = ACTIONS[chosen].exit
        assert position == first_confident(confidence, sure, last)


def test_over_a_perfect_link_it_sends_the_frame_at_once(make_world) -> None:
    world = make_world(300.0, rtt_ms=1.0, full_local_ms=400.0)
    driven = simulate(world, CascadePolicy(world, 0.9, 3), episode_keys(0, 6))
    # Until the first transfers have shown how good the link is, it may do otherwise.
    assert (driven.action[:, 5:] == Action(3, 0).index).mean() > 0.95


def test_decisions_are_legal_and_single_ones_are_the_batchs(make_world) -> None:
    world = make_world(20.0)
    policy = CascadePolicy(world, 0.9, 5)
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (500, 42)).astype(np.float32)
    positions = rng.integers(0, 5, 500)
    chosen = policy.decide_batch(observations, positions)
    assert LEGAL[positions, chosen].all()
    assert len(set(chosen)) > 3
    assert ANSWER in chosen
    for i in range(0, 500, 25):
        assert policy.decide(observations[i], int(positions[i])) == chosen[i]
